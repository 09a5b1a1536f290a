from collections.abc import Callable, Sequence

from llmrouter.domain import InstanceView, Request, Room
from llmrouter.routing.features import FeatureTail

class Table:
    """The numbers of instances as rows, read again where a view is another object than the last time.

    A view is one object for as long as nothing of it changes, so that a decision reads what changed. The formulas are
    those of ``rules`` and ``inflight``, compiled as they stand there. One thread's; keeps the views that it saw last.

    Args:
        room_of: the room of an instance, as its view stands.
        tail_of: ``features.profile_features`` of an instance; asked where a view has another instance object.
    """

    def __init__(
        self, room_of: Callable[[InstanceView], Room], tail_of: Callable[[InstanceView], FeatureTail]
    ) -> None: ...
    def roomy(self, views: Sequence[InstanceView], request: Request) -> tuple[int, list[int]]:
        """How many of the instances serve the request's model and are not excluded, and where those are that have room.

        What is asked about places afterwards is about these views.
        """

    def emptier(self, views: Sequence[InstanceView], request: Request, instance_id: str) -> list[int]:
        """Where instances are that serve the request's model and are less full (``inflight.fullness``) than one.

        Raises:
            KeyError: that one is none of them.
        """

    def scores(self, request: Request, places: list[int], rule: int, weights: tuple[float, ...] = ()) -> list[float]:
        """``rules.score`` of the instances at ``places``; the backlog is the mean of ``queued_prefill_s`` of them.

        Raises:
            IndexError: a place is none.
            ValueError: the marginal cost has not as many weights as ``WEIGHT_NAMES``.
        """

    def rows(self, request: Request, places: list[int]) -> bytes:
        """``features.feature_rows`` of the instances at ``places``: float64, (P, F).

        Raises:
            IndexError: a place is none.
        """

"""The policies. Each answers one question: where does this request go, or does it wait? And says why.

A policy sees only a request, a snapshot and a random stream. ``RoundRobin`` keeps its cursor between decisions; the
other policies of this module keep nothing. Policies that are one formula are in ``formulas.py``, all by name in
``catalogue.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from llmrouter.domain import BatchHold, Candidate, Decision, EngineMode, Hold, NoCandidate, Placement
from llmrouter.routing.batching import hold_for_batch
from llmrouter.routing.features import FEATURE_NAMES, feature_rows, profile_features, weights_of
from llmrouter.routing.ranking import best, named
from llmrouter.routing.rooms import kv_gate, per_profile, request_bound
from llmrouter.routing.rules import Rule
from llmrouter.routing.table import Table

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from llmrouter.domain import InstanceView, ObjectiveWeights, PoolSnapshot, Request, Room

__all__ = [
    "MAX_CANDIDATES",
    "CannotDecideError",
    "LeastInFlight",
    "MissingFeatureError",
    "NonFiniteScoreError",
    "Policy",
    "PowerOfTwo",
    "Random",
    "RoundRobin",
    "Ruled",
    "Scored",
    "ScorerLike",
    "kv_gate",
    "request_bound",
]

MAX_CANDIDATES = 8
"""How many instances, best first, a decision names; the reserve call walks them in order."""

_NO_BATCH_HOLD = BatchHold()

Ranked = list[tuple[float, "InstanceView"]]


class ScorerLike(Protocol):
    """A model as a policy needs it."""

    def score(self, features_IF: NDArray[np.float32], weights_W: NDArray[np.float32]) -> NDArray[np.float32]:
        """Costs in seconds (I,), lower is better."""
        ...


class Policy(Protocol):
    """Decides; see the module's docstring."""

    name: str

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        """One decision, with its reason."""
        ...

    def room_of(self, view: InstanceView) -> Room:
        """The bound that the reserve call checks again for this instance."""
        ...


class CannotDecideError(ValueError):
    """A policy has no answer to this question; ``reason`` is a CamelCase word fit for a metric label."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NonFiniteScoreError(CannotDecideError):
    """A score is NaN or infinite."""

    def __init__(self, message: str) -> None:
        super().__init__("NotFinite", message)


class MissingFeatureError(CannotDecideError):
    """The policy cannot see what it needs."""

    def __init__(self, message: str) -> None:
        super().__init__("MissingFeatures", message)


_tail_of = per_profile(profile_features)


class RoomyPolicy:
    """What all policies share: who is eligible, who has room, and the answer where there is nobody.

    ``rule`` is the rule of ``rules.py`` that decides as the policy does; ``None`` where none does.
    """

    name = ""
    load_sensitive = True
    rule: Rule | None = None
    batch_hold = _NO_BATCH_HOLD

    def __init__(self, room_rule: Callable[[InstanceView], Room]) -> None:
        self.room_of = room_rule
        self._table = Table(room_rule, per_profile(profile_features))

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        """Filters, orders and names the candidates."""
        views = snapshot.views
        eligible, places = self._table.roomy(views, request)
        if not places:
            if not eligible:
                return NoCandidate(f"no ready instance serves model {request.model!r}")
            return Hold(f"none of {eligible} instances has room")
        ranked = self._ranked(request, views, places, rng)
        if self.batch_hold.size > 1 and (hold := self._waits(request, snapshot, ranked[0][1], places)) is not None:
            return hold
        candidates = named(Candidate, ranked, MAX_CANDIDATES)
        reason = self._reason(candidates, eligible, len(places))
        return Placement(candidates, reason, self.load_sensitive)

    def _ranked(self, request: Request, views: Sequence[InstanceView], places: list[int], rng: random.Random) -> Ranked:
        """The views at ``places`` in order, the best first; ``MAX_CANDIDATES`` of them are enough."""
        return self._rank(request, [views[place] for place in places], rng)

    def _rank(self, request: Request, views: Sequence[InstanceView], rng: random.Random) -> Ranked:
        """The views in order, as ``_ranked`` does."""
        raise NotImplementedError

    def _waits(self, request: Request, snapshot: PoolSnapshot, best: InstanceView, places: list[int]) -> Hold | None:
        """The answer *wait for a batch*, where the best instance is to be given one; see ``batching``."""
        if best.instance.profile.mode is not EngineMode.PREFILL_FIRST:
            return None
        row, roomy = feature_rows(request, [best], _tail_of)[0], (snapshot.views[place] for place in places)
        return hold_for_batch(self.batch_hold, row, self.room_of(best), request=request, snapshot=snapshot, roomy=roomy)

    def _reason(self, candidates: Sequence[Candidate], eligible: int, roomy: int) -> str:
        best = candidates[0]
        return f"{self.name}: {best.instance_id} scored {best.score:.4g}; {roomy} of {eligible} instances have room"


def ordered(scores: Sequence[float], views: Sequence[InstanceView], rng: random.Random) -> Ranked:
    """Views by score, ties in random order.

    Raises:
        NonFiniteScoreError: a score is NaN or infinite.
    """
    return [(score, views[place]) for score, place in _first(list(scores), rng)]


def _first(scores: list[float], rng: random.Random) -> list[tuple[float, int]]:
    """The lowest scores and their places, ties in random order."""
    try:
        return best(scores, rng.random, MAX_CANDIDATES)
    except FloatingPointError as error:
        raise NonFiniteScoreError(str(error)) from None


class RoundRobin(RoomyPolicy):
    """One instance after the other in the order of their ids, whatever they carry.

    Fails where engines are unequal (the slow one gets as much as the fast), where requests are (a giant prompt and a
    one-liner count alike), and where many routers turn in step.
    """

    name = "RoundRobin"
    load_sensitive = False
    rule = Rule.ROUND_ROBIN

    def __init__(self, room_rule: Callable[[InstanceView], Room]) -> None:
        super().__init__(room_rule)
        self._last = ""

    def _rank(self, request: Request, views: Sequence[InstanceView], rng: random.Random) -> Ranked:
        del request, rng
        by_id = sorted(views, key=lambda view: view.instance.instance_id)
        later = [view for view in by_id if view.instance.instance_id > self._last]
        ring = later + by_id[: len(by_id) - len(later)]
        self._last = ring[0].instance.instance_id
        return [(float(place), view) for place, view in enumerate(ring)]


class Random(RoomyPolicy):
    """Any instance, each as likely. Fails as round-robin does, and leaves some idle by chance while others queue."""

    name = "Random"
    load_sensitive = False
    rule = Rule.RANDOM

    def _rank(self, request: Request, views: Sequence[InstanceView], rng: random.Random) -> Ranked:
        del request
        return [(0.0, view) for view in rng.sample(views, min(MAX_CANDIDATES, len(views)))]


class PowerOfTwo(RoomyPolicy):
    """The one with fewer requests in flight of two instances drawn at random; the rest follow by chance.

    Mitzenmacher, "The power of two choices in randomized load balancing" (2001). Never herds; fails as counting
    requests does, and passes over an idle instance that it did not draw.
    """

    name = "PowerOfTwo"
    rule = Rule.POWER_OF_TWO

    def _rank(self, request: Request, views: Sequence[InstanceView], rng: random.Random) -> Ranked:
        del request
        drawn = rng.sample(views, min(MAX_CANDIDATES, len(views)))
        drawn[:2] = sorted(drawn[:2], key=lambda view: view.total.requests)
        return [(float(view.total.requests), view) for view in drawn]


class Costed(RoomyPolicy):
    """The instance with the lowest score; ties at random."""

    def _ranked(self, request: Request, views: Sequence[InstanceView], places: list[int], rng: random.Random) -> Ranked:
        first = _first(self._scores(request, places), rng)
        return [(score, views[places[at]]) for score, at in first]

    def _scores(self, request: Request, places: list[int]) -> list[float]:
        """Of the instances at ``places`` of the table."""
        raise NotImplementedError


class Ruled(Costed):
    """The instance with the lowest score under a formula of ``rules.py``; ties at random."""

    rule: Rule
    _weights: tuple[float, ...] = ()

    def _scores(self, request: Request, places: list[int]) -> list[float]:
        return self._table.scores(request, places, self.rule, self._weights)


class LeastInFlight(Ruled):
    """The instance with the fewest requests in flight: ``n``. Join the shortest queue, counted in requests.

    Fails where one request is a giant prompt: it counts like a one-liner, and what joins it waits for its prefill.
    """

    name = "LeastInFlight"
    rule = Rule.LEAST_IN_FLIGHT


class Scored(Costed):
    """The instance whose cost a model puts lowest (``spec.type: Onnx``).

    Fails where the model was made for other engines or traffic than it meets; scores that are not finite are refused.
    """

    name = "Onnx"

    def __init__(
        self,
        room_rule: Callable[[InstanceView], Room],
        scorer: ScorerLike,
        weights: ObjectiveWeights,
        batch_hold: BatchHold = _NO_BATCH_HOLD,
    ) -> None:
        super().__init__(room_rule)
        self.batch_hold = batch_hold
        self._scorer = scorer
        self._weights_W = weights_of(weights)

    def _scores(self, request: Request, places: list[int]) -> list[float]:
        rows_PF = np.frombuffer(self._table.rows(request, places)).reshape(len(places), len(FEATURE_NAMES))
        scores: list[float] = self._scorer.score(rows_PF.astype(np.float32), self._weights_W).tolist()
        return scores

"""Many instances as columns: what a decision reads of each stands ready, and is read again where a view has changed.

Of hundreds of instances a few change between two decisions. A policy that asks each view for its numbers takes a
millisecond for them; one that keeps the numbers and scores them all at once takes a tenth of it. The arithmetic is that
of ``inflight.fits`` and of the feature rows, operation by operation: the same instances have room, and the same scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmrouter.routing.features import FEATURE_NAMES
from llmrouter.routing.inflight import kv_bound
from llmrouter.routing.rules import CACHED, CONTEXT, KV, PREDICTED, PROMPT, REMAINING, REQUESTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from llmrouter.domain import InstanceView, Request, Room
    from llmrouter.routing.features import FeatureTail

    Floats = NDArray[np.float64]
    Places = NDArray[np.intp]

MANY = 32
"""From so many instances on, columns are quicker."""


class Columns:
    """The views of one snapshot after the other; a view is one object for as long as nothing of it changes."""

    def __init__(self, room_of: Callable[[InstanceView], Room], tail_of: Callable[[InstanceView], FeatureTail]) -> None:
        self._room_of, self._tail_of = room_of, tail_of
        self._views: list[InstanceView] = []
        self._rows_IF = np.zeros((0, len(FEATURE_NAMES)))
        self._rooms_I3 = np.zeros((0, 3))
        self._place_of: dict[str, int] = {}
        self._serving: dict[str, NDArray[np.bool_]] = {}

    def follow(self, views: Sequence[InstanceView]) -> None:
        """Takes the views of a snapshot, reading those that are not the objects of the last one."""
        if len(views) != len(self._views):
            self._views = [None] * len(views)  # type: ignore[list-item]
            self._rows_IF, self._rooms_I3 = np.zeros((len(views), len(FEATURE_NAMES))), np.zeros((len(views), 3))
        known = self._views
        for place, view in enumerate(views):
            if view is not known[place]:
                self._read(place, view)

    def _read(self, place: int, view: InstanceView) -> None:
        before = self._views[place]
        instance, load, room = view.instance, view.total, self._room_of(view)
        if before is None or before.instance is not instance:
            self._serving.clear()
            self._place_of.clear()
        self._views[place] = view
        row_F = self._rows_IF[place]
        row_F[:PROMPT] = load.requests, load.context_tokens, load.queued_prefill_tokens, load.remaining_decode_tokens
        row_F[KV:CACHED] = self._tail_of(view)
        self._rooms_I3[place] = room.max_requests, kv_bound(room), room.decode_reserve_fraction

    def roomy(self, request: Request) -> tuple[int, Places]:
        """How many instances are eligible for a request, and where those of them are that have room for it."""
        eligible_I = self._eligible(request)
        requests_I, context_I, remaining_I = (self._rows_IF[:, one] for one in (REQUESTS, CONTEXT, REMAINING))
        most_I, limit_I, reserve_I = self._rooms_I3.T
        expected_I = reserve_I * (remaining_I + request.predicted_output_tokens)
        fits_I = (limit_I < 0) | (context_I + request.prompt_tokens + expected_I <= limit_I)
        room_I = (requests_I <= 0) | ((requests_I < most_I) & fits_I)
        return int(np.count_nonzero(eligible_I)), np.flatnonzero(eligible_I & room_I)

    def rows(self, request: Request, places_P: Places) -> Floats:
        """``feature_rows`` of some of the instances: (P, F)."""
        rows_PF = self._rows_IF[places_P]
        rows_PF[:, PROMPT], rows_PF[:, PREDICTED] = request.prompt_tokens, request.predicted_output_tokens
        if request.cached_tokens:
            cached_I = np.zeros(len(self._views))
            places = self._places()
            for instance_id, tokens in request.cached_tokens.items():
                if (place := places.get(instance_id)) is not None:
                    cached_I[place] = tokens
            rows_PF[:, CACHED] = cached_I[places_P]
        return rows_PF

    def _eligible(self, request: Request) -> NDArray[np.bool_]:
        serving_I = self._serving.get(request.model)
        if serving_I is None:
            serving_I = np.array([request.model in one.instance.models for one in self._views], dtype=np.bool_)
            self._serving[request.model] = serving_I
        excluded = [self._places().get(one) for one in request.excluded_instance_ids]
        left_out = [place for place in excluded if place is not None]
        if not left_out:
            return serving_I
        eligible_I = serving_I.copy()
        eligible_I[left_out] = False
        return eligible_I

    def _places(self) -> dict[str, int]:
        if not self._place_of:
            self._place_of = {one.instance.instance_id: place for place, one in enumerate(self._views)}
        return self._place_of

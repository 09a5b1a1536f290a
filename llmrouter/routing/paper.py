"""Baselines of arXiv 2408.13510 that are no score over an instance: they know the time, or divide the pool.

For comparisons alone: neither is a type of RoutingPolicy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmrouter.routing.policies import LeastInFlight, Ranked, RoomyPolicy, ordered

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from llmrouter.domain import Decision, InstanceView, PoolSnapshot, Request, Room

HEAVY_DECODE_TOKENS = 143.0
"""Output tokens from which a decode is heavy: 5 s at the steps of the paper's V100."""


class MaxCapacity(RoomyPolicy):
    """The instance with the largest free share of KV, net of queued prompts: ``1 − C/K``; chosen anew once a second.

    The max-capacity of arXiv 2408.13510. Fails by herding: whatever arrives within the second goes to one instance.
    """

    name = "MaxCapacity"
    load_sensitive = False

    def __init__(self, room_rule: Callable[[InstanceView], Room], *, period_s: float = 1.0) -> None:
        super().__init__(room_rule)
        self._period_s = period_s
        self._now_s = 0.0
        self._chosen = ""
        self._chosen_at_s = -float("inf")

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        """The instance chosen at the last turn of the period while it has room; the time is the snapshot's."""
        self._now_s = snapshot.taken_at_s
        return super().decide(request, snapshot, rng)

    def _rank(self, request: Request, views: Sequence[InstanceView], rng: random.Random) -> Ranked:
        del request
        used = [view.total.context_tokens / view.instance.profile.kv_tokens for view in views]
        ranked = ordered(used, views, rng)
        standing = [place for place, view in enumerate(views) if view.instance.instance_id == self._chosen]
        if standing and 0.0 <= self._now_s - self._chosen_at_s < self._period_s:
            chosen = views[standing[0]]
            return [(used[standing[0]], chosen), *(one for one in ranked if one[1] is not chosen)]
        self._chosen, self._chosen_at_s = ranked[0][1].instance.instance_id, self._now_s
        return ranked


class Dedicated(LeastInFlight):
    """Some instances serve only heavy decodes, the others only light ones; within each part the fewest in flight.

    The dedicated instances of arXiv 2408.13510. Fails whenever the mix is not that of the parts: one part queues while
    the other idles. The last ``heavy_share`` of the instances by id, at least one, serve the heavy; one instance
    alone serves all.

    Args:
        room_rule: see ``rooms.py``.
        heavy_tokens: predicted output tokens from which a decode is heavy.
        heavy_share: share of the instances that serve the heavy ones.
    """

    name = "Dedicated"

    def __init__(
        self,
        room_rule: Callable[[InstanceView], Room],
        *,
        heavy_tokens: float = HEAVY_DECODE_TOKENS,
        heavy_share: float = 0.5,
    ) -> None:
        super().__init__(room_rule)
        self._heavy_tokens = heavy_tokens
        self._heavy_share = heavy_share

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        """A decision among the instances of the request's part."""
        serving = [view for view in snapshot.views if request.model in view.instance.models]
        part = self._part(sorted(serving, key=lambda view: view.instance.instance_id), request)
        return super().decide(request, replace(snapshot, views=part), rng)

    def _part(self, views: Sequence[InstanceView], request: Request) -> tuple[InstanceView, ...]:
        if len(views) < 2:  # noqa: PLR2004 - nothing to divide
            return tuple(views)
        heavy = min(len(views) - 1, max(1, round(self._heavy_share * len(views))))
        light = len(views) - heavy
        return tuple(views[light:] if request.predicted_output_tokens >= self._heavy_tokens else views[:light])

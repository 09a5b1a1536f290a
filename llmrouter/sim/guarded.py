"""A guard as the simulator asks it: like any policy, with a count of what it did."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

    from llmrouter.domain import Decision, InstanceView, PoolSnapshot, Request, Room
    from llmrouter.routing.guard import Guard


class GuardedPolicy:
    """Decides as a router with this guard does. ``reasons`` counts fallbacks and changed answers by reason."""

    def __init__(self, guard: Guard) -> None:
        self.name = guard.primary.name
        self.reasons: Counter[str] = Counter()
        self._guard = guard

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        """The guard's decision."""
        guarded = self._guard.decide(request, snapshot, rng)
        self.reasons.update(guarded.actions)
        if guarded.fallback_reason is not None:
            self.reasons[guarded.fallback_reason] += 1
        return guarded.decision

    def room_of(self, view: InstanceView) -> Room:
        """The guard's bound."""
        return self._guard.room_of(view)

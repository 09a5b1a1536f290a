"""An instance that is new, or back, gets its share little by little: its caches are cold, and it looks idle.

For ``slow_start_s`` it is *ramping*: it takes another request only while those it has in flight are fewer than its
share of what the others have on average, and at least 1. The share grows from 0 to 1. This only puts others first:
where none of them takes a request, it gets it. Nothing ramps where fewer than half of the instances would be left to
take the load: a pool that has more than doubled needs what it got.

The instances that are there at the beginning are not new. Time is a parameter; a clock that went back ends a ramp.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

MOST_RAMPING = 0.5


class SlowStart:
    """When each instance began, of one router."""

    def __init__(self, slow_start_s: float = 0.0) -> None:
        self.slow_start_s = slow_start_s
        self._known: frozenset[str] | None = None
        self._began_at_s: dict[str, float] = {}

    @property
    def is_ramping(self) -> bool:
        """Whether any instance may be."""
        return bool(self._began_at_s)

    def follow(self, instance_ids: Collection[str], *, now_s: float) -> None:
        """These are ready now; whichever was not before begins, but for the first ones of all."""
        before, self._known = self._known, frozenset(instance_ids)
        if before:
            for new in self._known - before:
                self._began_at_s[new] = now_s
        for gone in self._began_at_s.keys() - self._known:
            del self._began_at_s[gone]

    def began(self, instance_id: str, *, now_s: float) -> None:
        """An instance that was left out gets requests again."""
        self._began_at_s[instance_id] = now_s

    def satisfied(
        self, instance_ids: Sequence[str], requests_of: Callable[[str], int], *, now_s: float
    ) -> frozenset[str]:
        """Ramping instances that have their share for now.

        Args:
            instance_ids: those of one pool that may be chosen.
            requests_of: requests in flight on an instance.
            now_s: the time.
        """
        ramping = [name for name in instance_ids if name in self._began_at_s]
        shares = {name: share for name in ramping if (share := self._share(name, now_s)) < 1.0}
        if not shares or len(shares) > MOST_RAMPING * len(instance_ids):
            return frozenset()
        warm = [requests_of(name) for name in instance_ids if name not in shares]
        mean = sum(warm) / len(warm)
        return frozenset(name for name, share in shares.items() if requests_of(name) >= max(1, math.ceil(share * mean)))

    def _share(self, instance_id: str, now_s: float) -> float:
        began_at_s = self._began_at_s.get(instance_id)
        if began_at_s is None:
            return 1.0
        since_s = now_s - began_at_s
        if self.slow_start_s <= 0.0 or not 0.0 <= since_s < self.slow_start_s:
            del self._began_at_s[instance_id]
            return 1.0
        return since_s / self.slow_start_s

"""Fairness between tenants: the virtual token counter of Sheng et al. (OSDI 2024), over held requests.

Each tenant has a counter of the weighted tokens it was served: prompt tokens once, predicted output tokens twice, over
its weight. The tenant with the least counter has the next turn. A tenant that comes back to the queue is lifted to the
least counter of those that have held requests there, or where there are none to that of the one who was served last, so
that absence earns no credit.

The paper charges each generated token as it comes; here the predicted ones are charged with the dispatch and settled
when the answer has ended: who causes longer answers than were predicted pays for them, whoever causes shorter ones gets
the difference back. Counters are each router's own, per model.

The formulas are numbers only: the router calls them as they stand, the simulator compiles them.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PROMPT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0
"""What a prompt token and an output token count; the paper's example, after what they are sold for."""

DEFAULT_WEIGHT = 1.0
LEAST_WEIGHT = 0.001
MOST_WEIGHT = 1000.0

_MOST_STALE = 64
"""Filed counters that have changed since are cleared out once they are so many and half of all."""


def charged(served: float, prompt_tokens: float, predicted_output_tokens: float, weight: float) -> float:
    """A tenant's counter after one more dispatch."""
    return served + (PROMPT_WEIGHT * prompt_tokens + OUTPUT_WEIGHT * predicted_output_tokens) / weight


def settled(served: float, predicted_output_tokens: float, output_tokens: float, weight: float) -> float:
    """A tenant's counter once an answer has ended that was charged as predicted; at least 0."""
    return max(0.0, served + OUTPUT_WEIGHT * (output_tokens - predicted_output_tokens) / weight)


def lifted(served: float, least_active: float) -> float:
    """The counter of a tenant that comes back, no lower than the least active one."""
    return max(served, least_active)


def may_join(held_by_tenant: int, held: int, max_held: int) -> bool:
    """Whether a tenant may have one more request held: while it holds fewer than there are free places.

    Alone a tenant can hold half of the queue, two that send everything a third each: a place is left for the next one.
    """
    return held_by_tenant < max_held - held


class TokenCounters:
    """The counters of one line: who was served how much, and who has held requests.

    At most ``max_tenants`` are remembered beside those that have held requests: first those that a lift would bring to
    the same counter anyway are forgotten, then the least served.
    """

    def __init__(self, weights: Mapping[str, float], *, max_tenants: int = 10_000) -> None:
        self._weights = weights
        self._max_tenants = max_tenants
        self._served: dict[str, float] = {}
        self._held: dict[str, int] = {}
        self._served_last = 0.0
        self._active: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._served)

    def served(self, tenant: str) -> float:
        """Weighted tokens, as lifted."""
        return self._served.get(tenant, 0.0)

    def held_by(self, tenant: str) -> int:
        """How many requests of a tenant are held."""
        return self._held.get(tenant, 0)

    def came(self, tenant: str) -> None:
        """A request of a tenant is held from now on."""
        if tenant not in self._held:
            self._set(tenant, lifted(self.served(tenant), self._floor()))
            heapq.heappush(self._active, (self._served[tenant], tenant))
            if len(self._served) > self._max_tenants + len(self._held):
                self._forget()
        self._held[tenant] = self.held_by(tenant) + 1

    def left(self, tenant: str) -> None:
        """A held request of a tenant has left, served or not."""
        self._served_last = self.served(tenant)
        if self._held[tenant] == 1:
            del self._held[tenant]
        else:
            self._held[tenant] -= 1

    def pass_by(self, tenant: str, prompt_tokens: float, predicted_output_tokens: float) -> None:
        """A request of a tenant is served without being held: as if it came, were charged for and left."""
        if tenant in self._held:
            self.charge(tenant, prompt_tokens, predicted_output_tokens)
            self._served_last = self.served(tenant)
            return
        weight = self._weights.get(tenant, DEFAULT_WEIGHT)
        served = lifted(self.served(tenant), self._floor())
        self._served[tenant] = self._served_last = charged(served, prompt_tokens, predicted_output_tokens, weight)
        if len(self._served) > self._max_tenants + len(self._held):
            self._forget()

    def charge(self, tenant: str, prompt_tokens: float, predicted_output_tokens: float) -> None:
        """A request of a tenant is served."""
        weight = self._weights.get(tenant, DEFAULT_WEIGHT)
        self._set(tenant, charged(self.served(tenant), prompt_tokens, predicted_output_tokens, weight))

    def settle(self, tenant: str, predicted_output_tokens: float, output_tokens: float) -> None:
        """An answer has ended that was charged as predicted; nothing where the tenant is forgotten."""
        if tenant in self._served:
            weight = self._weights.get(tenant, DEFAULT_WEIGHT)
            self._set(tenant, settled(self.served(tenant), predicted_output_tokens, output_tokens, weight))

    def reweigh(self, weights: Mapping[str, float]) -> None:
        """Other weights, from the next charge on."""
        self._weights = weights

    def _set(self, tenant: str, served: float) -> None:
        """Another counter; of a tenant with held requests also among those that ``_floor`` looks through."""
        self._served[tenant] = served
        if tenant in self._held:
            heapq.heappush(self._active, (served, tenant))
            if len(self._active) > 2 * len(self._held) + _MOST_STALE:
                self._active = [(self._served[name], name) for name in self._held]
                heapq.heapify(self._active)

    def _floor(self) -> float:
        """The least counter of those with held requests, or of the one that was served last."""
        while self._active:
            served, tenant = self._active[0]
            if tenant in self._held and served == self._served[tenant]:
                return served
            heapq.heappop(self._active)
        return self._served_last

    def _forget(self) -> None:
        floor = self._floor()
        ahead = sorted((served, name) for name, served in self._served.items() if name not in self._held)
        kept = [(served, name) for served, name in ahead if served > floor][-self._max_tenants // 2 :]
        self._served = {name: self._served[name] for name in self._held} | {name: served for served, name in kept}

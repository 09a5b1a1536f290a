"""One line of held requests: who goes first, found without a look at all of them.

The line answers what ``orders.py`` and ``fairness.py`` define: the highest priority; in it the tenant that was served
least (of equal ones the one whose oldest request came first), where fairness counts; and of that tenant's requests, or
of all, the one with the least key, of equal ones the one that came first.

With n requests held by t tenants in p priorities, ``add``, ``remove`` and ``best`` take O(log n + log t + p): keys that
stand once made lie in heaps, those of ModifiedDueDate in two, before and after a request is late. Under
HighestResponseRatio the order changes with every instant: ``best`` computes the n ratios of the tenant whose turn it is
as one array.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmrouter.routing.fairness import TokenCounters
from llmrouter.routing.groups import Level
from llmrouter.routing.held import GONE, WAITING, Held, QueueRules, least_work_s
from llmrouter.routing.orders import Order, bounded_size, due_at_s

if TYPE_CHECKING:
    from llmrouter.domain import Request

__all__ = ["Held", "HeldLine", "QueueRules", "least_work_s"]


class HeldLine:
    """Held requests of one model. Time is a parameter and should not run backwards."""

    def __init__(self, rules: QueueRules) -> None:
        self._rules = rules
        self._counters = TokenCounters(rules.weights)
        self._held: dict[int, Held] = {}
        self._levels: dict[int, Level] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._held)

    def held_by(self, tenant: str) -> int:
        """How many requests a tenant has here."""
        return self._counters.held_by(tenant)

    def served(self, tenant: str) -> float:
        """A tenant's counter."""
        return self._counters.served(tenant)

    def add(self, request: Request, work_s: float) -> Held:
        """Files a request; its work as of ``least_work_s``."""
        held = Held(self._next, request, bounded_size(work_s))
        self._next += 1
        self._held[held.number] = held
        self._counters.came(request.tenant)
        self._file(held)
        return held

    def remove(self, held: Held) -> None:
        """Takes a request out, served or not."""
        del self._held[held.number]
        held.stage = GONE
        self._counters.left(held.request.tenant)
        level = self._levels[held.request.priority]
        level.forget(held)
        if not level.groups:
            del self._levels[held.request.priority]

    def charge(self, request: Request) -> None:
        """Charges a request's tenant for its dispatch."""
        self._counters.charge(request.tenant, request.prompt_tokens, request.predicted_output_tokens)
        for level in self._levels.values():
            level.refresh(request.tenant)

    def pass_by(self, request: Request) -> None:
        """A request was dispatched without being held: its tenant pays as if it had come and gone."""
        self._counters.came(request.tenant)
        self.charge(request)
        self._counters.left(request.tenant)

    def best(self, now_s: float) -> Held | None:
        """Who goes first now; ``None`` in an empty line."""
        if not self._held:
            return None
        return self._levels[max(self._levels)].best(now_s)

    def goes_before(self, held: Held, other: Held, now_s: float) -> bool:
        """Whether one would go before another that came earlier."""
        mine, theirs = held.request, other.request
        if mine.priority != theirs.priority:
            return mine.priority > theirs.priority
        if self._rules.fair and mine.tenant != theirs.tenant:
            return self.served(mine.tenant) < self.served(theirs.tenant)
        return held.key(self._rules, now_s) < other.key(self._rules, now_s)

    def follow(self, rules: QueueRules) -> None:
        """Other rules, for those that are held as well; counters stay."""
        if rules == self._rules:
            return
        self._rules = rules
        self._counters.reweigh(rules.weights)
        self._levels.clear()
        for held in self._held.values():
            self._file(held)

    def _file(self, held: Held) -> None:
        rules, request = self._rules, held.request
        held.stage = WAITING
        held.size = held.work_s
        if rules.order is Order.PREDICTED_RANK:
            rank = request.predicted_rank
            held.size = bounded_size(rank if rank is not None and rank > 0 else request.predicted_output_tokens)
        deadline_s = np.inf if request.deadline_at_s is None else request.deadline_at_s
        held.due_at_s = due_at_s(deadline_s, request.arrived_at_s, held.size, rules.aging_s)
        level = self._levels.get(request.priority)
        if level is None:
            level = self._levels[request.priority] = Level(rules, self._counters)
        level.add(held)

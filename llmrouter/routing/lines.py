"""One line of held requests: who goes first, found without a look at all of them.

The line answers what ``orders.py``, ``fairness.py`` and ``batch.py`` define: the batch request whose turn it is; else
the highest standing; in it the tenant that was served least (of equal ones the one whose oldest request came first),
where fairness counts; and of that tenant's requests, or of all, the nearest kin in the batch class, else the one with
the least key, of equal ones the one that came first.

With n requests held by t tenants in p standings, ``add``, ``remove`` and ``best`` take O(log n + log t + p): keys that
stand once made lie in heaps, those of ModifiedDueDate in two, before and after a request is late. Under
HighestResponseRatio the order changes with every instant: ``best`` computes the n ratios of the tenant whose turn it is
as one array.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmrouter.routing.batch import Kinship, has_turn
from llmrouter.routing.fairness import TokenCounters
from llmrouter.routing.groups import ByAge, Level
from llmrouter.routing.held import GONE, WAITING, Held, QueueRules, least_work_s
from llmrouter.routing.orders import Order, bounded_size, due_at_s

if TYPE_CHECKING:
    from llmrouter.domain import Request
    from llmrouter.routing.claims import Claim

__all__ = ["Held", "HeldLine", "QueueRules", "least_work_s"]


class HeldLine:
    """Held requests of one model. Time is a parameter and should not run backwards."""

    def __init__(self, rules: QueueRules) -> None:
        self._rules = rules
        self._counters = TokenCounters(rules.weights)
        self._held: dict[int, Held] = {}
        self._levels: dict[int, Level] = {}
        self._next = 0
        self._kinship = Kinship()
        self._batch = ByAge()
        self._batch_held = 0
        self._since_batch = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def batch_held(self) -> int:
        """How many of them are of the batch class."""
        return self._batch_held

    @property
    def weighs_work(self) -> bool:
        """Whether the order looks at the work that a request is."""
        return self._rules.order is not Order.FIRST_COME_FIRST_SERVED

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
        if request.batch:
            self._batch_held += 1
            self._batch.push(held.number, held)
        return held

    def remove(self, held: Held) -> None:
        """Takes a request out, served or not."""
        del self._held[held.number]
        held.stage = GONE
        self._counters.left(held.request.tenant)
        self._batch_held -= held.request.batch
        level = self._levels[held.standing]
        level.forget(held)
        if not level.groups:
            del self._levels[held.standing]

    def charge(self, request: Request) -> None:
        """A request is dispatched: its tenant is charged, and of a batch request is noted what it begins with."""
        self._counters.charge(request.tenant, request.prompt_tokens, request.predicted_output_tokens)
        self._charged(request)

    def _charged(self, request: Request) -> None:
        self._refresh(request.tenant)
        if request.batch:
            self._since_batch = 0
            self._kinship.dispatched(request.prefix_hashes)
        else:
            self._since_batch += 1

    def settle(self, tenant: str, predicted_output_tokens: float, output_tokens: float) -> None:
        """An answer has ended: its tenant, charged as predicted, pays for what there was."""
        self._counters.settle(tenant, predicted_output_tokens, output_tokens)
        self._refresh(tenant)

    def pass_by(self, request: Request) -> None:
        """A request was dispatched without being held: its tenant pays as if it had come and gone."""
        self._counters.pass_by(request.tenant, request.prompt_tokens, request.predicted_output_tokens)
        self._charged(request)

    def best(self, now_s: float) -> Held | None:
        """Who goes first now; ``None`` in an empty line."""
        if not self._held:
            return None
        return self._whose_turn(now_s) or self._levels[max(self._levels)].best(now_s)

    def fills_gap(self, held: Held, now_s: float) -> bool:
        """Whether a request may go only where it leaves head-room: of the batch class, and it has not its turn."""
        return held.request.batch and self._whose_turn(now_s) is not held

    def claim(self, held: Held, now_s: float) -> Claim:
        """What other routers are told of a request that goes first."""
        return held.claim(self._rules, now_s)

    def claim_of(self, request: Request, work_s: float, now_s: float) -> Claim:
        """What they would be told of one that is not held; its work as of ``least_work_s``."""
        return self._sized(Held(-1, request, bounded_size(work_s))).claim(self._rules, now_s)

    def goes_before(self, held: Held, other: Held, now_s: float) -> bool:
        """Whether one would go before another that came earlier."""
        mine, theirs = held.request, other.request
        if held.standing != other.standing:
            return held.standing > other.standing
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

    def _whose_turn(self, now_s: float) -> Held | None:
        """The oldest batch request, where it has waited for so long that it goes first."""
        oldest, rules = self._batch.first(), self._rules.batch
        if oldest is None:
            return None
        waited_s = now_s - oldest.request.arrived_at_s
        return oldest if has_turn(waited_s, rules.patience_s, self._since_batch, rules.least_share) else None

    def _refresh(self, tenant: str) -> None:
        for level in self._levels.values():
            level.refresh(tenant)

    def _sized(self, held: Held) -> Held:
        """Notes what the order weighs."""
        rules, request = self._rules, held.request
        held.size = held.work_s
        if rules.order is Order.PREDICTED_RANK:
            rank = request.predicted_rank
            held.size = bounded_size(rank if rank is not None and rank > 0 else request.predicted_output_tokens)
        deadline_s = np.inf if request.deadline_at_s is None else request.deadline_at_s
        held.due_at_s = due_at_s(deadline_s, request.arrived_at_s, held.size, rules.aging_s)
        return held

    def _file(self, held: Held) -> None:
        rules, request = self._rules, self._sized(held).request
        held.stage = WAITING
        level = self._levels.get(held.standing)
        if level is None:
            kinship = self._kinship if request.batch else None
            level = self._levels[held.standing] = Level(rules, self._counters, kinship)
        level.add(held)

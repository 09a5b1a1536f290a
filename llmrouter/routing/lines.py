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

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llmrouter.routing.fairness import TokenCounters
from llmrouter.routing.features import profile_features
from llmrouter.routing.orders import (
    DEFAULT_AGING_S,
    Order,
    aged_size,
    bounded_size,
    due_at_s,
    latest_start_s,
    order_key,
    response_key,
)
from llmrouter.routing.rules import own_latency

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from llmrouter.domain import EngineProfile, Request

_WAITING, _LATE, _GONE = 0, 1, 2
_MOST_DEAD = 64
"""Entries of requests that have left are cleared out once they are so many and half of a heap."""


@dataclass(frozen=True, slots=True)
class QueueRules:
    """What decides who goes first: an order and its aging time, and whether tenants take turns by their weights."""

    order: Order = Order.FIRST_COME_FIRST_SERVED
    aging_s: float = DEFAULT_AGING_S
    fair: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Held:
    """A held request in its line. ``number`` counts up; ``work_s`` is the time it would take alone."""

    number: int
    request: Request
    work_s: float
    size: float = 0.0
    due_at_s: float = 0.0
    stage: int = _WAITING

    @property
    def latest_start_s(self) -> float:
        """When it is late from."""
        return latest_start_s(self.request.arrived_at_s, self.size, self.due_at_s)

    def key(self, rules: QueueRules, now_s: float) -> float:
        """Its key at an instant."""
        return order_key(rules.order, now_s, self.request.arrived_at_s, self.size, self.due_at_s, rules.aging_s)


def least_work_s(request: Request, profiles: Iterable[EngineProfile]) -> float:
    """Seconds that a request would take alone on the fastest of these engines; infinite without any."""
    asked = (0.0, 0.0, 0.0, 0.0, request.prompt_tokens, request.predicted_output_tokens)
    return min((own_latency((*asked, *profile_features(one))) for one in profiles), default=np.inf)


class HeldLine:
    """Held requests of one model. Time is a parameter and should not run backwards."""

    def __init__(self, rules: QueueRules) -> None:
        self._rules = rules
        self._counters = TokenCounters(rules.weights)
        self._held: dict[int, Held] = {}
        self._classes: dict[int, _Class] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        """In the order of arrival."""
        return iter(self._held.values())

    @property
    def rules(self) -> QueueRules:
        """What it goes by."""
        return self._rules

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
        held.stage = _GONE
        self._counters.left(held.request.tenant)
        level = self._classes[held.request.priority]
        level.forget(held)
        if not level.groups:
            del self._classes[held.request.priority]

    def charge(self, request: Request) -> None:
        """Charges a request's tenant for its dispatch."""
        self._counters.charge(request.tenant, request.prompt_tokens, request.predicted_output_tokens)
        for level in self._classes.values():
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
        return self._classes[max(self._classes)].best(now_s)

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
        self._classes.clear()
        for held in self._held.values():
            self._file(held)

    def _file(self, held: Held) -> None:
        rules, request = self._rules, held.request
        held.stage = _WAITING
        held.size = held.work_s
        if rules.order is Order.PREDICTED_RANK:
            rank = request.predicted_rank
            held.size = bounded_size(rank if rank is not None and rank > 0 else request.predicted_output_tokens)
        deadline_s = np.inf if request.deadline_at_s is None else request.deadline_at_s
        held.due_at_s = due_at_s(deadline_s, request.arrived_at_s, held.size, rules.aging_s)
        level = self._classes.get(request.priority)
        if level is None:
            level = self._classes[request.priority] = _Class(rules, self._counters)
        level.add(held)


class _Class:
    """Held requests of one priority: groups that take turns, or one."""

    def __init__(self, rules: QueueRules, counters: TokenCounters) -> None:
        self._rules = rules
        self._counters = counters
        self._turns: list[tuple[float, int, str]] = []
        self.groups: dict[str, _Group] = {}

    def add(self, held: Held) -> None:
        name = self._name(held)
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = _Group(self._rules)
        group.add(held)
        if len(group) == 1:
            self.refresh(name)

    def forget(self, held: Held) -> None:
        """``held`` is gone already."""
        name = self._name(held)
        group = self.groups[name]
        group.forget()
        if len(group) == 0:
            del self.groups[name]
        else:
            self.refresh(name)

    def refresh(self, tenant: str) -> None:
        """Files a tenant's turn anew, if it is another."""
        group = self.groups.get(tenant)
        if group is None or not self._rules.fair:
            return
        turn = (self._counters.served(tenant), group.oldest(), tenant)
        if turn != group.turn:
            group.turn = turn
            heapq.heappush(self._turns, turn)
            if len(self._turns) > 2 * len(self.groups) + _MOST_DEAD:
                self._turns = [one.turn for one in self.groups.values()]
                heapq.heapify(self._turns)

    def best(self, now_s: float) -> Held:
        if not self._rules.fair:
            return self.groups[""].best(now_s)
        while True:
            turn = self._turns[0]
            group = self.groups.get(turn[2])
            if group is not None and group.turn == turn:
                return group.best(now_s)
            heapq.heappop(self._turns)

    def _name(self, held: Held) -> str:
        return held.request.tenant if self._rules.fair else ""


class _Searched(Protocol):
    """Held requests of one group, searched by one order."""

    def add(self, held: Held) -> None: ...

    def best(self, now_s: float) -> Held: ...


class _Group:
    """Requests that are told apart by their keys alone."""

    def __init__(self, rules: QueueRules) -> None:
        self._searched: _Searched
        if rules.order is Order.HIGHEST_RESPONSE_RATIO:
            self._searched = _Ratios()
        elif rules.order is Order.MODIFIED_DUE_DATE:
            self._searched = _DueDates(rules)
        else:
            self._searched = _Keys(rules)
        self._by_age = _Heap(_WAITING, _LATE)
        self._size = 0
        self.turn: tuple[float, int, str] = (-1.0, -1, "")

    def __len__(self) -> int:
        return self._size

    def add(self, held: Held) -> None:
        self._size += 1
        self._by_age.push(float(held.number), held)
        self._searched.add(held)

    def forget(self) -> None:
        """One of them is gone."""
        self._size -= 1

    def oldest(self) -> int:
        """The number of the one that came first."""
        first = self._by_age.first()
        return first.number if first is not None else -1

    def best(self, now_s: float) -> Held:
        return self._searched.best(now_s)


class _Heap:
    """Held requests by a key that stands; who is in none of its stages any more is dropped on the way."""

    def __init__(self, *stages: int) -> None:
        self._stages = stages
        self._entries: list[tuple[float, int, Held]] = []
        self._clear_at = _MOST_DEAD

    def push(self, key: float, held: Held) -> None:
        heapq.heappush(self._entries, (key, held.number, held))
        if len(self._entries) > self._clear_at:
            self._entries = [entry for entry in self._entries if entry[2].stage in self._stages]
            heapq.heapify(self._entries)
            self._clear_at = 2 * len(self._entries) + _MOST_DEAD

    def first(self) -> Held | None:
        while self._entries:
            held = self._entries[0][2]
            if held.stage in self._stages:
                return held
            heapq.heappop(self._entries)
        return None


class _Keys:
    """Orders whose keys stand once made."""

    def __init__(self, rules: QueueRules) -> None:
        self._rules = rules
        self._heap = _Heap(_WAITING)

    def add(self, held: Held) -> None:
        self._heap.push(held.key(self._rules, held.request.arrived_at_s), held)

    def best(self, now_s: float) -> Held:
        del now_s
        return _some(self._heap.first())


class _DueDates:
    """ModifiedDueDate: those that are in time by their due dates, late ones by their aged work."""

    def __init__(self, rules: QueueRules) -> None:
        self._rules = rules
        self._in_time = _Heap(_WAITING)
        self._by_start = _Heap(_WAITING)
        self._late = _Heap(_LATE)

    def add(self, held: Held) -> None:
        self._in_time.push(held.due_at_s, held)
        self._by_start.push(held.latest_start_s, held)

    def best(self, now_s: float) -> Held:
        while (held := self._by_start.first()) is not None and now_s >= held.latest_start_s:
            held.stage = _LATE
            self._late.push(aged_size(held.size, held.latest_start_s, self._rules.aging_s), held)
        late, in_time = self._late.first(), self._in_time.first()
        if late is None or in_time is None:
            return _some(late or in_time)
        keys = (late.key(self._rules, now_s), late.number), (in_time.key(self._rules, now_s), in_time.number)
        return late if keys[0] < keys[1] else in_time


class _Ratios:
    """HighestResponseRatio: arrivals and sizes as arrays, those of who has left cleared out as they grow."""

    def __init__(self) -> None:
        self._held: list[Held] = []
        self._rows: Any = np.zeros((2, _MOST_DEAD))

    def add(self, held: Held) -> None:
        count = len(self._held)
        if count == self._rows.shape[1]:
            self._held = [one for one in self._held if one.stage != _GONE]
            count = len(self._held)
            self._rows = np.zeros((2, 2 * count + _MOST_DEAD))
            self._rows[0, :count] = [one.request.arrived_at_s for one in self._held]
            self._rows[1, :count] = [one.size for one in self._held]
        self._held.append(held)
        self._rows[:, count] = held.request.arrived_at_s, held.size

    def best(self, now_s: float) -> Held:
        arrived_s, sizes = self._rows[:, : len(self._held)]
        while True:
            place = int(np.argmin(response_key(now_s, arrived_s, sizes)))
            if self._held[place].stage != _GONE:
                return self._held[place]
            arrived_s[place] = np.inf


def _some(held: Held | None) -> Held:
    if held is None:
        raise RuntimeError("a group of held requests is empty")
    return held

"""Held requests of one standing, found by their keys: heaps where keys stand once made, arrays where they do not."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llmrouter.routing.batch import marks
from llmrouter.routing.held import GONE, LATE, WAITING
from llmrouter.routing.orders import Order, aged_size, response_key

if TYPE_CHECKING:
    from llmrouter.routing.batch import Kinship
    from llmrouter.routing.fairness import TokenCounters
    from llmrouter.routing.held import Held, QueueRules

_MOST_DEAD = 64
"""Entries of requests that have left are cleared out once they are so many and half of a heap."""


class Level:
    """Held requests of one standing: groups that take turns, or one. ``kinship`` is that of the batch class."""

    def __init__(self, rules: QueueRules, counters: TokenCounters, kinship: Kinship | None = None) -> None:
        self._rules = rules
        self._counters = counters
        self._kinship = kinship
        self._turns: list[tuple[float, int, str]] = []
        self.groups: dict[str, _Group] = {}

    def add(self, held: Held) -> None:
        """Files a request of this standing."""
        name = self._name(held)
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = _Group(self._rules, self._kinship)
        group.add(held)
        if len(group) == 1:
            self.refresh(name)

    def forget(self, held: Held) -> None:
        """Drops a request whose stage says already that it is gone."""
        name = self._name(held)
        group = self.groups[name]
        group.forget(held)
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
        """Who goes first now; there must be somebody."""
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

    def forget(self, held: Held) -> None: ...


class _Group:
    """Requests that are told apart by their keys alone."""

    def __init__(self, rules: QueueRules, kinship: Kinship | None) -> None:
        self._searched: _Searched
        if kinship is not None:
            self._searched = _Kin(rules, kinship) if rules.batch.grouped else _Keys(rules)
        elif rules.order is Order.HIGHEST_RESPONSE_RATIO:
            self._searched = _Ratios()
        elif rules.order is Order.MODIFIED_DUE_DATE:
            self._searched = _DueDates(rules)
        else:
            self._searched = _Keys(rules)
        self._by_age = ByAge()
        self._size = 0
        self.turn: tuple[float, int, str] = (-1.0, -1, "")

    def __len__(self) -> int:
        return self._size

    def add(self, held: Held) -> None:
        self._size += 1
        self._by_age.push(float(held.number), held)
        self._searched.add(held)

    def forget(self, held: Held) -> None:
        """One of them is gone."""
        self._size -= 1
        self._searched.forget(held)

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


class _Lazy:
    """Who is gone is dropped when it is met."""

    def forget(self, held: Held) -> None:
        """Nothing to do now."""


class ByAge(_Heap):
    """Held requests by their numbers, whatever their stage."""

    def __init__(self) -> None:
        super().__init__(WAITING, LATE)


class _Keys(_Lazy):
    """Orders whose keys stand once made."""

    def __init__(self, rules: QueueRules) -> None:
        self._rules = rules
        self._heap = _Heap(WAITING)

    def add(self, held: Held) -> None:
        self._heap.push(held.key(self._rules, held.request.arrived_at_s), held)

    def best(self, now_s: float) -> Held:
        del now_s
        return _some(self._heap.first())


class _Kin:
    """The batch class: the nearest kin of whoever was dispatched last, else whoever came first.

    ``_by_mark`` has for every mark of a held prompt those that have it, and how many they are.
    """

    def __init__(self, rules: QueueRules, kinship: Kinship) -> None:
        self._kinship = kinship
        self._keys = _Keys(rules)
        self._by_mark: dict[int, tuple[_Heap, list[int]]] = {}

    def add(self, held: Held) -> None:
        self._keys.add(held)
        for mark in marks(held.request.prefix_hashes):
            heap, count = self._by_mark.setdefault(mark, (_Heap(WAITING), [0]))
            heap.push(held.request.arrived_at_s, held)
            count[0] += 1

    def forget(self, held: Held) -> None:
        for mark in marks(held.request.prefix_hashes):
            _, count = self._by_mark[mark]
            count[0] -= 1
            if count[0] == 0:
                del self._by_mark[mark]

    def best(self, now_s: float) -> Held:
        for mark in self._kinship.nearest():
            if mark in self._by_mark:
                return _some(self._by_mark[mark][0].first())
        return self._keys.best(now_s)


class _DueDates(_Lazy):
    """ModifiedDueDate: those that are in time by their due dates, late ones by their aged work."""

    def __init__(self, rules: QueueRules) -> None:
        self._rules = rules
        self._in_time = _Heap(WAITING)
        self._by_start = _Heap(WAITING)
        self._late = _Heap(LATE)

    def add(self, held: Held) -> None:
        self._in_time.push(held.due_at_s, held)
        self._by_start.push(held.latest_start_s, held)

    def best(self, now_s: float) -> Held:
        while (held := self._by_start.first()) is not None and now_s >= held.latest_start_s:
            held.stage = LATE
            self._late.push(aged_size(held.size, held.latest_start_s, self._rules.aging_s), held)
        late, in_time = self._late.first(), self._in_time.first()
        if late is None or in_time is None:
            return _some(late or in_time)
        keys = (late.key(self._rules, now_s), late.number), (in_time.key(self._rules, now_s), in_time.number)
        return late if keys[0] < keys[1] else in_time


class _Ratios(_Lazy):
    """HighestResponseRatio: arrivals and sizes as arrays, those of who has left cleared out as they grow."""

    def __init__(self) -> None:
        self._held: list[Held] = []
        self._rows: Any = np.zeros((2, _MOST_DEAD))

    def add(self, held: Held) -> None:
        count = len(self._held)
        if count == self._rows.shape[1]:
            self._held = [one for one in self._held if one.stage != GONE]
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
            if self._held[place].stage != GONE:
                return self._held[place]
            arrived_s[place] = np.inf


def _some(held: Held | None) -> Held:
    if held is None:
        raise RuntimeError("a group of held requests is empty")
    return held

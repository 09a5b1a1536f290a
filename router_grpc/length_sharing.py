"""Tells other routers what was learned of output lengths here, and learns what they tell."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

import numpy as np

from llmrouter.errors import InvalidInputError, LedgerUnavailableError
from llmrouter.lengths.bins import BINS
from llmrouter.lengths.sketches import Counts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.metrics import RouterMetrics
    from router_grpc.ports import LengthExchange

    Floats = NDArray[np.float64]
    LengthCounts = tuple[Counts, Counts]

SAVE_EVERY_S = 30.0
GIVE_UP_AFTER_S = 3_600.0
"""An entry that may or may not have reached the others is not repeated for longer: they forget who sent it."""

MAX_WAITING_KEYS = 4_096
MAX_WAITING_COUNTS = 10_000.0
"""Of one key: more than this many answers say nothing new, since old ones fade."""


class LengthLearner(Protocol):
    """What learns lengths here: ``OnlineQuantiles(shared=True)``, wherever it runs."""

    async def delta(self) -> LengthCounts:
        """What was learned here since the last call."""
        ...

    async def merge(self, counts: Sequence[LengthCounts]) -> None:
        """Adds what others learned, in this order; raises InvalidInputError as ``OnlineQuantiles.merge`` does."""
        ...

    async def counts(self) -> LengthCounts:
        """All that is known, merged or learned."""
        ...


class LengthSharing:
    """Steps of sharing, to be taken about once a second; one object, one exchange and one learner for each router.

    No answer is counted twice. What is published is kept until it has arrived, as one entry that others receive once;
    what is learned meanwhile waits, in bounded room, and what has no room is counted as dropped. Of a snapshot only
    that is merged which exceeds what is known here, bin by bin: where the two overlap, as after a long absence, a bin
    ends with the larger count at most, never with the sum.
    """

    def __init__(self, exchange: LengthExchange, learner: LengthLearner, *, metrics: RouterMetrics) -> None:
        self._exchange = exchange
        self._learner = learner
        self._events = metrics.lengths.exchange
        self._dropped = metrics.lengths.exchange_dropped_counts
        self._waiting = _Waiting()
        self._sending: LengthCounts | None = None
        self._sending_since_s = 0.0
        self._save_at_s: float | None = None
        self._turn = asyncio.Lock()

    async def step(self, now_s: float) -> None:
        """Receives, publishes, and every 30 s saves a snapshot; where the others cannot be reached, the next step does.

        A step that is asked for while another is under way waits for it.

        Args:
            now_s: seconds, never going back.
        """
        async with self._turn:
            try:
                await self._step(now_s)
            except LedgerUnavailableError:
                self._count("Unavailable")
                await self._gather()

    async def _step(self, now_s: float) -> None:
        if self._save_at_s is None:
            self._save_at_s = now_s + SAVE_EVERY_S
        await self._hear()
        await self._tell(now_s)
        if now_s >= self._save_at_s:
            await self._save(now_s)

    async def _hear(self) -> None:
        heard = await self._exchange.receive()
        self._count("Missed", heard.missed)
        self._count("Refused", heard.refused)
        if heard.snapshot is not None:
            excess = await asyncio.to_thread(beyond, heard.snapshot, await self._learner.counts())
            await self._merge([excess], "SnapshotMerged")
        if heard.entries:
            await self._merge(heard.entries, "Merged")

    async def _merge(self, counts: Sequence[LengthCounts], event: str) -> None:
        try:
            await self._learner.merge(counts)
            self._count(event, len(counts))
        except InvalidInputError:
            self._count("Refused", len(counts))

    async def _tell(self, now_s: float) -> None:
        """Publishes all that was learned until now; where nothing waits, as the learner gave it."""
        if self._sending is None and not self._waiting:
            delta = await self._learner.delta()
            if any(one.keys for one in delta):
                self._sending, self._sending_since_s = delta, now_s
        else:
            await self._gather()
        while self._sending is not None or self._waiting:
            if self._sending is None:
                self._sending, self._sending_since_s = self._waiting.take(), now_s
            elif now_s - self._sending_since_s > GIVE_UP_AFTER_S:
                self._drop_sending()
                continue
            try:
                await self._exchange.publish(self._sending)
            except InvalidInputError:
                self._drop_sending()
                self._count("Refused")
            else:
                self._sending = None
                self._count("Published")

    async def _save(self, now_s: float) -> None:
        """Counts first, then all that they hold is published, then they are saved: newcomers are told nothing twice."""
        counts = await self._learner.counts()
        await self._tell(now_s)
        self._save_at_s = now_s + SAVE_EVERY_S
        try:
            if await self._exchange.save(counts):
                self._count("SnapshotSaved")
        except InvalidInputError:
            self._count("Refused")

    async def _gather(self) -> None:
        self._dropped.inc(self._waiting.add(await self._learner.delta()))

    def _drop_sending(self) -> None:
        if self._sending is not None:
            self._dropped.inc(sum(float(one.counts.sum()) for one in self._sending))
        self._sending = None

    def _count(self, event: str, number: int = 1) -> None:
        if number:
            self._events.labels(event).inc(number)


def beyond(counts: LengthCounts, known: LengthCounts) -> LengthCounts:
    """What ``counts`` exceed ``known`` by, bin by bin; merged into what is known, no bin exceeds the larger one."""
    everything, groups = (_excess(one, other) for one, other in zip(counts, known, strict=True))
    return everything, groups


def _excess(counts: Counts, known: Counts) -> Counts:
    rows = dict(zip(known.keys, range(len(known.keys)), strict=True))
    shared = [(place, rows[key]) for place, key in enumerate(counts.keys) if key in rows]
    excess_KB = counts.counts.copy()
    if shared:
        places, others = (list(column) for column in zip(*shared, strict=True))
        excess_KB[places] = np.maximum(excess_KB[places] - known.counts[others], 0.0)
    return Counts(counts.keys, excess_KB)


class _Waiting:
    """Counts that are still to be published, added up by key; those longest not added to give way."""

    def __init__(self) -> None:
        self._parts: tuple[OrderedDict[str, Floats], OrderedDict[str, Floats]] = (OrderedDict(), OrderedDict())

    def __bool__(self) -> bool:
        return any(self._parts)

    def add(self, delta: LengthCounts) -> float:
        """Returns how many counts had no room."""
        return sum(_add(part, counts) for part, counts in zip(self._parts, delta, strict=True))

    def take(self) -> LengthCounts:
        everything, groups = (
            Counts(tuple(part), np.array(list(part.values())).reshape(-1, BINS)) for part in self._parts
        )
        self._parts = (OrderedDict(), OrderedDict())
        return everything, groups


def _add(part: OrderedDict[str, Floats], counts: Counts) -> float:
    dropped = 0.0
    for key, row_B in zip(counts.keys, counts.counts, strict=True):
        old_B = part.pop(key, None)
        sum_B = row_B if old_B is None else old_B + row_B
        total = float(sum_B.sum())
        if total > MAX_WAITING_COUNTS:
            dropped += total - MAX_WAITING_COUNTS
            sum_B = sum_B * (MAX_WAITING_COUNTS / total)
        part[key] = sum_B
        if len(part) > MAX_WAITING_KEYS:
            _, gone_B = part.popitem(last=False)
            dropped += float(gone_B.sum())
    return dropped

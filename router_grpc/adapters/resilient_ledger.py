"""The shared ledger with a mirror to fall back on: a router keeps serving while Redis is away, and repairs it after."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from llmrouter.errors import LedgerUnavailableError
from router_grpc.ports import NO_CLAIMS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from llmrouter.domain import Load, Reservation
    from llmrouter.routing.claims import Claim
    from router_grpc.adapters.memory_ledger import MemoryLedger
    from router_grpc.ports import Ledger, ReserveAsk, ReserveResult

T = TypeVar("T")

MAX_DOUBTS = 5
"""Heartbeats in a row whose count may differ by no more than the calls under way before the difference is looked at."""

MAX_OWED = 10_000
"""Releases of other routers' reservations that are kept for when the shared ledger is back; the oldest go first."""


class _Gate:
    """Lets calls pass side by side, and now and then one section alone."""

    def __init__(self) -> None:
        self.passing = 0
        self.passed = 0
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def through(self) -> AsyncIterator[None]:
        while not self._open.is_set():
            await self._open.wait()
        self.passing += 1
        self.passed += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.passing -= 1
            if self.passing == 0:
                self._empty.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Holds new calls back and waits for those under way; not reentrant."""
        while not self._open.is_set():
            await self._open.wait()
        self._open.clear()
        try:
            await self._empty.wait()
            yield
        finally:
            self._open.set()


class _Turns:
    """Calls about one request id go one after the other, so that the mirror sees them as the shared ledger did."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, request_id: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(request_id, (None, 0))
        lock = lock or asyncio.Lock()
        self._locks[request_id] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            _, users = self._locks[request_id]
            if users == 1:
                del self._locks[request_id]
            else:
                self._locks[request_id] = (lock, users - 1)


class ResilientLedger:
    """A ``Ledger`` that never raises LedgerUnavailableError.

    Healthy, every call goes to ``shared`` and this router's own reservations are mirrored in ``local``. The first call
    that ``shared`` fails makes it *degraded*: that call and all later ones are served from ``local``, which counts this
    router's own reservations only, and no request waits for ``shared`` again. ``tend`` (or ``heartbeat``), called
    periodically, probes; once ``shared`` answers it is made to hold the mirror, and the ledger is healthy again.

    Args:
        shared: what routers have in common; must answer or fail in bounded time.
        local: over a book of its own, for the same router id.
        heartbeat_ttl_s: what ``tend`` promises.
        clock: seconds, never going back.
        on_change: told ``degraded`` whenever it changes.
    """

    is_immediate = False

    def __init__(
        self,
        shared: Ledger,
        local: MemoryLedger,
        *,
        heartbeat_ttl_s: float,
        clock: Callable[[], float],
        on_change: Callable[[bool], None] | None = None,
    ) -> None:
        if shared.router_id != local.router_id:
            raise ValueError(f"one router, not two: {shared.router_id!r} and {local.router_id!r}")
        self.router_id = shared.router_id
        self.degraded = False
        self.last_error: LedgerUnavailableError | None = None
        self._shared = shared
        self._local = local
        self._heartbeat_ttl_s = heartbeat_ttl_s
        self._clock = clock
        self._on_change = on_change
        self._gate = _Gate()
        self._turns = _Turns()
        self._owed: dict[str, None] = {}
        self._doubts = 0
        self._is_suspect = False
        self._expires_from_s = float("-inf")

    async def reserve(self, ask: ReserveAsk) -> ReserveResult:
        """See ``Ledger``; degraded, it decides on this router's own reservations."""
        async with self._turns.of(ask.request_id), self._gate.through():
            result, is_shared = await self._ask(lambda ledger: ledger.reserve(ask))
            if result.reservation is not None:
                self._owed.pop(ask.request_id, None)
                if is_shared:
                    self._local.put(result.reservation)
            return result

    async def progress(
        self,
        request_id: str,
        *,
        prefilled: bool,
        generated_tokens: int,
        predicted_output_tokens: float | None = None,
    ) -> Reservation | None:
        """See ``Ledger``; what the shared ledger has lost goes on in the mirror until it is restored."""

        async def advance(ledger: Ledger) -> Reservation | None:
            return await ledger.progress(
                request_id,
                prefilled=prefilled,
                generated_tokens=generated_tokens,
                predicted_output_tokens=predicted_output_tokens,
            )

        async with self._turns.of(request_id), self._gate.through():
            known, is_shared = await self._ask(advance)
            if known is None and is_shared:
                self._is_suspect = True
                return await advance(self._local)
            if known is not None and is_shared:
                self._local.put(known)
            return known

    async def release(self, request_id: str) -> Reservation | None:
        """See ``Ledger``; a release that the shared ledger missed reaches it when it is back."""
        async with self._turns.of(request_id), self._gate.through():
            released, is_shared = await self._ask(lambda ledger: ledger.release(request_id))
            if is_shared:
                self._local.drop(request_id)
            elif released is None:
                self._owe(request_id)
            return released

    async def find(self, request_id: str) -> Reservation | None:
        """See ``Ledger``."""
        async with self._gate.through():
            found, _ = await self._ask(lambda ledger: ledger.find(request_id))
            return found

    async def loads(self, claims: Mapping[str, Claim] = NO_CLAIMS) -> Mapping[str, Load]:
        """See ``Ledger``; degraded, this router's own reservations only."""
        async with self._gate.through():
            loads, _ = await self._ask(lambda ledger: ledger.loads(claims))
            return loads

    async def tend(self) -> None:
        """One step of care, to be taken several times per ``heartbeat_ttl_s``: beats, probes, repairs. Never raises."""
        await self.heartbeat(self._heartbeat_ttl_s)

    async def heartbeat(self, ttl_s: float) -> int:
        """See ``Ledger``; also probes a shared ledger that was away, and repairs one that counts otherwise."""
        try:
            if self.degraded:
                await self._return(ttl_s)
            else:
                await self._beat(ttl_s)
        except LedgerUnavailableError as error:
            self._degrade(error)
        return len(self._local.own())

    async def expire(self) -> Mapping[str, int]:
        """See ``Ledger``; nothing while degraded, nor until the other routers have had time to come back as well."""
        if self.degraded or self._clock() < self._expires_from_s:
            return {}
        try:
            return await self._shared.expire()
        except LedgerUnavailableError as error:
            self._degrade(error)
            return {}

    async def reconcile(self, own: Sequence[Reservation]) -> frozenset[str]:
        """See ``Ledger``."""
        async with self._gate.alone():
            await self._local.reconcile(own)
            if self.degraded:
                return frozenset()
            try:
                return await self._settle()
            except LedgerUnavailableError as error:
                self._degrade(error)
                return frozenset()

    async def leave(self) -> int:
        """See ``Ledger``; where the shared ledger is away, the missing heartbeat will say it."""
        async with self._gate.alone():
            held = await self._local.leave()
            try:
                return await self._shared.leave()
            except LedgerUnavailableError as error:
                self._degrade(error)
                return held

    async def close(self) -> None:
        """See ``Ledger``."""
        await self._shared.close()
        await self._local.close()

    async def _ask(self, call: Callable[[Ledger], Awaitable[T]]) -> tuple[T, bool]:
        """The answer, and whether the shared ledger gave it."""
        if not self.degraded:
            try:
                return await call(self._shared), True
            except LedgerUnavailableError as error:
                self._degrade(error)
            except asyncio.CancelledError:
                self._is_suspect = True  # the shared ledger may or may not have done it
                raise
        return await call(self._local), False

    async def _beat(self, ttl_s: float) -> None:
        """Compares counts; calls under way explain a difference of as many, for a while."""
        under_way, passed = self._gate.passing, self._gate.passed
        held = await self._shared.heartbeat(ttl_s)
        gap = abs(held - len(self._local.own()))
        if gap == 0 and not self._is_suspect:
            self._doubts = 0
            return
        self._doubts += 1
        explained = gap <= under_way + self._gate.passed - passed
        if explained and self._doubts <= MAX_DOUBTS and not self._is_suspect:
            return
        async with self._gate.alone():
            await self._verify(ttl_s)

    async def _verify(self, ttl_s: float) -> None:
        """With no call under way, the counts must be equal."""
        if self.degraded:
            return
        if self._is_suspect or await self._shared.heartbeat(ttl_s) != len(self._local.own()):
            await self._settle()
        self._doubts = 0
        self._is_suspect = False

    async def _return(self, ttl_s: float) -> None:
        """Probes, repairs most of it while requests are still served locally, and the rest with requests held back."""
        await self._shared.heartbeat(ttl_s)
        await self._pay()
        await self._shared.reconcile(self._local.own())
        async with self._gate.alone():
            await self._pay()
            await self._settle()
            self._doubts = 0
            self._is_suspect = False
            self._expires_from_s = self._clock() + ttl_s
            self._set_degraded(degraded=False)

    async def _settle(self) -> frozenset[str]:
        lost = await self._shared.reconcile(self._local.own())
        for request_id in lost:
            self._local.drop(request_id)
        return lost

    async def _pay(self) -> None:
        for request_id in tuple(self._owed):
            await self._shared.release(request_id)
            self._owed.pop(request_id, None)

    def _owe(self, request_id: str) -> None:
        self._owed[request_id] = None
        if len(self._owed) > MAX_OWED:
            del self._owed[next(iter(self._owed))]

    def _degrade(self, error: LedgerUnavailableError) -> None:
        self.last_error = error
        self._set_degraded(degraded=True)

    def _set_degraded(self, *, degraded: bool) -> None:
        changed = degraded != self.degraded
        self.degraded = degraded
        if changed and self._on_change is not None:
            self._on_change(degraded)

"""A router goes on without Redis and repairs the record when it is back. The Redis is a real one, really gone."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from support.ledgers import TIMEOUT_S, ask, bid, emptied, known, redis_ledger, resilient_ledger, total

from llmrouter.domain import Load, Reservation
from llmrouter.errors import LedgerUnavailableError
from llmrouter.testbed.cluster.redis import RedisServer
from router_grpc.adapters.memory_ledger import MemoryBook, MemoryLedger
from router_grpc.adapters.redis_ledger import RedisLedger, redis_client
from router_grpc.adapters.resilient_ledger import MAX_DOUBTS, ResilientLedger
from router_grpc.ports import ReserveAsk, ReserveOutcome, ReserveResult

pytest_plugins = ["support.redis_server", "support.ledger_fixtures"]

SHORT_S = 0.2
ONE = Load(requests=1, context_tokens=100, queued_prefill_tokens=100, remaining_decode_tokens=50.0)


async def until(condition: Callable[[], Awaitable[bool]], *, within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110 - another process is waited for
            await asyncio.sleep(0.01)


async def healthy(ledger: ResilientLedger) -> bool:
    await ledger.tend()
    return not ledger.degraded


async def reserve(ledger: ResilientLedger, request_id: str, instance_id: str = "i") -> Reservation:
    result = await ledger.reserve(ask(request_id, bid(instance_id), tolerance=None))
    assert result.reservation is not None
    return result.reservation


class Pair:
    """Router a, resilient; router b, straight at Redis; and what a said about itself."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.changes: list[bool] = []
        self.now_s = 0.0
        self.a = resilient_ledger(
            "a", server.url, timeout_s=SHORT_S, clock=lambda: self.now_s, on_change=self.changes.append
        )
        self.b = redis_ledger("b", server.url)

    async def close(self) -> None:
        await self.a.close()
        await self.b.close()


@pytest.fixture
async def pair(redis_server: RedisServer) -> AsyncIterator[Pair]:
    pair = Pair(redis_server)
    yield pair
    await pair.close()


async def test_redis_stopped_and_started_keeps_what_was_in_flight(pair: Pair) -> None:
    await reserve(pair.a, "before")
    pair.server.stop()

    during = await reserve(pair.a, "during", "j")
    assert during.instance_id == "j"
    assert pair.a.degraded
    assert await pair.a.loads() == {"i": ONE, "j": ONE}
    assert await pair.a.progress("before", prefilled=True, generated_tokens=10) is not None
    await pair.a.tend()
    assert pair.a.degraded

    pair.server.start()
    await until(lambda: healthy(pair.a))

    assert pair.changes == [True, False]
    assert await pair.b.loads() == {"i": Load(1, 110, 0, 40.0), "j": ONE}
    assert await pair.b.find("during") == during


async def test_what_was_reserved_while_redis_hung_is_there_after(pair: Pair) -> None:
    await reserve(pair.a, "r0")
    pair.server.pause()
    await reserve(pair.a, "r1")
    assert pair.a.degraded

    for n in range(2, 50):
        await reserve(pair.a, f"r{n}")
    assert len(await pair.a.loads()) == 1

    pair.server.resume()
    await until(lambda: healthy(pair.a))
    await until(lambda: agrees(pair, {f"r{n}" for n in range(50)}))


async def agrees(pair: Pair, request_ids: set[str]) -> bool:
    """Whether Redis holds exactly these, after another step of care."""
    await pair.a.tend()
    held = await known(pair.b, request_ids)
    return len(held) == len(request_ids) and dict(await pair.b.loads()) == total(held)


async def test_releases_while_degraded_reach_redis_which_kept_its_data(pair: Pair) -> None:
    for n in range(4):
        await reserve(pair.a, f"r{n}")
    await pair.b.reserve(ask("of b", bid("i"), tolerance=None))
    pair.server.pause()
    assert await pair.a.release("r0") is not None
    assert pair.a.degraded
    assert await pair.a.release("r1") is not None
    assert await pair.a.release("r1") is None
    assert await pair.a.release("of b") is None  # b's own: a cannot know it now, and owes it

    pair.server.resume()
    await until(lambda: healthy(pair.a))
    await until(lambda: agrees(pair, {"r2", "r3"}))
    assert await known(pair.b, ["r0", "r1", "of b"]) == []


async def test_expiry_waits_for_other_routers_after_an_outage(pair: Pair) -> None:
    await pair.b.reserve(ask("of b", bid("i"), tolerance=None))
    await pair.b.heartbeat(0)
    pair.server.pause()
    await reserve(pair.a, "r")
    assert await pair.a.expire() == {}
    pair.server.resume()
    await until(lambda: healthy(pair.a))

    assert await pair.a.expire() == {}
    pair.now_s += 30.0
    assert await pair.a.expire() == {"b": 1}


async def test_a_router_that_was_given_up_restores_itself(pair: Pair) -> None:
    await reserve(pair.a, "r")
    await pair.a.heartbeat(0)
    assert await pair.b.expire() == {"a": 1}
    assert await pair.b.loads() == {}

    assert await pair.a.progress("r", prefilled=False, generated_tokens=0) is not None
    await pair.a.tend()

    assert await pair.b.loads() == {"i": ONE}
    assert pair.changes == []


async def test_a_mirror_learns_what_other_routers_took_over(pair: Pair) -> None:
    await reserve(pair.a, "r")
    await pair.b.progress("r", prefilled=True, generated_tokens=1)
    await pair.b.release("r")
    await pair.a.tend()
    assert await pair.a.heartbeat(30) == 0

    pair.server.stop()
    await pair.a.tend()
    assert pair.a.degraded
    assert await pair.a.loads() == {}


async def test_a_reservation_that_nobody_was_told_of_is_dropped(pair: Pair) -> None:
    orphaned = redis_ledger("a", pair.server.url)
    await orphaned.reserve(ask("orphan", bid("i")))
    await orphaned.close()
    await reserve(pair.a, "r", "j")
    await pair.a.tend()
    assert await pair.b.loads() == {"j": ONE}


async def test_leaving_an_unreachable_redis_does_not_fail(pair: Pair) -> None:
    await reserve(pair.a, "r")
    pair.server.stop()
    assert await pair.a.leave() == 1
    assert await pair.a.loads() == {}


async def client_load(ledger: ResilientLedger, draw: random.Random, stop: asyncio.Event, open_ids: set[str]) -> int:
    """Requests that come, advance and go until told to stop; leaves some of them open."""
    served = 0
    name = draw.randrange(10**9)
    while not stop.is_set():
        request_id = f"{name}-{served}"
        result = await ledger.reserve(ask(request_id, bid("i"), bid("j"), bid("k"), final=True))
        assert result.outcome is ReserveOutcome.COMMITTED
        open_ids.add(request_id)
        await ledger.progress(request_id, prefilled=True, generated_tokens=draw.randrange(80))
        if draw.random() < 0.95:
            assert await ledger.release(request_id) is not None
            assert await ledger.release(request_id) is None
            open_ids.discard(request_id)
        served += 1
        await asyncio.sleep(0.005)
    return served


@asynccontextmanager
async def under_load(routers: list[ResilientLedger], open_ids: set[str]) -> AsyncIterator[None]:
    stop = asyncio.Event()
    clients = [
        asyncio.create_task(client_load(router, random.Random(f"{router.router_id} {n}"), stop, open_ids))
        for router in routers
        for n in range(4)
    ]
    try:
        yield
    finally:
        stop.set()
        served = await asyncio.gather(*clients)
    assert min(served) > 0


@pytest.mark.parametrize("outage", ["stop", "pause"])
async def test_an_outage_under_load_conserves_everything(redis_server: RedisServer, outage: str) -> None:
    routers = [resilient_ledger(name, redis_server.url, timeout_s=SHORT_S) for name in ("a", "b")]
    watcher = redis_ledger("watcher", redis_server.url)
    open_ids: set[str] = set()
    async with under_load(routers, open_ids):
        for _ in range(3):
            await until(more(open_ids))
            await asyncio.to_thread(getattr(redis_server, outage))
            await until(lambda: all_of(routers, degraded=True))
            await until(more(open_ids))
            await asyncio.to_thread(redis_server.start if outage == "stop" else redis_server.resume)
            await until(lambda: all_of(routers, degraded=False))

    async def is_exact() -> bool:
        for router in routers:
            await router.tend()
        held = await known(watcher, open_ids)
        return len(held) == len(open_ids) and dict(await watcher.loads()) == total(held)

    await until(is_exact)
    for router in routers:
        await router.leave()
        await router.close()
    assert await watcher.loads() == {}
    await watcher.close()


def more(ids: set[str]) -> Callable[[], Awaitable[bool]]:
    """Whether five more have come since now."""
    size = len(ids) + 5

    async def have_come() -> bool:
        return len(ids) >= size

    return have_come


async def all_of(routers: list[ResilientLedger], *, degraded: bool) -> bool:
    for router in routers:
        await router.tend()
    return all(router.degraded is degraded for router in routers)


class Scripted(MemoryLedger):
    """A shared ledger whose next calls can be held back, and that can be away."""

    is_immediate = False

    def __init__(self, router_id: str) -> None:
        super().__init__(router_id, MemoryBook(), lambda: 0.0)
        self.away = False
        self.reserved = 0
        self.reconciled = 0
        self.proceed = asyncio.Event()
        self.proceed.set()

    async def reserve(self, ask: ReserveAsk) -> ReserveResult:
        self.reserved += 1
        result = await super().reserve(ask)
        await self._passes()
        return result

    async def find(self, request_id: str) -> Reservation | None:
        await self._passes()
        return await super().find(request_id)

    async def heartbeat(self, ttl_s: float) -> int:
        if self.away:
            raise LedgerUnavailableError("away")
        return await super().heartbeat(ttl_s)

    async def reconcile(self, own: object) -> frozenset[str]:
        self.reconciled += 1
        return await super().reconcile(own)  # type: ignore[arg-type]

    async def _passes(self) -> None:
        await self.proceed.wait()
        if self.away:
            raise LedgerUnavailableError("away")


def over(shared: Scripted) -> ResilientLedger:
    local = MemoryLedger(shared.router_id, MemoryBook(), lambda: 0.0)
    return ResilientLedger(shared, local, heartbeat_ttl_s=30.0, clock=lambda: 0.0)


async def test_calls_under_way_explain_a_difference_for_a_while() -> None:
    shared = Scripted("a")
    ledger = over(shared)
    shared.proceed.clear()
    under_way = asyncio.create_task(reserve(ledger, "r"))
    await asyncio.sleep(0)
    for _ in range(MAX_DOUBTS):
        await ledger.tend()
    assert shared.reconciled == 0

    insisting = asyncio.create_task(ledger.tend())
    await asyncio.sleep(0)
    shared.proceed.set()
    await asyncio.gather(insisting, under_way)
    assert shared.reconciled == 0  # looked at with no call under way, there was no difference
    assert await shared.loads() == {"i": ONE}


async def test_a_small_difference_that_stays_is_looked_at_however_busy_the_router() -> None:
    shared = Scripted("a")
    ledger = over(shared)
    await shared.reserve(ask("orphan", bid("i")))
    shared.proceed.clear()
    busy = asyncio.create_task(ledger.find("other"))
    await asyncio.sleep(0)
    for _ in range(MAX_DOUBTS):
        await ledger.tend()
    assert await shared.loads() == {"i": ONE}

    insisting = asyncio.create_task(ledger.tend())
    await asyncio.sleep(0)
    shared.proceed.set()
    await asyncio.gather(insisting, busy)
    assert await shared.loads() == {}


async def test_a_cancelled_reserve_leaves_nothing_behind() -> None:
    shared = Scripted("a")
    ledger = over(shared)
    shared.proceed.clear()
    cancelled = asyncio.create_task(reserve(ledger, "r"))
    explanation = asyncio.create_task(ledger.find("other"))
    await asyncio.sleep(0)
    assert await shared.loads() == {"i": ONE}
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    tending = asyncio.create_task(ledger.tend())
    await asyncio.sleep(0)
    shared.proceed.set()
    await asyncio.gather(tending, explanation)
    assert await shared.loads() == {}


async def test_a_release_waits_for_the_reserve_of_its_request() -> None:
    shared = Scripted("a")
    ledger = over(shared)
    shared.proceed.clear()
    under_way = asyncio.create_task(reserve(ledger, "r"))
    await asyncio.sleep(0)
    release = asyncio.create_task(ledger.release("r"))
    await asyncio.sleep(0)
    shared.proceed.set()
    assert await under_way == await release
    assert await ledger.heartbeat(30) == 0
    assert await shared.loads() == {}
    assert ledger._turns._locks == {}


async def test_a_reserve_that_timed_out_but_was_done_counts_once() -> None:
    shared = Scripted("a")
    ledger = over(shared)
    shared.away = True
    result = await ledger.reserve(ask("r", bid("i"), bid("j")))
    assert result.outcome is ReserveOutcome.COMMITTED
    assert ledger.degraded
    assert isinstance(ledger.last_error, LedgerUnavailableError)
    shared.away = False
    await ledger.tend()
    assert not ledger.degraded
    assert await shared.loads() == {"i": ONE}


async def test_once_degraded_no_request_asks_again_until_the_probe_succeeds() -> None:
    shared = Scripted("a")
    ledger = over(shared)
    shared.away = True
    for n in range(20):
        await reserve(ledger, f"r{n}")
        await ledger.tend()
    assert shared.reserved == 1
    shared.away = False
    await ledger.tend()
    await reserve(ledger, "r")
    assert shared.reserved == 2


async def test_one_router_not_two() -> None:
    with pytest.raises(ValueError, match="one router"):
        ResilientLedger(
            Scripted("a"), MemoryLedger("b", MemoryBook(), lambda: 0.0), heartbeat_ttl_s=30.0, clock=lambda: 0.0
        )


async def test_a_password_is_needed_where_redis_wants_one(redis_server: RedisServer) -> None:
    opened = redis_client(redis_server.url, timeout_s=TIMEOUT_S)
    await opened.config_set("requirepass", "a secret")
    await opened.aclose()

    refused = RedisLedger("a", redis_client(redis_server.url, timeout_s=TIMEOUT_S), "tests", TIMEOUT_S)
    with pytest.raises(LedgerUnavailableError, match="AuthenticationError"):
        await refused.loads()
    await refused.close()

    client = redis_client(redis_server.url, password="a secret", timeout_s=TIMEOUT_S)  # noqa: S106 - of this server
    admitted = RedisLedger("a", client, "tests", TIMEOUT_S)
    assert await admitted.loads() == {}
    await admitted.close()


async def test_an_address_where_nobody_listens_is_unavailable(common_redis: RedisServer) -> None:
    ledger = redis_ledger("a", "redis://127.0.0.1:1", timeout_s=SHORT_S)
    with pytest.raises(LedgerUnavailableError, match="loads: ConnectionError"):
        await ledger.loads()
    await ledger.close()

    other = redis_ledger("a", await emptied(common_redis.url), timeout_s=TIMEOUT_S)
    assert await other.loads() == {}
    await other.close()

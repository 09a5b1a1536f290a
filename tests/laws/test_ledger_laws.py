"""Laws of the ledger: loads are the sums of contributions, release happens once, memory and Redis agree."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.ledgers import ask, bid, emptied, known, memory_ledger, redis_ledger, total

from llmrouter.domain import Reservation, Room
from llmrouter.testbed.cluster.redis import RedisServer
from router_grpc.adapters.memory_ledger import MemoryBook
from router_grpc.ports import Ledger, ReserveAsk, ReserveResult

pytest_plugins = ["support.redis_server", "support.ledger_fixtures"]

REQUESTS = [f"r{n}" for n in range(6)]
INSTANCES = [f"i{n}" for n in range(3)]
ROUTERS = ["a", "b"]

Answer = object
Step = Callable[[Ledger], Awaitable[Answer]]


def comparable(answer: Answer) -> Answer:
    """Mappings without their order."""
    if isinstance(answer, ReserveResult):
        return (answer.outcome, answer.reservation, dict(answer.loads))
    return answer


@dataclass(frozen=True)
class Operation:
    """One call of one router, with a readable form for counterexamples."""

    router: int
    name: str
    args: tuple[object, ...]
    step: Step


rooms = st.builds(
    Room,
    max_requests=st.integers(1, 4),
    kv_limit_tokens=st.none() | st.integers(0, 3_000),
    decode_reserve_fraction=st.floats(0, 1),
)
bids = st.builds(
    lambda instance_id, seen, room, cached: bid(instance_id, seen=seen, room=room, cached=cached),
    st.sampled_from(INSTANCES),
    st.integers(0, 3),
    rooms,
    st.integers(0, 1_200),
)
staged_bids = st.builds(lambda own, prefill: replace(own, prefill=prefill), bids, bids)
asks = st.builds(
    ReserveAsk,
    request_id=st.sampled_from(REQUESTS),
    prompt_tokens=st.integers(0, 1_000) | st.just(10**9),
    predicted_output_tokens=st.floats(0, 2_000) | st.just(1e9),
    bids=st.lists(bids | staged_bids, max_size=4).map(tuple),
    moved_tolerance=st.none() | st.integers(-1, 3),
    final=st.booleans(),
)
advances = st.tuples(st.sampled_from(REQUESTS), st.booleans(), st.integers(0, 2_500), st.none() | st.floats(0, 2_000))
routers = st.integers(0, len(ROUTERS) - 1)


def reserve(router: int, wanted: ReserveAsk) -> Operation:
    return Operation(router, "reserve", (wanted,), lambda ledger: ledger.reserve(wanted))


def progress(router: int, advance: tuple[str, bool, int, float | None]) -> Operation:
    request_id, prefilled, generated, predicted = advance
    return Operation(
        router,
        "progress",
        advance,
        lambda ledger: ledger.progress(
            request_id, prefilled=prefilled, generated_tokens=generated, predicted_output_tokens=predicted
        ),
    )


def release(router: int, request_id: str) -> Operation:
    return Operation(router, "release", (request_id,), lambda ledger: ledger.release(request_id))


def beat(router: int, ttl_s: float) -> Operation:
    return Operation(router, "heartbeat", (ttl_s,), lambda ledger: ledger.heartbeat(ttl_s))


def expire(router: int) -> Operation:
    return Operation(router, "expire", (), lambda ledger: ledger.expire())


def leave(router: int) -> Operation:
    return Operation(router, "leave", (), lambda ledger: ledger.leave())


def reconcile(router: int, own: list[Reservation]) -> Operation:
    mine = {reservation.request_id: reservation for reservation in own}
    return Operation(router, "reconcile", (own,), lambda ledger: ledger.reconcile(tuple(mine.values())))


reservations = st.builds(
    Reservation,
    request_id=st.sampled_from(REQUESTS),
    router_id=st.just("whoever"),
    instance_id=st.sampled_from(INSTANCES),
    prompt_tokens=st.integers(0, 1_000),
    predicted_output_tokens=st.floats(0, 2_000),
    prefilled=st.booleans(),
    generated_tokens=st.integers(0, 2_500),
    cached_tokens=st.integers(0, 1_200),
    prefill_instance_id=st.sampled_from(["", *INSTANCES]),
    prefill_cached_tokens=st.integers(0, 1_200),
).map(lambda one: one if one.prefill_instance_id else replace(one, prefill_cached_tokens=0))
operations = st.one_of(
    st.builds(reserve, routers, asks),
    st.builds(progress, routers, advances),
    st.builds(release, routers, st.sampled_from(REQUESTS)),
    st.builds(beat, routers, st.sampled_from([0.0, 3_600.0])),
    st.builds(expire, routers),
    st.builds(leave, routers),
    st.builds(reconcile, routers, st.lists(reservations, max_size=4)),
)


async def assert_conserved(ledger: Ledger) -> None:
    assert dict(await ledger.loads()) == total(await known(ledger, REQUESTS))


@given(st.lists(operations, max_size=30))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_memory_and_redis_agree_and_both_conserve(common_redis: RedisServer, steps: list[Operation]) -> None:
    async def run() -> None:
        url = await emptied(common_redis.url)
        book = MemoryBook()
        in_memory = [memory_ledger(name, book) for name in ROUTERS]
        in_redis = [redis_ledger(name, url) for name in ROUTERS]
        try:
            for operation in steps:
                expected = await operation.step(in_memory[operation.router])
                assert comparable(await operation.step(in_redis[operation.router])) == comparable(expected)
                assert await known(in_redis[0], REQUESTS) == await known(in_memory[0], REQUESTS)
                assert dict(await in_redis[0].loads()) == dict(await in_memory[0].loads())
                await assert_conserved(in_redis[0])
        finally:
            for ledger in in_redis:
                await ledger.close()

    asyncio.run(run())


@given(st.lists(operations, max_size=60))
@settings(max_examples=300, deadline=None)
def test_loads_are_the_sum_of_contributions(steps: list[Operation]) -> None:
    async def run() -> None:
        book = MemoryBook()
        ledgers = [memory_ledger(name, book) for name in ROUTERS]
        for operation in steps:
            await operation.step(ledgers[operation.router])
            await assert_conserved(ledgers[0])

    asyncio.run(run())


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_what_is_added_is_taken_out_to_the_last_bit(tokens: list[float], order: random.Random) -> None:
    async def run() -> None:
        ledger = memory_ledger("a")
        await ledger.reserve(ask("kept", bid("i"), predicted_output_tokens=0.1))
        before = await ledger.loads()
        ids = [f"r{n}" for n in range(len(tokens))]
        for request_id, predicted in zip(ids, tokens, strict=True):
            await ledger.reserve(ask(request_id, bid("i"), predicted_output_tokens=predicted, tolerance=None))
        order.shuffle(ids)
        for request_id in ids:
            await ledger.release(request_id)
        assert await ledger.loads() == before

    asyncio.run(run())


async def one_life(ledger: Ledger, draw: random.Random, taken_out: list[str]) -> None:
    """A random client of one router: a few requests that compete for ids with the other router's."""
    for _ in range(6):
        request_id = draw.choice(REQUESTS)
        action = draw.random()
        if action < 0.45:
            wanted = [bid(instance_id, room=Room(2)) for instance_id in draw.sample(INSTANCES, 2)]
            if draw.random() < 0.5:
                wanted = [replace(one, prefill=bid(draw.choice(INSTANCES), room=Room(2))) for one in wanted]
            await ledger.reserve(ask(request_id, *wanted, predicted_output_tokens=draw.uniform(0, 100), final=True))
        elif action < 0.7:
            await ledger.progress(request_id, prefilled=draw.random() < 0.5, generated_tokens=draw.randrange(120))
        elif await ledger.release(request_id) is not None:
            taken_out.append(request_id)


@pytest.mark.timeout(300)
async def test_a_thousand_interleavings_of_two_routers_lose_and_double_nothing(common_redis: RedisServer) -> None:
    url = await emptied(common_redis.url)
    a, b = redis_ledger("a", url), redis_ledger("b", url)
    for seed in range(1_000):
        taken_out: list[str] = []
        await asyncio.gather(
            *(one_life(ledger, random.Random(f"{seed} {n}"), taken_out) for n, ledger in enumerate((a, b, a, b)))
        )
        held = await known(a, REQUESTS)
        assert dict(await a.loads()) == total(held), seed
        assert await a.heartbeat(60) + await b.heartbeat(60) == len(held), seed
        drained = await asyncio.gather(*(ledger.release(rid) for rid in REQUESTS for ledger in (a, b)))
        assert sum(reservation is not None for reservation in drained) == len(held), seed
        assert await a.loads() == {}, seed
    await a.close()
    await b.close()

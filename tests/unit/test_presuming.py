"""Answers that are not seen: what stands in the ledger for them, and that it always ends."""

from __future__ import annotations

from support.router_world import PROFILE, Bench, config_of

from llmrouter.domain import EngineSignal
from llmrouter.routing.presumed import SLACK_S
from router_grpc.presuming import NO_STREAM

SCRAPES = 3


def one_router() -> Bench:
    return Bench(config_of("a:1", limits={"maxInFlightPerInstance": 64}))


async def leave(bench: Bench, request_id: str) -> None:
    """Routes a request, and the gateway goes on alone."""
    await bench.route(request_id)
    bench.world.presuming.left(bench.world, request_id)


async def step(bench: Bench, seconds: float) -> None:
    bench.clock.now_s += seconds
    bench.world.replica.replace(await bench.world.ledger.loads({}), now_s=bench.clock.now_s)
    await bench.world.presuming.step(bench.world, bench.service.kick)


def life_s(bench: Bench, request_id: str) -> float:
    entry = bench.world.open_requests.get(request_id)
    assert entry is not None
    assert entry.cost is not None
    return entry.cost.seconds


def engine_says(bench: Bench, running: int | None, waiting: int | None = 0) -> None:
    bench.world.heard(bench.instances.instances[0], EngineSignal(bench.clock.now_s, running, waiting, 0.5))


async def test_it_is_counted_for_its_foretold_life_and_no_longer() -> None:
    bench = one_router()
    await leave(bench, "x")
    lasts_s = life_s(bench, "x")
    await bench.sweep(claim_timeout_s=0.0, grace_s=0.0)
    await step(bench, 0.9 * lasts_s)
    reservation = await bench.world.ledger.find("x")
    assert reservation is not None
    assert reservation.prefilled
    assert 0 < reservation.generated_tokens < 100
    await step(bench, 0.2 * lasts_s)
    assert await bench.world.ledger.find("x") is None
    assert (len(bench.world.open_requests), len(bench.world.presuming)) == (0, 0)
    assert bench.count("llmrouter_reservations_total", event="presumed") == 1


async def test_an_engine_that_has_fewer_ends_it_before() -> None:
    bench = one_router()
    for name in "abcd":
        await leave(bench, name)
    for _ in range(SCRAPES):
        await step(bench, 0.01)
        engine_says(bench, 1)
    await step(bench, 0.01)
    assert len(bench.world.open_requests) == 1


async def test_an_engine_that_still_has_it_keeps_it_and_not_for_ever() -> None:
    bench = one_router()
    await leave(bench, "x")
    lasts_s = life_s(bench, "x")
    for _ in range(3):
        engine_says(bench, 1)
        await step(bench, lasts_s)
    assert "x" in bench.world.open_requests
    bench.clock.now_s += 2 * lasts_s + SLACK_S
    engine_says(bench, 1)
    await step(bench, 0.0)
    assert len(bench.world.open_requests) == 0


async def test_an_engine_that_says_nothing_of_its_requests_is_not_an_idle_one() -> None:
    bench = one_router()
    await leave(bench, "x")
    for _ in range(SCRAPES + 1):
        engine_says(bench, None)
        await step(bench, 0.01)
    assert "x" in bench.world.open_requests


async def test_what_another_router_took_over_is_followed_no_longer() -> None:
    bench = one_router()
    await leave(bench, "x")
    await bench.world.ledger.release("x")
    await step(bench, 0.9 * life_s(bench, "x"))
    assert (len(bench.world.open_requests), len(bench.world.presuming)) == (0, 0)


async def test_an_answer_that_comes_whole_has_its_first_token_presumed_and_its_end_told() -> None:
    bench = one_router()
    await bench.route("x")
    bench.world.open_requests.attended("x", stream_id=NO_STREAM)
    bench.world.presuming.unheard(bench.world, "x")
    await step(bench, 10 * life_s(bench, "x"))
    reservation = await bench.world.ledger.find("x")
    assert reservation is not None
    assert reservation.prefilled
    await bench.report("x")
    await step(bench, 0.1)
    assert len(bench.world.presuming) == 0


async def test_what_observed_requests_take_corrects_the_others() -> None:
    bench = one_router()
    await bench.route("seen")
    bench.clock.now_s += 2 * life_s(bench, "seen")
    await bench.report("seen", output_tokens=100)
    await leave(bench, "x")
    await step(bench, 1.9 * life_s(bench, "x"))
    assert "x" in bench.world.open_requests
    await step(bench, 0.2 * life_s(bench, "x"))
    assert "x" not in bench.world.open_requests


async def test_nothing_of_it_is_left_where_the_pick_was_none() -> None:
    bench = one_router()
    bench.world.presuming.left(bench.world, "")
    assert len(bench.world.presuming) == 0


async def test_an_engine_has_not_heard_of_a_request_whose_prompt_another_one_computes() -> None:
    pools = [
        {"name": role.lower(), "role": role, "endpoints": [f"{role[0].lower()}:1"], "profile": {"name": PROFILE}}
        for role in ("Prefill", "Decode")
    ]
    bench = Bench(config_of(pools=pools, limits={"maxInFlightPerInstance": 64}))
    decode = next(one for one in bench.instances.instances if one.pool == "decode")
    for name in "abcd":
        await bench.route(name, prompt_tokens=20_000)
        bench.world.presuming.left(bench.world, name)
    for _ in range(SCRAPES + 1):
        await step(bench, 0.01)
        bench.world.heard(decode, EngineSignal(bench.clock.now_s, 0, 0, 0.0))
    await step(bench, 0.01)
    assert len(bench.world.open_requests) == 4
    await step(bench, life_s(bench, "d"))
    for _ in range(SCRAPES + 1):
        await step(bench, 0.01)
        bench.world.heard(decode, EngineSignal(bench.clock.now_s, 0, 0, 0.0))
    await step(bench, 0.01)
    assert len(bench.world.open_requests) == 0
    assert await bench.world.ledger.loads() == {}

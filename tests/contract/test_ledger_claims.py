"""How routers leave places to each other: what they claim for held requests, over every ledger."""

import asyncio

import pytest
from support.ledgers import Fleet, ask, bid

from llmrouter.domain import Room
from llmrouter.routing.claims import CLAIM_LIFETIME_S, Claim
from llmrouter.routing.orders import HEAD_START_S
from router_grpc.adapters.memory_ledger import MemoryBook, MemoryLedger
from router_grpc.ports import Ledger, ReserveAsk, ReserveOutcome

pytest_plugins = ["support.redis_server", "support.ledger_fixtures"]

COMMITTED, YIELDED, FULL = ReserveOutcome.COMMITTED, ReserveOutcome.YIELDED, ReserveOutcome.FULL
ROOMY, ONE_PLACE = Room(max_requests=1_000), Room(max_requests=1)


def claim(age_s: float, standing: int = 0) -> Claim:
    """First come, first served, of a request that has waited so long."""
    return Claim(standing, -age_s, -age_s - HEAD_START_S)


def asked(request_id: str, mine: Claim | None, *, room: Room = ROOMY, model: str = "m") -> ReserveAsk:
    made = ask(request_id, bid("i", room=room), tolerance=None)
    return ReserveAsk(
        request_id, made.prompt_tokens, made.predicted_output_tokens, made.bids, None, model=model, claim=mine
    )


async def outcome(ledger: Ledger, request_id: str, mine: Claim | None, **fields: object) -> ReserveOutcome:
    return (await ledger.reserve(asked(request_id, mine, **fields))).outcome  # type: ignore[arg-type]


async def test_who_came_later_leaves_the_place_to_who_waits_elsewhere(fleet: Fleet) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    await a.loads({"m": claim(5.0)})
    assert await outcome(b, "young", claim(0.0)) is YIELDED
    assert await b.find("young") is None
    assert await outcome(b, "old", claim(9.0)) is COMMITTED
    assert await outcome(a, "mine", claim(5.0)) is COMMITTED
    assert await outcome(b, "young", claim(0.0)) is COMMITTED


async def test_of_two_that_came_together_neither_waits_for_the_other(fleet: Fleet) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    await a.loads({"m": claim(5.0)})
    assert await outcome(b, "r", claim(5.0 - 0.9 * HEAD_START_S)) is COMMITTED


@pytest.mark.parametrize(("standing", "expected"), [(-1, YIELDED), (0, YIELDED), (1, COMMITTED)])
async def test_a_higher_standing_goes_before_every_key(fleet: Fleet, standing: int, expected: ReserveOutcome) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    await a.loads({"m": claim(5.0)})
    assert await outcome(b, "r", claim(1.0, standing)) is expected


async def test_a_claim_is_for_its_model_and_for_who_makes_one(fleet: Fleet) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    await a.loads({"m": claim(5.0)})
    assert await outcome(b, "other", claim(0.0), model="n") is COMMITTED
    assert await outcome(b, "none", None) is COMMITTED


async def test_who_is_refused_claims_and_who_is_served_claims_no_more(fleet: Fleet) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    assert await outcome(b, "there", claim(0.0), room=ONE_PLACE) is COMMITTED
    assert await outcome(a, "waits", claim(3.0), room=ONE_PLACE) is FULL
    await b.release("there")
    assert await outcome(b, "later", claim(1.0), room=ONE_PLACE) is YIELDED
    assert await outcome(a, "waits", claim(3.2), room=ONE_PLACE) is COMMITTED
    await a.release("waits")
    assert await outcome(a, "fresh", claim(0.0), room=ONE_PLACE) is YIELDED  # to b, which was refused and waits
    assert await outcome(b, "later", claim(1.1), room=ONE_PLACE) is COMMITTED


async def test_what_a_router_tells_replaces_what_it_told(fleet: Fleet) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    await a.loads({"m": claim(5.0), "n": claim(5.0)})
    await a.loads({"n": claim(5.0)})
    assert await outcome(b, "r", claim(0.0)) is COMMITTED
    assert await outcome(b, "s", claim(0.0), model="n") is YIELDED
    await a.loads()
    assert await outcome(b, "s", claim(0.0), model="n") is COMMITTED


async def test_a_repeated_request_gets_its_answer_whoever_waits(fleet: Fleet) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    await b.reserve(asked("r", claim(0.0)))
    await a.loads({"m": claim(5.0)})
    assert await outcome(b, "r", claim(0.0)) is ReserveOutcome.EXISTING


@pytest.mark.parametrize("fleet", ["redis", "resilient"], indirect=True)
async def test_a_router_that_says_nothing_more_is_forgotten_by_the_servers_clock(fleet: Fleet) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    await a.loads({"m": claim(5.0)})
    asking = [await outcome(b, "r", claim(0.0))]
    while asking[-1] is YIELDED and len(asking) < 200:
        await asyncio.sleep(0.05)
        asking.append(await outcome(b, "r", claim(0.0)))
    assert asking[0] is YIELDED
    assert asking[-1] is COMMITTED


async def test_a_router_that_says_nothing_more_is_forgotten_by_the_process_clock() -> None:
    now_s, book = [100.0], MemoryBook()
    a, b = (MemoryLedger(router_id, book, lambda: now_s[0]) for router_id in "ab")
    await a.loads({"m": claim(5.0)})
    assert await outcome(b, "r", claim(0.0)) is YIELDED
    now_s[0] += CLAIM_LIFETIME_S
    assert await outcome(b, "r", claim(0.0)) is COMMITTED

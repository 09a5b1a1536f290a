"""Reservations of two instances, one of which computes the prompt: the same promises from every ledger."""

import asyncio
from dataclasses import replace

import pytest
from support.ledgers import Fleet, ask, bid, is_conserved, known

from llmrouter.domain import Load, Reservation, Room
from llmrouter.errors import InvalidRequestError
from router_grpc.ports import Bid, ReserveAsk, ReserveOutcome

pytest_plugins = ["support.redis_server", "support.ledger_fixtures"]

DECODE = Load(requests=1, context_tokens=100, queued_prefill_tokens=0, remaining_decode_tokens=50.0)
PREFILL = Load(requests=1, context_tokens=100, queued_prefill_tokens=100)
ONE = Room(max_requests=1)


def pair(decode: str, prefill: str, *, seen: int = 0, room: Room | None = None, cached: int = 0) -> Bid:
    """A bid for an instance and one that computes the prompt for it; what is said is said of the latter."""
    return bid(decode, prefill=bid(prefill, seen=seen, room=room or Room(1_000), cached=cached))


async def test_both_instances_are_reserved_at_once(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    result = await ledger.reserve(ask("r", pair("d", "p", cached=30), pair("e", "q")))
    expected = Reservation("r", "a", "d", 100, 50.0, prefill_instance_id="p", prefill_cached_tokens=30)
    assert (result.outcome, result.reservation) == (ReserveOutcome.COMMITTED, expected)
    loads = {"d": DECODE, "p": Load(1, 100, 70, 0.0)}
    assert result.loads == {**loads, "e": Load(), "q": Load()}
    assert await ledger.loads() == loads
    assert await ledger.find("r") == expected


async def test_the_first_token_ends_the_prefill_and_nothing_else(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    await ledger.reserve(ask("r", pair("d", "p")))
    await ledger.progress("r", prefilled=False, generated_tokens=0)
    assert await ledger.loads() == {"d": DECODE, "p": PREFILL}
    for tokens in (1, 1):
        advanced = await ledger.progress("r", prefilled=True, generated_tokens=tokens)
        assert advanced is not None
        assert advanced.prefill_instance_id == "p"
        assert await ledger.loads() == {"d": Load(1, 101, 0, 49.0)}
    await ledger.release("r")
    assert await ledger.loads() == {}


async def test_a_release_before_the_first_token_gives_both_back_once(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    reserved = (await ledger.reserve(ask("r", pair("d", "p")))).reservation
    assert [*await asyncio.gather(ledger.release("r"), ledger.release("r"))] == [reserved, None]
    assert await ledger.loads() == {}


@pytest.mark.parametrize("final", [False, True])
async def test_no_room_at_either_reserves_neither(fleet: Fleet, *, final: bool) -> None:
    ledger = fleet.router("a")
    await ledger.reserve(ask("r0", pair("d", "p")))
    before = await ledger.loads()
    for wanted in (pair("e", "p", room=ONE), replace(pair("d", "q"), room=ONE)):
        result = await ledger.reserve(ask("r1", wanted, final=final))
        assert (result.outcome, result.reservation) == (ReserveOutcome.FULL, None)
    assert await ledger.loads() == before


async def test_a_pair_has_moved_as_far_as_the_one_that_moved_more(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    for n in range(2):
        await ledger.reserve(ask(f"r{n}", bid("p"), tolerance=None))
    moved = await ledger.reserve(ask("r", pair("d", "p")))
    assert (moved.outcome, moved.loads["p"].requests) == (ReserveOutcome.MOVED, 2)
    seen = await ledger.reserve(ask("r", pair("d", "p", seen=1), pair("e", "q")))
    assert seen.reservation is not None
    assert (seen.reservation.instance_id, seen.reservation.prefill_instance_id) == ("d", "p")


async def test_a_final_call_commits_the_pair_that_moved_least(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    for n, instance_id in enumerate(["p"] * 4 + ["e"] * 3):
        await ledger.reserve(ask(f"r{n}", bid(instance_id), tolerance=None))
    result = await ledger.reserve(ask("r", pair("d", "p"), pair("e", "q"), final=True))
    assert result.reservation is not None
    assert result.reservation.prefill_instance_id == "q"


async def test_a_prompt_computed_elsewhere_needs_no_decode_room_there(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    tight = Room(max_requests=5, kv_limit_tokens=200, decode_reserve_fraction=1.0)
    await ledger.reserve(ask("r0", pair("d", "p")))
    assert (await ledger.reserve(ask("r1", pair("e", "p", room=tight)))).outcome is ReserveOutcome.COMMITTED
    tighter = replace(tight, kv_limit_tokens=299)
    assert (await ledger.reserve(ask("r2", pair("e", "p", room=tighter)))).outcome is ReserveOutcome.FULL


async def test_a_retry_and_a_takeover_repeat_both(fleet: Fleet) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    first = (await a.reserve(ask("r", pair("d", "p", cached=7)))).reservation
    assert first is not None
    again = await b.reserve(ask("r", bid("x")))
    assert (again.outcome, again.reservation) == (ReserveOutcome.EXISTING, replace(first, router_id="b"))
    taken = await a.progress("r", prefilled=False, generated_tokens=0)
    assert taken == first
    assert await b.loads() == {"d": DECODE, "p": Load(1, 100, 93, 0.0)}


async def test_a_lost_router_leaves_nothing_at_either(fleet: Fleet) -> None:
    lost, alive = fleet.router("lost"), fleet.router("alive")
    await alive.heartbeat(30)
    for n in range(100):
        await lost.reserve(ask(f"r{n}", pair(f"d{n % 3}", f"p{n % 2}"), tolerance=None))
        if n % 2:
            await lost.progress(f"r{n}", prefilled=True, generated_tokens=1)
    await lost.heartbeat(0)
    assert await alive.expire() == {"lost": 100}
    assert await alive.loads() == {}


async def test_reconcile_restores_and_drops_both(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    await ledger.reserve(ask("surplus", pair("d", "p")))
    own = [
        Reservation("waits", "a", "d", 10, 2.0, prefill_instance_id="p", prefill_cached_tokens=4),
        Reservation("runs", "a", "d", 10, 2.0, prefilled=True, generated_tokens=1, prefill_instance_id="p"),
        Reservation("whole", "a", "d", 10, 2.0),
    ]
    assert await ledger.reconcile(own) == frozenset()
    assert await known(ledger, ["surplus", "waits", "runs", "whole"]) == own
    assert (await ledger.loads())["p"] == Load(1, 10, 6, 0.0)
    assert await is_conserved(ledger, ["waits", "runs", "whole"])
    await ledger.reconcile([])
    assert await ledger.loads() == {}


@pytest.mark.parametrize(
    ("first", "loads"), [(True, {"d": DECODE, "p": PREFILL}), (False, {"e": Load(1, 100, 100, 50.0)})]
)
async def test_some_bids_may_have_a_second_instance_and_others_not(
    fleet: Fleet, loads: dict[str, Load], *, first: bool
) -> None:
    ledger = fleet.router("a")
    bids = pair("d", "p"), bid("e")
    result = await ledger.reserve(ask("r", *(bids if first else bids[::-1])))
    assert result.outcome is ReserveOutcome.COMMITTED
    assert await ledger.loads() == loads
    assert result.loads == {name: loads.get(name, Load()) for name in ("d", "p", "e")}
    await ledger.release("r")
    assert await ledger.loads() == {}


async def test_one_instance_may_be_both(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    result = await ledger.reserve(ask("r", pair("d", "d")))
    assert result.loads == await ledger.loads() == {"d": Load(2, 200, 100, 50.0)}
    await ledger.release("r")
    assert await ledger.loads() == {}


@pytest.mark.parametrize(
    "wanted",
    [
        ask("r", pair("d", "p", cached=-1)),
        ask("r", pair("d", "p", cached=10**9 + 1)),
    ],
)
async def test_bids_that_cannot_be_are_refused(fleet: Fleet, wanted: ReserveAsk) -> None:
    ledger = fleet.router("a")
    with pytest.raises(InvalidRequestError):
        await ledger.reserve(wanted)
    assert await ledger.loads() == {}

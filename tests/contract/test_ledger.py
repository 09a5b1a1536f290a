"""What every ledger promises: one suite over the one in memory, the one in Redis and the resilient one over Redis."""

import asyncio
from dataclasses import replace

import pytest
from support.ledgers import Fleet, ask, bid, is_conserved, known

from llmrouter.domain import Load, Reservation, Room
from llmrouter.errors import InvalidConfigError, InvalidRequestError
from router_grpc.adapters.redis_ledger import RedisLedger, redis_client
from router_grpc.ports import ReserveOutcome

pytest_plugins = ["support.redis_server", "support.ledger_fixtures"]

ONE = Load(requests=1, context_tokens=100, queued_prefill_tokens=100, remaining_decode_tokens=50.0)


async def test_a_reservation_is_committed_counted_and_found(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    result = await ledger.reserve(ask("r", bid("i"), bid("j")))

    expected = Reservation("r", "a", "i", prompt_tokens=100, predicted_output_tokens=50.0)
    assert result.outcome is ReserveOutcome.COMMITTED
    assert result.reservation == expected
    assert result.loads == {"i": ONE, "j": Load()}
    assert await ledger.find("r") == expected
    assert await ledger.loads() == {"i": ONE}


async def test_another_router_sees_it_at_once(fleet: Fleet) -> None:
    await fleet.router("a").reserve(ask("r", bid("i")))
    other = fleet.router("b")
    assert (await other.loads())["i"] == ONE
    assert (await known(other, ["r"]))[0].router_id == "a"


async def test_candidates_are_taken_in_order_within_the_tolerance(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    chosen = [(await ledger.reserve(ask(f"r{n}", bid("i"), bid("j")))).reservation for n in range(4)]
    assert [reservation.instance_id for reservation in chosen if reservation] == ["i", "i", "j", "j"]


async def test_a_candidate_that_was_seen_loaded_has_not_moved(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    for n in range(3):
        await ledger.reserve(ask(f"r{n}", bid("i"), tolerance=None))
    result = await ledger.reserve(ask("r", bid("i", seen=2), bid("j")))
    assert result.reservation is not None
    assert result.reservation.instance_id == "i"


async def test_all_moved_commits_nothing_and_tells_fresh_loads(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    await ledger.reserve(ask("r0", bid("i"), tolerance=None))
    result = await ledger.reserve(ask("r1", bid("i"), tolerance=0))
    assert (result.outcome, result.reservation) == (ReserveOutcome.MOVED, None)
    assert result.loads == {"i": ONE}
    assert await ledger.find("r1") is None


async def test_a_final_call_commits_what_gained_least(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    for n, instance_id in enumerate(["i"] * 4 + ["j"] * 3 + ["k"] * 3):
        await ledger.reserve(ask(f"r{n}", bid(instance_id), tolerance=None))
    result = await ledger.reserve(ask("r", bid("i"), bid("j"), bid("k"), final=True))
    assert result.reservation is not None
    assert result.reservation.instance_id == "j"  # j and k gained three: the better rank


async def test_a_final_call_keeps_the_order_within_the_tolerance(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    await ledger.reserve(ask("r0", bid("i"), tolerance=None))
    result = await ledger.reserve(ask("r", bid("i"), bid("j"), final=True))
    assert result.reservation is not None
    assert result.reservation.instance_id == "i"


async def test_without_tolerance_the_first_with_room_is_committed(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    room = Room(max_requests=2)
    chosen = [
        (await ledger.reserve(ask(f"r{n}", bid("i", room=room), bid("j", room=room), tolerance=None))).reservation
        for n in range(4)
    ]
    assert [reservation.instance_id for reservation in chosen if reservation] == ["i", "i", "j", "j"]


@pytest.mark.parametrize("final", [False, True])
async def test_no_room_is_full_even_finally(fleet: Fleet, *, final: bool) -> None:
    ledger = fleet.router("a")
    room = Room(max_requests=1)
    await ledger.reserve(ask("r0", bid("i", room=room)))
    result = await ledger.reserve(ask("r1", bid("i", room=room), final=final))
    assert (result.outcome, result.reservation) == (ReserveOutcome.FULL, None)
    assert result.loads == {"i": ONE}


async def test_a_candidate_without_room_is_passed_over_not_moved(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    full = Room(max_requests=1)
    await ledger.reserve(ask("r0", bid("i", room=full)))
    result = await ledger.reserve(ask("r1", bid("i", room=full), bid("j")))
    assert result.reservation is not None
    assert result.reservation.instance_id == "j"


async def test_no_candidates_is_full(fleet: Fleet) -> None:
    result = await fleet.router("a").reserve(ask("r", final=True))
    assert (result.outcome, result.reservation, dict(result.loads)) == (ReserveOutcome.FULL, None, {})


@pytest.mark.parametrize(("limit", "outcome"), [(215, ReserveOutcome.COMMITTED), (214, ReserveOutcome.FULL)])
async def test_kv_room_is_checked_where_it_is_committed(fleet: Fleet, limit: int, outcome: ReserveOutcome) -> None:
    ledger = fleet.router("a")
    room = Room(max_requests=10, kv_limit_tokens=limit, decode_reserve_fraction=0.15)
    await ledger.reserve(ask("r0", bid("i", room=room)))  # 100 + 100 + 0.15·(50 + 50) = 215
    assert (await ledger.reserve(ask("r1", bid("i", room=room)))).outcome is outcome


async def test_an_idle_instance_takes_what_is_larger_than_its_room(fleet: Fleet) -> None:
    room = Room(max_requests=1, kv_limit_tokens=10)
    result = await fleet.router("a").reserve(ask("r", bid("i", room=room), prompt_tokens=10**9))
    assert result.outcome is ReserveOutcome.COMMITTED


async def test_reserving_twice_repeats_the_answer(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    first = await ledger.reserve(ask("r", bid("i")))
    again = await ledger.reserve(ask("r", bid("j"), prompt_tokens=7))
    assert again.outcome is ReserveOutcome.EXISTING
    assert again.reservation == first.reservation
    assert again.loads == {"j": Load()}
    assert await ledger.loads() == {"i": ONE}


async def test_a_retry_at_another_router_moves_the_ownership(fleet: Fleet) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    await a.reserve(ask("r", bid("i")))
    retried = await b.reserve(ask("r", bid("i")))
    assert retried.outcome is ReserveOutcome.EXISTING
    assert retried.reservation is not None
    assert retried.reservation.router_id == "b"
    assert (await a.heartbeat(30), await b.heartbeat(30)) == (0, 1)
    assert await a.loads() == {"i": ONE}


async def test_progress_moves_work_from_prefill_to_decode(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    await ledger.reserve(ask("r", bid("i"), predicted_output_tokens=10.5))
    await ledger.progress("r", prefilled=True, generated_tokens=1)
    assert (await ledger.loads())["i"] == Load(1, 101, 0, 9.5)
    advanced = await ledger.progress("r", prefilled=True, generated_tokens=20)
    assert advanced == Reservation("r", "a", "i", 100, 10.5, prefilled=True, generated_tokens=20)
    assert (await ledger.loads())["i"] == Load(1, 120, 0, 0.0)


async def test_cached_tokens_are_context_that_nobody_waits_for(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    full = Room(max_requests=1)
    await ledger.reserve(ask("r0", bid("i", room=full)))
    await ledger.reserve(ask("r1", bid("i", room=full, cached=10), bid("j", cached=64)))
    assert (await ledger.loads())["j"] == Load(1, 100, 36, 50.0)
    (reserved,) = await known(ledger, ["r1"])
    assert reserved.cached_tokens == 64
    await ledger.progress("r1", prefilled=True, generated_tokens=1)
    assert (await ledger.loads())["j"] == Load(1, 101, 0, 49.0)
    await ledger.reconcile([reserved])
    assert (await known(ledger, ["r1"])) == [replace(reserved, prefilled=True, generated_tokens=1)]
    await ledger.release("r1")
    assert "j" not in await ledger.loads()


async def test_more_cached_than_there_is_waits_for_nothing(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    await ledger.reserve(ask("r", bid("i", cached=500)))
    assert (await ledger.loads())["i"] == Load(1, 100, 0, 50.0)


async def test_progress_never_goes_back(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    await ledger.reserve(ask("r", bid("i")))
    await ledger.progress("r", prefilled=True, generated_tokens=9)
    late = await ledger.progress("r", prefilled=False, generated_tokens=3)
    assert late is not None
    assert (late.prefilled, late.generated_tokens) == (True, 9)
    assert (await ledger.loads())["i"] == Load(1, 109, 0, 41.0)


async def test_progress_may_foretell_the_answer_anew(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    await ledger.reserve(ask("r", bid("i"), predicted_output_tokens=10.0))
    advanced = await ledger.progress("r", prefilled=True, generated_tokens=12, predicted_output_tokens=40.5)
    assert advanced is not None
    assert advanced.predicted_output_tokens == 40.5
    assert (await ledger.loads())["i"] == Load(1, 112, 0, 28.5)
    late = await ledger.progress("r", prefilled=True, generated_tokens=5, predicted_output_tokens=11.0)
    assert late == advanced
    await ledger.progress("r", prefilled=True, generated_tokens=12, predicted_output_tokens=12.0)
    assert (await ledger.loads())["i"] == Load(1, 112, 0, 0.0)
    await ledger.release("r")
    assert await ledger.loads() == {}


async def test_progress_makes_this_router_the_owner(fleet: Fleet) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    await a.reserve(ask("r", bid("i")))
    moved = await b.progress("r", prefilled=False, generated_tokens=0)
    assert moved is not None
    assert moved.router_id == "b"
    assert (await a.heartbeat(30), await b.heartbeat(30)) == (0, 1)


async def test_progress_of_the_unknown_is_none(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    assert await ledger.progress("r", prefilled=True, generated_tokens=3) is None
    assert await ledger.loads() == {}


async def test_release_gives_the_reservation_back_once(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    reserved = (await ledger.reserve(ask("r", bid("i")))).reservation
    assert await ledger.release("r") == reserved
    assert await ledger.release("r") is None
    assert await ledger.find("r") is None
    assert await ledger.loads() == {}


async def test_release_of_the_unknown_is_none(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    await ledger.reserve(ask("r", bid("i")))
    assert await ledger.release("never") is None
    assert await ledger.loads() == {"i": ONE}


async def test_two_routers_release_at_once_and_one_of_them_gets_it(fleet: Fleet) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    await a.reserve(ask("r", bid("i")))
    released = await asyncio.gather(a.release("r"), b.release("r"), a.release("r"), b.release("r"))
    assert sum(reservation is not None for reservation in released) == 1
    assert await a.loads() == {}


async def test_a_late_report_after_release_changes_nothing(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    await ledger.reserve(ask("r", bid("i")))
    await ledger.release("r")
    assert await ledger.progress("r", prefilled=True, generated_tokens=5) is None
    assert await ledger.loads() == {}


async def test_a_lost_router_with_100_reservations_leaves_no_load(fleet: Fleet) -> None:
    lost, alive = fleet.router("lost"), fleet.router("alive")
    await alive.heartbeat(30)
    for n in range(100):
        await lost.reserve(ask(f"r{n}", bid(f"i{n % 8}"), tolerance=None, predicted_output_tokens=n / 7))
    await alive.reserve(ask("kept", bid("i0"), tolerance=None))
    assert await lost.heartbeat(0) == 100

    assert await alive.expire() == {"lost": 100}
    assert await alive.loads() == {"i0": ONE}
    assert await alive.expire() == {}
    assert await known(alive, [f"r{n}" for n in range(100)]) == []


async def test_more_than_one_chunk_expires(fleet: Fleet) -> None:
    lost, alive = fleet.router("lost"), fleet.router("alive")
    await asyncio.gather(*(lost.reserve(ask(f"r{n}", bid("i"), tolerance=None)) for n in range(600)))
    await lost.heartbeat(0)
    assert await alive.expire() == {"lost": 600}
    assert await alive.loads() == {}


async def test_a_router_that_asks_is_alive_itself(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    await ledger.reserve(ask("r", bid("i")))
    await ledger.heartbeat(0)
    assert await ledger.expire() == {}
    assert await ledger.loads() == {"i": ONE}


async def test_living_routers_do_not_expire(fleet: Fleet) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    await a.heartbeat(30)
    await a.reserve(ask("r", bid("i")))
    assert await b.expire() == {}
    assert await b.loads() == {"i": ONE}


async def test_a_router_without_a_heartbeat_lives_for_a_while(fleet: Fleet) -> None:
    await fleet.router("a").reserve(ask("r", bid("i")))
    assert await fleet.router("b").expire() == {}


async def test_what_a_lost_router_handed_over_stays(fleet: Fleet) -> None:
    lost, alive = fleet.router("lost"), fleet.router("alive")
    await lost.reserve(ask("r", bid("i")))
    await alive.progress("r", prefilled=False, generated_tokens=0)
    await lost.heartbeat(0)
    assert await alive.expire() == {"lost": 0}
    assert await alive.loads() == {"i": ONE}


async def test_reconcile_drops_the_surplus_and_adds_the_missing(fleet: Fleet) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    for request_id in ("keep", "surplus"):
        await a.reserve(ask(request_id, bid("i"), tolerance=None))
    await b.reserve(ask("others", bid("i"), tolerance=None))
    kept = (await known(a, ["keep"]))[0]
    missing = Reservation("missing", "a", "j", 10, 1.234, prefilled=True, generated_tokens=1)

    assert await a.reconcile([kept, missing]) == frozenset()

    assert await known(b, ["keep", "surplus", "missing"]) == [kept, missing]
    assert await a.heartbeat(30) == 2
    assert await is_conserved(b, ["keep", "surplus", "missing", "others"])


async def test_reconcile_of_many_restores_all(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    own = [Reservation(f"r{n}", "a", f"i{n % 8}", n, n / 3) for n in range(700)]
    assert await ledger.reconcile(own) == frozenset()
    assert await ledger.heartbeat(30) == 700
    assert await is_conserved(ledger, [f"r{n}" for n in range(700)])
    await ledger.reconcile([])
    assert await ledger.loads() == {}


async def test_reconcile_does_not_go_back_in_progress(fleet: Fleet) -> None:
    ledger = fleet.router("a")
    await ledger.reserve(ask("r", bid("i")))
    old = (await known(ledger, ["r"]))[0]
    await ledger.progress("r", prefilled=True, generated_tokens=8)
    await ledger.reconcile([old])
    assert await ledger.find("r") == replace(old, prefilled=True, generated_tokens=8)


async def test_reconcile_leaves_what_another_router_took_over(fleet: Fleet) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    for request_id in ("moved", "moved and released", "released", "mine"):
        await a.reserve(ask(request_id, bid("i"), tolerance=None))
    own = await known(a, ["moved", "moved and released", "released", "mine"])
    await b.progress("moved", prefilled=True, generated_tokens=2)
    await b.progress("moved and released", prefilled=True, generated_tokens=2)
    await b.release("moved and released")
    await b.release("released")

    assert await a.reconcile(own) == {"moved", "moved and released", "released"}

    assert [reservation.request_id for reservation in await known(a, ["moved", "released", "mine"])] == [
        "moved",
        "mine",
    ]
    assert (await a.heartbeat(30), await b.heartbeat(30)) == (1, 1)


async def test_a_request_id_that_comes_back_is_a_new_reservation(fleet: Fleet) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    await a.reserve(ask("r", bid("i")))
    await b.release("r")
    again = (await a.reserve(ask("r", bid("j")))).reservation
    assert again is not None
    assert await a.reconcile([again]) == frozenset()
    assert await b.find("r") == again


async def test_a_request_id_that_comes_back_is_restored_like_any_other(fleet: Fleet) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    await a.reserve(ask("r", bid("i")))
    await b.release("r")
    again = (await a.reserve(ask("r", bid("j")))).reservation
    assert again is not None
    await a.heartbeat(0)
    assert await b.expire() == {"a": 1}
    assert await a.reconcile([again]) == frozenset()
    assert await b.find("r") == again


async def test_after_a_loss_the_first_living_router_to_restore_a_reservation_keeps_it(fleet: Fleet) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    await b.heartbeat(30)
    await b.reconcile([Reservation("r", "b", "i", 100, 50.0)])
    assert await a.reconcile([Reservation("r", "a", "i", 100, 50.0)]) == {"r"}
    assert (await known(a, ["r"]))[0].router_id == "b"


async def test_a_reservation_of_a_lapsed_router_is_taken_back(fleet: Fleet) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    await b.reconcile([Reservation("r", "b", "j", 100, 50.0)])
    await b.heartbeat(0)
    assert await a.reconcile([Reservation("r", "a", "i", 100, 50.0)]) == frozenset()
    assert await a.loads() == {"i": ONE}
    assert await a.expire() == {"b": 0}
    assert await b.reconcile([Reservation("r", "b", "j", 100, 50.0)]) == {"r"}
    await a.release("r")
    assert await b.reconcile([Reservation("r", "b", "j", 100, 50.0)]) == {"r"}


async def test_leaving_releases_everything_of_this_router(fleet: Fleet) -> None:
    a, b = fleet.router("a"), fleet.router("b")
    await asyncio.gather(*(a.reserve(ask(f"r{n}", bid("i"), tolerance=None)) for n in range(300)))
    await b.reserve(ask("others", bid("i"), tolerance=None))
    assert await a.leave() == 300
    assert await b.loads() == {"i": ONE}
    assert await a.leave() == 0


@pytest.mark.parametrize("tokens", [-1, 10**9 + 1, float("nan"), float("inf")])
async def test_token_counts_out_of_bounds_are_refused(fleet: Fleet, tokens: float) -> None:
    ledger = fleet.router("a")
    with pytest.raises(InvalidRequestError):
        await ledger.reserve(ask("r", bid("i"), predicted_output_tokens=tokens))
    assert await ledger.loads() == {}


@pytest.mark.parametrize("tokens", [-1, 10**9 + 1])
async def test_whole_token_counts_out_of_bounds_are_refused(fleet: Fleet, tokens: int) -> None:
    ledger = fleet.router("a")
    with pytest.raises(InvalidRequestError):
        await ledger.reserve(ask("r", bid("i"), prompt_tokens=tokens))
    await ledger.reserve(ask("r", bid("i")))
    with pytest.raises(InvalidRequestError):
        await ledger.progress("r", prefilled=True, generated_tokens=tokens)
    assert await ledger.loads() == {"i": ONE}


@pytest.mark.parametrize("word", ["", " ", "a b\n", "ключ", "{x}", "'\"\\", "*", "1 2 3 4"])
async def test_any_word_is_an_id(fleet: Fleet, word: str) -> None:
    ledger = fleet.router(f"router {word}")
    await ledger.reserve(ask(word, bid(word)))
    assert await ledger.loads() == {word: ONE}
    assert (await ledger.release(word)) == Reservation(word, f"router {word}", word, 100, 50.0)
    assert await ledger.loads() == {}


@pytest.mark.parametrize("namespace", ["", "a{b}", "x" * 300, "a b"])
async def test_a_namespace_that_breaks_keys_is_refused(namespace: str) -> None:
    with pytest.raises(InvalidConfigError):
        RedisLedger("a", redis_client("redis://127.0.0.1:1"), namespace, 1.0)


@pytest.mark.parametrize(
    "url", ["http://h:1", "h:1", "", "redis://:pa#ss@h:1", "redis://h:port", "redis://h:1?nonsense=1"]
)
async def test_a_url_that_is_not_of_redis_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InvalidConfigError, match="not a valid redis://") as refused:
        redis_client(url)
    assert "pa#ss" not in str(refused.value)

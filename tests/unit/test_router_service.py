"""What is admitted, where it goes, how it is held and how its report ends it. In memory, under the test's own clock."""

# ruff: noqa: ANN401 - keyword arguments are handed on to values that check them

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support.router_world import Bench, config_of, instances_of, until

from llmrouter.errors import InvalidRequestError, NoInstanceError, SaturatedError
from router_grpc.adapters.memory_ledger import MemoryBook, MemoryLedger
from router_grpc.calls import UnknownModelError
from router_grpc.reports import ReportKind

if TYPE_CHECKING:
    from router_grpc.ports import ReserveAsk, ReserveResult


@pytest.fixture
def bench() -> Bench:
    return Bench(config_of())


def small(**parts: Any) -> Bench:
    """One instance with room for one request."""
    return Bench(config_of("a:1", limits={"maxInFlightPerInstance": 1}, **parts))


async def joined(bench: Bench, count: int) -> None:
    await until(lambda: bench.service.held == count, what=f"{count} held")


@pytest.mark.parametrize("tokens", [0, -1, 10**9])
async def test_prompt_tokens_out_of_bounds_are_refused_with_field_and_bound(bench: Bench, tokens: int) -> None:
    with pytest.raises(InvalidRequestError, match=rf"prompt_tokens: {tokens} is not within 1 and 131072"):
        await bench.route(prompt_tokens=tokens)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_output_tokens": -1}, "max_output_tokens: -1 is not within 0"),
        ({"request_id": "x" * 129}, "request_id: 129 characters, more than 128"),
        ({"application": "x" * 65}, "application: 65 characters, more than 64"),
        ({"excluded_instance_ids": frozenset(map(str, range(65)))}, "excluded_instance_ids: 65 entries, more than 64"),
    ],
)
async def test_fields_out_of_bounds_are_named(bench: Bench, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        await bench.route(**fields)


async def test_an_unknown_model_is_named_and_cut_short(bench: Bench) -> None:
    with pytest.raises(UnknownModelError, match=r"no pool serves .m{128}."):
        await bench.route(model="m" * 100_000)


async def test_without_a_configuration_there_is_no_instance(bench: Bench) -> None:
    bench.service._runtime = None
    with pytest.raises(NoInstanceError):
        await bench.route()


async def test_a_repeated_request_has_one_reservation_and_the_same_answer(bench: Bench) -> None:
    first = await bench.route("r")
    again = [await bench.route("r") for _ in range(5)]
    assert {(answer.instance_id, answer.endpoint, answer.predicted_output_tokens) for answer in (first, *again)} == {
        (first.instance_id, first.endpoint, first.predicted_output_tokens)
    }
    assert sum(load.requests for load in (await bench.world.ledger.loads()).values()) == 1
    assert len(bench.world.open_requests) == 1


async def test_a_repeated_request_is_answered_though_all_is_full() -> None:
    bench = small()
    first = await bench.route("r")
    assert (await bench.route("r")).instance_id == first.instance_id
    assert bench.service.held == 0


async def test_a_repeated_request_is_answered_though_others_are_held() -> None:
    bench = small()
    first = await bench.route("r")
    waiting = asyncio.create_task(bench.route("w"))
    await joined(bench, 1)
    assert (await bench.route("r")).instance_id == first.instance_id
    assert bench.service.held == 1
    await bench.report("r")
    await waiting


async def test_the_same_request_held_twice_takes_one_place() -> None:
    bench = small()
    await bench.route("r")
    twins = [asyncio.create_task(bench.route("twin")) for _ in range(2)]
    await joined(bench, 2)
    await bench.report("r")
    assert {answer.instance_id for answer in await asyncio.gather(*twins)} == {"a:1"}
    assert (await bench.world.ledger.loads())["a:1"].requests == 1


async def test_excluded_instances_are_left_out(bench: Bench) -> None:
    answers = [await bench.route(excluded_instance_ids=frozenset({"a:1"})) for _ in range(3)]
    assert {answer.instance_id for answer in answers} == {"b:1"}
    with pytest.raises(NoInstanceError):
        await bench.route(excluded_instance_ids=frozenset({"a:1", "b:1"}))


async def test_a_repeated_request_moves_away_from_an_instance_that_failed_it(bench: Bench) -> None:
    first = await bench.route("r")
    second = await bench.route("r", excluded_instance_ids=frozenset({first.instance_id}))
    assert second.instance_id != first.instance_id
    assert {name: load.requests for name, load in (await bench.world.ledger.loads()).items()} == {second.instance_id: 1}


async def test_a_reservation_on_an_instance_that_is_gone_is_made_anew(bench: Bench) -> None:
    first = await bench.route("r")
    bench.instances.instances = tuple(i for i in bench.instances.instances if i.instance_id != first.instance_id)
    second = await bench.route("r")
    assert second.instance_id != first.instance_id
    assert {name: load.requests for name, load in (await bench.world.ledger.loads()).items()} == {second.instance_id: 1}


async def test_the_answer_names_policy_digest_reason_and_fallbacks(bench: Bench) -> None:
    answer = await bench.route("r", max_output_tokens=7)
    runtime = bench.service.runtime
    assert runtime is not None
    assert answer.policy == "LeastInFlight"
    assert answer.policy_digest == runtime.config.policy.digest == runtime.policy_digest
    assert "2 of 2 instances have room" in answer.reason
    assert len(answer.fallbacks) == 1
    assert answer.predicted_output_tokens == 7
    assert (answer.held_s, answer.degraded) == (0.0, False)


async def test_requests_spread_by_load(bench: Bench) -> None:
    answers = [await bench.route() for _ in range(8)]
    assert sorted(answer.instance_id for answer in answers) == ["a:1"] * 4 + ["b:1"] * 4


async def test_where_the_first_candidates_are_full_the_others_are_asked() -> None:
    """A replica that has seen nothing names 8 of 20 instances; only the last is not full."""
    endpoints = [f"i{n:02}:1" for n in range(20)]
    book = MemoryBook()
    config = config_of(*endpoints, limits={"maxInFlightPerInstance": 1})
    other, bench = Bench(config, book=book, router_id="r2"), Bench(config, book=book)
    taken = {(await other.route()).instance_id for _ in range(12)}
    bench.world.replica.replace({}, now_s=bench.clock())
    for _ in range(8):
        taken.add((await bench.route()).instance_id)
    assert taken == set(endpoints)


async def test_a_request_no_instance_serves_is_refused_at_once_though_others_are_held() -> None:
    bench = small()
    await bench.route("r")
    waiting = asyncio.create_task(bench.route("w"))
    await joined(bench, 1)
    bench.instances.instances = ()
    bench.service.kick()
    with pytest.raises(NoInstanceError):
        await waiting


async def test_held_requests_go_first_come_first_served_each_on_a_finish() -> None:
    bench = small()
    await bench.route("first")
    order: list[str] = []

    async def held(name: str) -> None:
        answer = await bench.route(name)
        order.append(name)
        assert answer.held_s > 0

    tasks = []
    for n in range(5):
        tasks.append(asyncio.create_task(held(f"h{n}")))
        await joined(bench, n + 1)
    await bench.report("first")
    for n in range(5):
        await until(lambda n=n: len(order) == n + 1)  # type: ignore[misc]
        assert bench.service.held == 4 - n
        await bench.report(f"h{n}")
    await asyncio.gather(*tasks)
    assert order == [f"h{n}" for n in range(5)]
    assert await bench.world.ledger.loads() == {}


async def test_whoever_comes_later_does_not_pass_the_line() -> None:
    bench = small()
    await bench.route("first")
    early = asyncio.create_task(bench.route("early"))
    await joined(bench, 1)
    await bench.world.ledger.release("first")  # room that nobody has told of
    bench.world.replica.replace({}, now_s=bench.clock())
    late = asyncio.create_task(bench.route("late"))
    await joined(bench, 2)
    bench.service.kick()
    assert (await early).instance_id == "a:1"
    assert not late.done()
    await bench.report("early")
    await late


async def test_the_wait_is_bounded_and_says_when_to_come_again() -> None:
    bench = small(policy={"hold": {"maxWaitSeconds": 0}})
    await bench.route("r")
    with pytest.raises(SaturatedError, match="none of 1 instances has room") as refusal:
        await bench.route("late")
    assert (refusal.value.reason, refusal.value.retry_after_s) == ("HoldTimeout", 1.0)
    assert bench.service.held == 0


async def test_the_clients_deadline_bounds_the_wait() -> None:
    bench = small()
    await bench.route("r")
    with pytest.raises(SaturatedError):
        await bench.route("late", deadline_s=bench.clock())
    assert bench.service.held == 0


async def test_a_policy_that_does_not_hold_refuses_at_once() -> None:
    bench = small(policy={"hold": {"enabled": False}})
    await bench.route("r")
    with pytest.raises(SaturatedError) as refusal:
        await bench.route("late")
    assert refusal.value.reason == "NoRoom"


async def test_a_full_line_refuses_at_once() -> None:
    bench = small(policy={"queue": {"maxDepth": 1}})
    await bench.route("r")
    waiting = asyncio.create_task(bench.route("w"))
    await joined(bench, 1)
    with pytest.raises(SaturatedError, match="maxDepth is 1") as refusal:
        await bench.route("x")
    assert refusal.value.reason == "QueueFull"
    await bench.report("r")
    await waiting


async def test_a_client_that_leaves_the_line_leaves_nothing() -> None:
    bench = small()
    await bench.route("r")
    tasks = [asyncio.create_task(bench.route(f"h{n}")) for n in range(3)]
    await joined(bench, 3)
    tasks[0].cancel()
    tasks[1].cancel()
    await joined(bench, 1)
    await bench.report("r")
    assert (await tasks[2]).instance_id == "a:1"
    await bench.report("h2")
    assert await bench.world.ledger.loads() == {}
    assert len(bench.world.open_requests) == 0


class SlowLedger(MemoryLedger):
    """Answers when the test lets it: what a network does."""

    is_immediate = False

    def __init__(self, book: MemoryBook) -> None:
        super().__init__("r1", book, lambda: 0.0)
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()

    async def reserve(self, ask: ReserveAsk) -> ReserveResult:
        result = await super().reserve(ask)
        self.asked.set()
        await self.gate.wait()
        return result

    async def release(self, request_id: str) -> Any:
        released = await super().release(request_id)
        self.asked.set()
        await self.gate.wait()
        return released

    async def progress(self, request_id: str, **fields: Any) -> Any:
        known = await super().progress(request_id, **fields)
        self.asked.set()
        await self.gate.wait()
        return known


async def test_a_client_that_leaves_while_it_is_reserved_for_leaves_nothing() -> None:
    ledger = SlowLedger(MemoryBook())
    bench = Bench(config_of(), ledger=ledger)
    task = asyncio.create_task(bench.route("r"))
    await ledger.asked.wait()
    assert len(await ledger.loads()) == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    ledger.gate.set()
    await bench.world.unbroken.settled()
    assert await ledger.loads() == {}
    assert len(bench.world.open_requests) == 0


async def test_a_repeat_that_is_cancelled_keeps_the_first_calls_reservation() -> None:
    ledger = SlowLedger(MemoryBook())
    ledger.gate.set()
    bench = Bench(config_of(), ledger=ledger)
    await bench.route("r")
    ledger.gate.clear()
    ledger.asked.clear()
    again = asyncio.create_task(bench.route("r"))
    await ledger.asked.wait()
    again.cancel()
    await asyncio.gather(again, return_exceptions=True)
    ledger.gate.set()
    await bench.world.unbroken.settled()
    assert len(await ledger.loads()) == 1
    assert "r" in bench.world.open_requests


async def test_a_finish_is_counted_though_its_stream_breaks_meanwhile() -> None:
    ledger = SlowLedger(MemoryBook())
    ledger.gate.set()
    bench = Bench(config_of(), ledger=ledger)
    await bench.route("r")
    ledger.gate.clear()
    ledger.asked.clear()
    stream = bench.reports.open_stream()
    report = asyncio.create_task(bench.report("r", stream_id=stream))
    await ledger.asked.wait()
    report.cancel()
    await asyncio.gather(report, return_exceptions=True)
    bench.reports.close_stream(stream)
    ledger.gate.set()
    await bench.world.unbroken.settled()
    assert await ledger.loads() == {}
    assert len(bench.world.open_requests) == 0
    assert bench.count("llmrouter_reports_total", kind="finished", known="true") == 1


async def test_an_event_that_outlives_its_stream_leaves_the_request_unattended() -> None:
    ledger = SlowLedger(MemoryBook())
    ledger.gate.set()
    bench = Bench(config_of(), ledger=ledger)
    await bench.route("r")
    ledger.gate.clear()
    ledger.asked.clear()
    stream = bench.reports.open_stream()
    report = asyncio.create_task(bench.report("r", ReportKind.FIRST_TOKEN, stream_id=stream))
    await ledger.asked.wait()
    report.cancel()
    await asyncio.gather(report, return_exceptions=True)
    bench.reports.close_stream(stream)
    ledger.gate.set()
    await bench.world.unbroken.settled()
    bench.clock.now_s += 6
    await bench.sweep()
    assert await ledger.loads() == {}


async def test_a_held_request_is_decided_by_the_policy_in_force_when_its_turn_comes() -> None:
    bench = small()
    await bench.route("r")
    waiting = asyncio.create_task(bench.route("w"))
    await joined(bench, 1)
    wider = config_of("a:1", policy={"type": "RoundRobin"}, limits={"maxInFlightPerInstance": 2})
    bench.put(wider)
    answer = await waiting
    assert answer.policy == "RoundRobin"
    assert answer.policy_digest == wider.policy.digest


async def test_a_swap_does_not_disturb_what_is_in_flight(bench: Bench) -> None:
    await bench.route("r")
    bench.put(config_of("a:1", "b:1", policy={"type": "Random"}))
    assert await bench.report("r")


async def test_degraded_power_of_two_decides_and_says_so(bench: Bench) -> None:
    bench.degraded = True
    answer = await bench.route()
    assert (answer.policy, answer.degraded) == ("PowerOfTwo", True)


def test_declared_endpoints_are_instances() -> None:
    assert [instance.endpoint for instance in instances_of(config_of("b:2", "a:1"))] == ["a:1", "b:2"]

"""How reports move a reservation and end it, and who lets go of what nobody reports. Under the test's own clock."""

# ruff: noqa: ANN401 - keyword arguments are handed on to values that check them

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.router_world import Bench, config_of, until

from llmrouter.domain import Load
from llmrouter.errors import InvalidRequestError
from router_grpc.adapters.memory_ledger import MemoryBook
from router_grpc.reports import ReportKind


@pytest.fixture
def bench() -> Bench:
    return Bench(config_of())


def small(**parts: Any) -> Bench:
    """One instance with room for one request."""
    return Bench(config_of("a:1", limits={"maxInFlightPerInstance": 1}, **parts))


async def joined(bench: Bench, count: int) -> None:
    await until(lambda: bench.service.held == count, what=f"{count} held")


async def test_first_token_progress_and_finish_change_the_load_by_the_formulas(bench: Bench) -> None:
    where = (await bench.route("r")).instance_id
    loads = bench.world.ledger.loads
    assert (await loads())[where] == Load(1, 100, 100, 100.0)
    assert await bench.report("r", ReportKind.STARTED)
    assert (await loads())[where] == Load(1, 100, 100, 100.0)
    assert await bench.report("r", ReportKind.FIRST_TOKEN)
    assert (await loads())[where] == Load(1, 100, 0, 100.0)
    assert await bench.report("r", ReportKind.PROGRESS, output_tokens=30)
    assert (await loads())[where] == Load(1, 130, 0, 70.0)
    assert await bench.report("r", ReportKind.PROGRESS, output_tokens=20)
    assert (await loads())[where] == Load(1, 130, 0, 70.0)
    assert await bench.report("r", ReportKind.PROGRESS, output_tokens=130)
    assert (await loads())[where] == Load(1, 230, 0, 1.0)  # one more at least, while it has not ended
    assert await bench.report("r", ReportKind.FINISHED, output_tokens=131)
    assert await loads() == {}
    assert bench.world.replica.load_of(where) == Load()


@pytest.mark.parametrize("kind", [ReportKind.FINISHED, ReportKind.FAILED, ReportKind.CANCELLED])
async def test_a_second_and_a_late_end_are_unknown(bench: Bench, kind: ReportKind) -> None:
    await bench.route("r")
    assert await bench.report("r", kind)
    assert not await bench.report("r", kind)
    assert not await bench.report("r", ReportKind.PROGRESS, output_tokens=3)
    assert await bench.world.ledger.loads() == {}
    assert len(bench.world.open_requests) == 0
    assert bench.count("llmrouter_reservations_total", event=kind.value) == 1


@pytest.mark.parametrize("kind", list(ReportKind))
async def test_an_unknown_reservation_is_said_so(bench: Bench, kind: ReportKind) -> None:
    assert not await bench.report("nobody", kind)
    assert bench.count("llmrouter_reports_total", kind=kind.value, known="false") == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": ReportKind.PROGRESS, "output_tokens": -1}, "output_tokens: -1"),
        ({"kind": ReportKind.PROGRESS, "output_tokens": 10**7 + 1}, "output_tokens"),
        ({"reason": "x" * 257}, "reason: longer"),
    ],
)
async def test_report_fields_out_of_bounds_are_named(bench: Bench, fields: dict[str, Any], message: str) -> None:
    await bench.route("r")
    with pytest.raises(InvalidRequestError, match=message):
        await bench.report("r", **fields)
    with pytest.raises(InvalidRequestError, match="request_id"):
        await bench.report("")
    with pytest.raises(InvalidRequestError, match="request_id"):
        await bench.report("x" * 129)
    assert await bench.report("r")


async def test_an_answer_longer_than_foretold_is_foretold_anew() -> None:
    bench = Bench(config_of(predictor={"type": "Applications", "deadlineMilliseconds": 100}))
    bench.world.lengths.start()
    answer = await bench.route("r")
    assert answer.law is not None
    expected, longest = answer.law.expected_tokens, answer.law.quantiles[-1]
    remaining = []
    for generated in (0.2 * expected, 0.9 * expected, 1.5 * expected, 1.5 * longest):
        await bench.report("r", ReportKind.PROGRESS, output_tokens=int(generated))
        remaining.append((await bench.world.ledger.loads())[answer.instance_id].remaining_decode_tokens)
    assert remaining[0] == pytest.approx(0.8 * expected, abs=1)
    assert remaining[1] == pytest.approx(answer.law.residual_tokens(int(0.9 * expected)), abs=1)
    assert min(remaining[1:]) > 0.1 * expected
    await bench.report("r", output_tokens=9)
    assert await bench.world.ledger.loads() == {}
    await bench.world.lengths.close()


@pytest.mark.parametrize("usage", [(-1, 10), (10**9, 10), (5, -1), (5, 10**12)])
async def test_usage_that_lies_ends_the_request_all_the_same(bench: Bench, usage: tuple[int, int]) -> None:
    await bench.route("r")
    assert await bench.report("r", output_tokens=usage[0], prompt_tokens=usage[1])
    assert await bench.world.ledger.loads() == {}


async def test_the_time_to_first_token_is_counted_once(bench: Bench) -> None:
    await bench.route("r")
    bench.clock.now_s += 2
    for _ in range(3):
        await bench.report("r", ReportKind.FIRST_TOKEN)
    assert bench.count("llmrouter_request_ttft_seconds_count") == 1
    assert bench.count("llmrouter_request_ttft_seconds_sum") == 2
    await bench.report("r", output_tokens=60)
    await bench.world.lengths.settled()
    assert bench.count("llmrouter_length_error_tokens_sum", bucket="0-250") == 40


async def test_a_broken_stream_is_forgiven_for_the_grace_and_no_longer(bench: Bench) -> None:
    await bench.route("r")
    stream = bench.reports.open_stream()
    await bench.report("r", ReportKind.FIRST_TOKEN, stream_id=stream)
    bench.clock.now_s += 1000  # however long, as long as the stream stands
    await bench.sweep()
    bench.reports.close_stream(stream)
    bench.clock.now_s += 5
    await bench.sweep()
    assert len(await bench.world.ledger.loads()) == 1
    bench.clock.now_s += 0.1
    await bench.sweep()
    assert await bench.world.ledger.loads() == {}
    assert bench.count("llmrouter_reservations_total", event="orphaned") == 1
    assert not await bench.report("r", ReportKind.PROGRESS)


async def test_another_stream_takes_the_request_over_in_time(bench: Bench) -> None:
    await bench.route("r")
    first = bench.reports.open_stream()
    await bench.report("r", ReportKind.STARTED, stream_id=first)
    bench.reports.close_stream(first)
    second = bench.reports.open_stream()
    await bench.report("r", ReportKind.PROGRESS, stream_id=second, output_tokens=5)
    bench.clock.now_s += 100
    await bench.sweep()
    assert await bench.report("r", stream_id=second)


async def test_another_router_that_took_the_request_over_keeps_it() -> None:
    book = MemoryBook()
    first, second = Bench(config_of(), book=book), Bench(config_of(), book=book, router_id="r2")
    await first.route("r")
    stream = first.reports.open_stream()
    await first.report("r", ReportKind.FIRST_TOKEN, stream_id=stream)
    first.reports.close_stream(stream)
    other = second.reports.open_stream()
    await second.report("r", ReportKind.PROGRESS, stream_id=other, output_tokens=5)
    first.clock.now_s += 100
    await first.sweep()
    assert len(book.reservations) == 1
    assert (len(first.world.open_requests), len(second.world.open_requests)) == (0, 1)
    assert await second.report("r", stream_id=other)
    assert book.loads() == {}


async def test_a_request_that_nobody_reports_is_given_up_after_the_claim_time(bench: Bench) -> None:
    await bench.route("r")
    bench.clock.now_s += 30
    await bench.sweep()
    assert len(await bench.world.ledger.loads()) == 1
    bench.clock.now_s += 0.1
    await bench.sweep()
    assert await bench.world.ledger.loads() == {}
    assert bench.count("llmrouter_reservations_total", event="unclaimed") == 1


async def test_a_repeated_call_begins_the_claim_time_anew(bench: Bench) -> None:
    await bench.route("r")
    bench.clock.now_s += 29
    await bench.route("r")
    bench.clock.now_s += 29
    await bench.sweep()
    assert len(await bench.world.ledger.loads()) == 1


async def test_giving_up_makes_room_for_the_held() -> None:
    bench = small()
    await bench.route("r")
    waiting = asyncio.create_task(bench.route("w"))
    await joined(bench, 1)
    bench.clock.now_s += 31
    lost = bench.world.open_requests.given_up(now_s=bench.clock(), claim_timeout_s=30, grace_s=5)
    await bench.reports.give_up(lost)
    assert (await waiting).instance_id == "a:1"

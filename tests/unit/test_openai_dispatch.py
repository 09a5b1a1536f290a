from __future__ import annotations

import math

import pytest
from support.router_world import MODEL, Bench, config_of

from llmrouter.errors import NoInstanceError
from router_grpc.calls import RouteAsk
from router_grpc.openai.answers import PartUsage
from router_grpc.openai.dispatch import Dispatch, FrontDesk
from router_grpc.openai.journey import Cause, EngineAnswer, InstanceFailedError
from router_grpc.reports import PROGRESS_TOKENS

ASK = RouteAsk(model=MODEL, prompt_tokens=100)
HISTOGRAMS = ("llmrouter_request_ttft_seconds_count", "llmrouter_request_e2e_seconds_count")


async def placed(bench: Bench, *, is_later: bool = False, streams: bool = True) -> tuple[FrontDesk, Dispatch]:
    desk = FrontDesk(bench.world, bench.service, bench.reports)
    return desk, await desk.place(ASK, is_later=is_later, streams=streams)


async def test_a_part_ends_once() -> None:
    bench = Bench(config_of("a:1"))
    _, dispatch = await placed(bench)
    assert len(bench.world.open_requests) == 1
    await dispatch.finished(PartUsage(5, 100, None), is_part=False)
    await dispatch.failed(InstanceFailedError(Cause.BROKEN, "late word"))
    await dispatch.cancelled("later still")
    assert len(bench.world.open_requests) == 0
    ends = ("finished", "failed", "cancelled")
    assert [bench.count("llmrouter_reservations_total", event=end) for end in ends] == [1, 0, 0]


async def test_times_and_lengths_are_those_of_answers_not_of_parts() -> None:
    bench = Bench(config_of("a:1"))
    for is_later in (False, True):
        _, dispatch = await placed(bench, is_later=is_later)
        await dispatch.advanced(1)
        await dispatch.advanced(2)
        await dispatch.finished(PartUsage(5, 100, None), is_part=True)
    assert [bench.count(name) for name in HISTOGRAMS] == [1, 0]
    desk, dispatch = await placed(bench)
    desk.taught(dispatch, output_tokens=10, prompt_tokens=None)
    await dispatch.finished(PartUsage(5, 100, None), is_part=True)
    assert bench.count(HISTOGRAMS[1]) == 1


async def test_progress_is_told_now_and_then() -> None:
    bench = Bench(config_of("a:1"))
    _, dispatch = await placed(bench)
    for tokens in range(1, 2 * PROGRESS_TOKENS + 2):
        await dispatch.advanced(tokens)
    assert bench.count("llmrouter_reports_total", kind="first_token", known="true") == 1
    assert bench.count("llmrouter_reports_total", kind="progress", known="true") == 2
    (reservation,) = bench.world.open_requests.reservations()
    assert reservation.generated_tokens == 2 * PROGRESS_TOKENS
    await dispatch.cancelled("enough")


async def test_a_late_move_is_no_failure_and_tells_how_late_the_instance_is() -> None:
    bench = Bench(config_of("a:1", "b:1"))
    _, dispatch = await placed(bench)
    told: list[float] = []
    note = bench.world.outliers.started

    def started(instance_id: str, request_id: str, late: float, *, now_s: float) -> bool:
        told.append(late)
        return note(instance_id, request_id, late, now_s=now_s)

    bench.world.outliers.started = started  # type: ignore[method-assign]
    bench.clock.now_s += 30.0
    await dispatch.failed(InstanceFailedError(Cause.LATE, "late"))
    assert told[0] > math.log(10)
    _, dispatch = await placed(bench)
    await dispatch.failed(InstanceFailedError(Cause.DRAINED, "left"))
    assert len(told) == 1
    assert bench.count("llmrouter_reservations_total", event="cancelled") == 2
    assert bench.count("llmrouter_reservations_total", event="failed") == 0


async def test_an_engines_refusal_is_not_held_against_it_but_its_failures_are() -> None:
    bench = Bench(config_of("a:1", "b:1"))
    refused = InstanceFailedError(Cause.REFUSED, "no", answer=EngineAnswer(400, {}, b""))
    for _ in range(8):
        _, dispatch = await placed(bench)
        await dispatch.failed(refused)
    assert bench.world.outliers.ejected == 0
    for _ in range(24):
        _, dispatch = await placed(bench)
        await dispatch.failed(InstanceFailedError(Cause.BROKEN, "broke"))
    assert bench.world.outliers.ejected == 1


async def test_what_finds_no_place_is_counted_and_leaves_nothing() -> None:
    bench = Bench(config_of("a:1"))
    bench.instances.instances = ()
    with pytest.raises(NoInstanceError):
        await placed(bench)
    assert bench.count("llmrouter_requests_total", outcome="NoInstance") == 1
    assert len(bench.world.open_requests) == 0
    assert len(bench.world.presuming) == 0

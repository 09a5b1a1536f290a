from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from support.routers import SharedReservations, TurnRouter, serving

from llmrouter.errors import InvalidInputError
from llmrouter.profiles import H100_MIX
from llmrouter.testbed.engine_server import EngineServer, EngineServerConfig
from llmrouter.testbed.measure import Outcome
from llmrouter.testbed.replay import ReplayPlan, Stretch, excerpt, fixed, main, parse_stretch, run
from llmrouter.testbed.replay_routers import wait_until
from llmrouter.testbed.trace import Trace, TraceRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MODEL = "m"


class Recorder:
    """Everything a replay emitted; hooks run when a stretch begins."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.progressed = asyncio.Event()

    def __call__(self, kind: str, values: dict[str, Any]) -> None:
        self.events.append((kind, values))
        if kind == "progress" and values["in_flight"]:
            self.progressed.set()

    @property
    def outcomes(self) -> list[Outcome]:
        return [Outcome.from_row(row) for kind, values in self.events if kind == "rows" for row in values["rows"]]

    @property
    def end(self) -> dict[str, Any]:
        return next(values for kind, values in self.events if kind == "end")


def steady_trace(count: int, *, gap_s: float = 0.02, output_tokens: int = 20) -> Trace:
    requests = tuple(TraceRequest(n * gap_s, "code", 100 + n, output_tokens) for n in range(count + 1))
    return Trace(requests, count * gap_s)


@pytest.fixture
async def engines() -> AsyncIterator[list[str]]:
    servers = [EngineServer(EngineServerConfig(profile=H100_MIX, model=MODEL)) for _ in range(2)]
    for server in servers:
        await server.start("127.0.0.1", 0)
    yield [f"127.0.0.1:{server.port}" for server in servers]
    for server in servers:
        await server.close()


async def replay(plan: ReplayPlan, addresses: list[str], trace: Trace, recorder: Recorder) -> None:
    await run(plan, resolve=fixed(addresses), trace=trace, emit=recorder)


async def test_requests_complete_and_their_usage_is_reported(engines: list[str]) -> None:
    ledger, recorder = SharedReservations(), Recorder()
    router = TurnRouter(engines, ledger)
    async with serving(router) as (address, _):
        plan = ReplayPlan(MODEL, 50.0, (Stretch("only", 0, 0.4),))
        await replay(plan, [address], steady_trace(20), recorder)
    assert [outcome.error for outcome in recorder.outcomes] == [""] * 20
    assert {outcome.output_tokens for outcome in recorder.outcomes} == {20}
    assert all(outcome.tpot_s and outcome.ttft_s and outcome.e2e_s for outcome in recorder.outcomes)
    assert sorted(request.prompt_tokens for request in router.routed) == list(range(100, 120))
    assert list(ledger.finished.values()) == [20] * 20
    assert recorder.end["reservations_left"] == 0
    assert recorder.end["reports_unknown"] == 0


async def test_a_refused_route_is_tried_once_at_another_router_under_the_same_id(engines: list[str]) -> None:
    ledger, recorder = SharedReservations(), Recorder()
    sick, well = TurnRouter(engines, ledger), TurnRouter(engines, ledger)
    sick.refuse = grpc.StatusCode.UNAVAILABLE
    async with serving(sick) as (first, _), serving(well) as (second, _):
        plan = ReplayPlan(MODEL, 50.0, (Stretch("only", 0, 0.2),))
        await replay(plan, [first, second], steady_trace(10), recorder)
    assert [outcome.error for outcome in recorder.outcomes] == [""] * 10
    assert sum(outcome.retries for outcome in recorder.outcomes) == len(sick.routed) > 0
    assert {request.request_id for request in sick.routed} <= {request.request_id for request in well.routed}


async def test_an_invalid_route_is_not_retried(engines: list[str]) -> None:
    ledger, recorder = SharedReservations(), Recorder()
    router = TurnRouter(engines, ledger)
    router.refuse = grpc.StatusCode.INVALID_ARGUMENT
    async with serving(router) as (address, _):
        await replay(ReplayPlan(MODEL, 50.0, (Stretch("only", 0, 0.02),)), [address], steady_trace(5), recorder)
    assert "INVALID_ARGUMENT" in recorder.outcomes[0].error
    assert len(router.routed) == 1


async def test_a_dead_instance_costs_one_retry_elsewhere(engines: list[str]) -> None:
    ledger, recorder = SharedReservations(), Recorder()
    router = TurnRouter([engines[0], "127.0.0.1:1"], ledger)
    async with serving(router) as (address, _):
        await replay(ReplayPlan(MODEL, 50.0, (Stretch("only", 0, 0.2),)), [address], steady_trace(10), recorder)
    assert [outcome.error for outcome in recorder.outcomes] == [""] * 10
    assert max(outcome.retries for outcome in recorder.outcomes) == 1
    assert sum(outcome.retries for outcome in recorder.outcomes) == len(ledger.failed)
    assert all(outcome.instance_id == engines[0] for outcome in recorder.outcomes)
    assert recorder.end["reservations_left"] == 0


async def test_reports_of_a_dead_router_move_to_another(engines: list[str]) -> None:
    ledger, recorder = SharedReservations(), Recorder()
    dying, surviving = TurnRouter(engines, ledger), TurnRouter(engines, ledger)
    async with AsyncExitStack() as stack:
        first, server = await stack.enter_async_context(serving(dying))
        second, _ = await stack.enter_async_context(serving(surviving))
        plan = ReplayPlan(MODEL, 50.0, (Stretch("only", 0, 0.2),))
        trace = steady_trace(10, output_tokens=200)
        running = asyncio.create_task(replay(plan, [first, second], trace, recorder))
        assert await wait_until(lambda: len(dying.routed) >= 3, timeout_s=10)
        await server.stop(None)
        await asyncio.wait_for(running, 60)
    assert [outcome.error for outcome in recorder.outcomes] == [""] * 10
    assert recorder.end["reservations_left"] == 0
    assert len(ledger.finished) == 10
    assert recorder.end["reports_moved"] > 0


async def test_a_policy_change_ends_a_stretch(engines: list[str]) -> None:
    ledger, recorder = SharedReservations(), Recorder()
    router = TurnRouter(engines, ledger)
    async with serving(router) as (address, _):
        plan = ReplayPlan(
            MODEL, 20.0, (Stretch("wait", 0, 60.0, ends_with_policy_change=True), Stretch("rest", 0, 0.2))
        )
        running = asyncio.create_task(replay(plan, [address], steady_trace(1300), recorder))
        await asyncio.wait_for(recorder.progressed.wait(), 10)
        router.policy = "second"
        await asyncio.wait_for(running, 30)
    assert {outcome.policy for outcome in recorder.outcomes if outcome.stretch == "rest"} == {"second"}


def test_an_excerpt_has_the_rate_and_the_order_of_the_trace() -> None:
    trace = Trace(tuple(TraceRequest(float(n * n), "code", n + 1, 5) for n in range(20)), 400.0)
    chosen = excerpt(trace, first_request=3, rate_rps=2.0, duration_s=5.0)
    assert [request.prompt_tokens for request in chosen] == list(range(4, 14))
    assert chosen[0].arrived_at_s == 0
    assert chosen[-1].arrived_at_s < 5.0
    assert chosen[1].arrived_at_s / chosen[2].arrived_at_s == pytest.approx((16 - 9) / (25 - 9))


def test_an_excerpt_past_the_end_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="more than the trace's 6"):
        excerpt(steady_trace(5), first_request=3, rate_rps=10.0, duration_s=1.0)


@pytest.mark.parametrize("text", ["", "a", "a:b:1", "a:0:0", "a:-1:5", "a:0:5:later", "a:0:1e9"])
def test_a_malformed_stretch_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="stretch"):
        parse_stretch(text)


@pytest.mark.parametrize(
    "arguments",
    [["--rate", "0"], ["--rate", "nan"], ["--rate", "1", "--stretch", "x"], ["--rate", "1", "--trace", "no"]],
)
def test_bad_options_end_with_one_line_and_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--router", "127.0.0.1:1", "--model", MODEL, *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1

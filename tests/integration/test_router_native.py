"""A composed router over its real gRPC listener: statuses, trailers, deadlines, streams, health, reflection, drain."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.router_world import PROFILE, LiveRouter, config_of, live_router, until

from router_grpc.v1 import router_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FULL = {"maxInFlightPerInstance": 1}


@pytest.fixture
async def live() -> AsyncIterator[LiveRouter]:
    """Two instances that nobody answers for: declared ones count as ready until they were looked for."""
    async with live_router(config_of("127.0.0.1:1", "127.0.0.1:2", limits={"scrapeIntervalSeconds": 60})) as live:
        yield live


async def refusal(live: LiveRouter, **fields: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await live.route(**fields)  # type: ignore[arg-type]
    return caught.value


def trailer(error: grpc.aio.AioRpcError, name: str) -> str:
    trailers: Any = error.trailing_metadata()
    return str(dict(trailers)[name])


async def in_flight(live: LiveRouter) -> int:
    loads = await live.router.app.world.ledger.loads()
    return sum(load.requests for load in loads.values())


@pytest.mark.parametrize("tokens", [0, -1, 10**9])
async def test_bad_prompt_tokens(live: LiveRouter, tokens: int) -> None:
    error = await refusal(live, prompt_tokens=tokens)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == f"prompt_tokens: {tokens} is not within 1 and 131072"
    assert trailer(error, "llmrouter-reason") == "InvalidRequest"
    assert live.count("llmrouter_requests_total", outcome="InvalidRequest") == 1


async def test_an_unknown_model(live: LiveRouter) -> None:
    error = await refusal(live, model="m" * 100_000)
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "no pool serves" in (error.details() or "")


async def test_no_instance_is_said_at_once(live: LiveRouter) -> None:
    error = await refusal(live, excluded_instance_ids=["127.0.0.1:1", "127.0.0.1:2"])
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_saturation_has_a_time_to_come_again() -> None:
    config = config_of("127.0.0.1:1", limits=FULL, policy={"hold": {"maxWaitSeconds": 0.05}})
    async with live_router(config) as live:
        await live.route("r")
        error = await refusal(live)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (trailer(error, "retry-after-ms"), trailer(error, "llmrouter-reason")) == ("1000", "HoldTimeout")
        assert await in_flight(live) == 1


async def test_a_client_that_cancels_leaves_the_line() -> None:
    async with live_router(config_of("127.0.0.1:1", limits=FULL)) as live:
        await live.route("r")
        call = live.stub.Route(pb.RouteRequest(model="llama", prompt_tokens=5, request_id="w"))
        held = asyncio.ensure_future(call)
        await until(lambda: live.router.app.service.held == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held
        await until(lambda: live.router.app.service.held == 0)
        assert await live.finish("r")
        assert await in_flight(live) == 0


async def test_a_clients_deadline_ends_the_wait() -> None:
    async with live_router(config_of("127.0.0.1:1", limits=FULL)) as live:
        await live.route("r")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await live.route("w", timeout_s=0.2)
        assert caught.value.code() in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
        await until(lambda: live.router.app.service.held == 0)
        assert await in_flight(live) == 1


async def test_a_finish_lets_the_held_go() -> None:
    async with live_router(config_of("127.0.0.1:1", limits=FULL)) as live:
        await live.route("r")
        waiting = asyncio.ensure_future(live.route("w"))
        await until(lambda: live.router.app.service.held == 1)
        assert await live.finish("r")
        answer = await waiting
        assert answer.held_seconds > 0
        assert live.count("llmrouter_held_seconds_count") == 2


async def test_the_same_request_id_twice(live: LiveRouter) -> None:
    first, second = await live.route("r"), await live.route("r")
    assert (first.instance_id, first.reservation_id) == (second.instance_id, second.reservation_id)
    assert await in_flight(live) == 1
    found = await live.stub.GetReservation(pb.GetReservationRequest(request_id="r"))
    assert (found.instance_id, found.router_id, found.prompt_tokens) == (first.instance_id, "r1", 100)


async def test_events_are_acknowledged_in_order(live: LiveRouter) -> None:
    await live.route("r")
    event = pb.ReportEvent
    got = await live.report(
        event(request_id="nobody", started=pb.Started()),
        event(request_id="r"),
        event(request_id="r", started=pb.Started()),
        event(request_id="r", first_token=pb.FirstToken()),
        event(request_id="r", progress=pb.Progress(output_tokens=-1)),
        event(request_id="r", progress=pb.Progress(output_tokens=7)),
        event(request_id="r", failed=pb.Failed(reason="x" * 257)),
        event(request_id="r", finished=pb.Finished(output_tokens=9, prompt_tokens=100)),
        event(request_id="r", finished=pb.Finished(output_tokens=9)),
        event(request_id="x" * 500, cancelled=pb.Cancelled()),
    )
    assert [acknowledgement.known for acknowledgement in got] == [
        *(False, False, True, True, False),
        *(True, False, True, False, False),
    ]
    assert got[1].error == "event: must be set"
    assert "output_tokens: -1" in got[4].error
    assert "reason" in got[6].error
    assert "request_id" in got[9].error
    assert await in_flight(live) == 0


async def test_a_finish_without_usage_says_nothing_of_the_length(live: LiveRouter) -> None:
    await live.route("r")
    assert await live.finish("r", output_tokens=0)
    assert live.count("llmrouter_length_error_tokens_count", bucket="0-250") == 0


async def test_a_stream_that_is_cut_leaves_its_requests_for_the_grace() -> None:
    config = config_of("127.0.0.1:1", limits={"reportGraceSeconds": 0.2}, state={"heartbeatSeconds": 0.1})
    async with live_router(config) as live:
        await live.route("r")
        stream = live.stub.Report()
        await stream.write(pb.ReportEvent(request_id="r", first_token=pb.FirstToken()))
        assert (await stream.read()).known
        stream.cancel()
        await until(lambda: live.count("llmrouter_reservations_total", event="orphaned") == 1)
        assert await in_flight(live) == 0


async def test_a_stream_cut_right_after_its_finish_still_counts() -> None:
    async with live_router(config_of("127.0.0.1:1", limits={"scrapeIntervalSeconds": 60})) as live:
        for n in range(50):
            await live.route(f"r{n}", max_output_tokens=1)
            stream = live.stub.Report()
            await stream.write(pb.ReportEvent(request_id=f"r{n}", finished=pb.Finished(output_tokens=1)))
            stream.cancel()
            await live.finish(f"r{n}")
        await live.router.app.world.unbroken.settled()
        assert await in_flight(live) == 0
        assert len(live.router.app.world.open_requests) == 0


async def test_the_snapshot_shows_loads(live: LiveRouter) -> None:
    answer = await live.route("r")
    snapshot = await live.stub.GetSnapshot(pb.GetSnapshotRequest())
    shown = {state.instance_id: state for state in snapshot.instances}
    assert shown[answer.instance_id].in_flight_requests == 1
    assert not shown[answer.instance_id].HasField("running")
    assert (snapshot.router_id, snapshot.deciding, snapshot.policy_digest) == (
        "r1",
        "LeastInFlight",
        answer.policy_digest,
    )


async def test_both_stages_are_told() -> None:
    pools = [
        {"name": role.lower(), "role": role, "endpoints": [endpoint], "profile": {"name": PROFILE}}
        for role, endpoint in (("Prefill", "127.0.0.1:1"), ("Decode", "127.0.0.1:2"))
    ]
    async with live_router(config_of(pools=pools, limits={"scrapeIntervalSeconds": 60})) as live:
        whole = await live.route("short", prompt_tokens=10)
        assert (whole.endpoint, whole.HasField("prefill")) == ("127.0.0.1:2", False)
        answer = await live.route("r", prompt_tokens=1_000)
        assert (answer.endpoint, answer.prefill.endpoint, answer.prefill.instance_id) == (
            "127.0.0.1:2",
            "127.0.0.1:1",
            "127.0.0.1:1",
        )
        found = await live.stub.GetReservation(pb.GetReservationRequest(request_id="r"))
        assert (found.instance_id, found.prefill_instance_id) == ("127.0.0.1:2", "127.0.0.1:1")
        snapshot = await live.stub.GetSnapshot(pb.GetSnapshotRequest())
        shown = {state.role: (state.in_flight_requests, state.queued_prefill_tokens) for state in snapshot.instances}
        assert shown == {"Prefill": (1, 1_000), "Decode": (2, 10)}
        for role, count in (("Prefill", 1), ("Decode", 1)):
            assert live.count("llmrouter_prompts_total", role=role) == count
        assert await live.finish("r")
        assert await live.finish("short")
        assert await in_flight(live) == 0


@pytest.mark.parametrize("name", ["", "readiness", "liveness", "llmrouter.v1.Router"])
async def test_health_is_served_by_name(live: LiveRouter, name: str) -> None:
    stub = health_pb2_grpc.HealthStub(live.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_the_service(live: LiveRouter) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(live.channel)
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    async for answer in stub.ServerReflectionInfo(asked):
        names = {service.name for service in answer.list_services_response.service}
        assert {"llmrouter.v1.Router", "grpc.health.v1.Health"} <= names


async def test_a_drain_says_so_first_and_lets_calls_end() -> None:
    config = config_of("127.0.0.1:1", limits=FULL)
    async with live_router(config, grace_s=5.0) as live:
        await live.route("r")
        waiting = asyncio.ensure_future(live.route("w"))
        await until(lambda: live.router.app.service.held == 1)
        health = health_pb2_grpc.HealthStub(live.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="readiness"))
        said = [(await watch.read()).status]
        drain = asyncio.create_task(live.router.app.drain(5.0))
        said.append((await watch.read()).status)
        assert said == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]
        assert not waiting.done()
        live.source.push(config_of("127.0.0.1:1", limits=FULL, policy={"type": "Random"}))
        await until(lambda: live.router.app.service.runtime.config.policy.type == "Random")  # type: ignore[union-attr]
        alive = await health.Check(health_pb2.HealthCheckRequest(service="liveness"))
        assert alive.status == health_pb2.HealthCheckResponse.SERVING
        assert not live.router.app.listener.is_ready
        assert await live.finish("r")
        assert (await waiting).instance_id == "127.0.0.1:1"
        watch.cancel()
        await drain

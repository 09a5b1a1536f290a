"""Composed routers over one real Redis: loads seen by all, take-overs, outages, and what is left at the end."""

# ruff: noqa: ANN401 - keyword arguments are handed on to values that check them

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from support.router_world import PROFILE, LiveRouter, config_of, live_router, until

from router_grpc.v1 import router_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llmrouter.config import RouterConfig
    from llmrouter.testbed.cluster.redis import RedisServer

pytest_plugins = ["support.redis_server"]

ENDPOINTS = tuple(f"127.0.0.1:{port}" for port in (1, 2, 3, 4))


def shared(
    server: RedisServer, *, endpoints: tuple[str, ...] = ENDPOINTS, pools: Any = None, **limits: Any
) -> RouterConfig:
    state = {
        "redis": {"address": f"127.0.0.1:{server.port}"},
        "heartbeatSeconds": 0.1,
        "heartbeatTimeoutSeconds": 2.0,
    }
    limits = {"maxInFlightPerInstance": 50, "scrapeIntervalSeconds": 60, "reportGraceSeconds": 0.5, **limits}
    parts = {"pools": pools} if pools else {}
    return config_of(*endpoints, state=state, limits=limits, **parts)


@asynccontextmanager
async def two_routers(config: RouterConfig) -> AsyncIterator[tuple[LiveRouter, LiveRouter]]:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(live_router(config, router_id="r1"))
        second = await stack.enter_async_context(live_router(config, router_id="r2"))
        yield first, second


async def in_flight(live: LiveRouter) -> int:
    loads = await live.router.app.world.ledger.loads()
    return sum(load.requests for load in loads.values())


async def test_two_routers_see_each_others_loads_and_act_as_one(redis_server: RedisServer) -> None:
    async with two_routers(shared(redis_server)) as (first, second):
        answers = await asyncio.gather(*(live.route() for live in (first, second) for _ in range(20)))
        counts = [sum(answer.instance_id == endpoint for answer in answers) for endpoint in ENDPOINTS]
        assert sum(counts) == 40
        assert max(counts) - min(counts) <= 4

        async def both_show_all() -> bool:
            snapshots = [await live.stub.GetSnapshot(pb.GetSnapshotRequest()) for live in (first, second)]
            return all(sum(i.in_flight_requests for i in shown.instances) == 40 for shown in snapshots)

        await until(both_show_all, what="both routers show all 40")
        for answer in answers:
            assert await second.finish(answer.request_id)
        assert await in_flight(first) == 0


async def test_a_request_repeated_at_the_other_router_keeps_its_instance(redis_server: RedisServer) -> None:
    async with two_routers(shared(redis_server, endpoints=ENDPOINTS[:1], maxInFlightPerInstance=1)) as (first, second):
        answer = await first.route("r")
        assert (await second.route("r")).instance_id == answer.instance_id  # though the instance is full
        assert await in_flight(first) == 1
        assert await second.finish("r")


async def test_the_other_router_takes_reports_over(redis_server: RedisServer) -> None:
    async with two_routers(shared(redis_server)) as (first, second):
        await first.route("r")
        one = first.stub.Report()
        await one.write(pb.ReportEvent(request_id="r", first_token=pb.FirstToken()))
        assert (await one.read()).known
        one.cancel()
        other = second.stub.Report()
        await other.write(pb.ReportEvent(request_id="r", progress=pb.Progress(output_tokens=5)))
        assert (await other.read()).known
        await until(lambda: len(first.router.app.world.open_requests) == 0, what="the first router lets go")
        found = await first.stub.GetReservation(pb.GetReservationRequest(request_id="r"))
        assert (found.router_id, found.generated_tokens) == ("r2", 5)
        assert first.count("llmrouter_reservations_total", event="orphaned") == 0
        await other.write(pb.ReportEvent(request_id="r", finished=pb.Finished(output_tokens=6)))
        assert (await other.read()).known
        await other.done_writing()
        assert await in_flight(first) == 0


async def test_a_held_request_goes_when_the_other_router_is_told_a_finish(redis_server: RedisServer) -> None:
    async with two_routers(shared(redis_server, endpoints=ENDPOINTS[:1], maxInFlightPerInstance=1)) as (first, second):
        await first.route("r")
        waiting = asyncio.ensure_future(second.route("w"))
        await until(lambda: second.router.app.service.held == 1)
        assert await first.finish("r")
        assert (await waiting).instance_id == ENDPOINTS[0]
        assert await first.finish("w")


async def test_a_drained_router_leaves_its_requests_to_be_taken_over(redis_server: RedisServer) -> None:
    async with AsyncExitStack() as stack:
        second = await stack.enter_async_context(live_router(shared(redis_server), router_id="r2"))
        async with live_router(shared(redis_server), router_id="r1") as first:
            await first.route("r")
            await first.route("left")
        assert await in_flight(second) == 2
        assert await second.finish("r")
        await until(lambda: second.count("llmrouter_reservations_total", event="expired") == 1, what="the other lapses")
        assert await in_flight(second) == 0


def in_stages(server: RedisServer) -> RouterConfig:
    """Two instances that compute prompts and two that decode, with room for two requests each."""
    pools = [
        {"name": role.lower(), "role": role, "endpoints": list(endpoints), "profile": {"name": PROFILE}}
        for role, endpoints in (("Prefill", ENDPOINTS[:2]), ("Decode", ENDPOINTS[2:]))
    ]
    return shared(server, pools=pools, maxInFlightPerInstance=2)


async def test_two_routers_fill_both_stages_and_no_more(redis_server: RedisServer) -> None:
    async with two_routers(in_stages(redis_server)) as (first, second):
        asked = [live.route(f"r{n}", prompt_tokens=1_000) for n, live in enumerate((first, second) * 2)]
        answers = await asyncio.gather(*asked)
        for chosen in ({*(one.instance_id for one in answers)}, {*(one.prefill.instance_id for one in answers)}):
            assert len(chosen) == 2
        assert await in_flight(first) == 8
        waiting = asyncio.ensure_future(second.route("w", prompt_tokens=1_000))
        await until(lambda: second.router.app.service.held == 1, what="no room for a fifth prompt")
        assert await first.finish("r1")
        assert (await waiting).prefill.endpoint in ENDPOINTS[:2]
        for name in ("r0", "r2", "r3", "w"):
            assert await second.finish(name)
        assert await in_flight(first) == 0


async def test_a_lost_router_leaves_neither_stage_and_a_taken_over_request_keeps_both(
    redis_server: RedisServer,
) -> None:
    async with AsyncExitStack() as stack:
        second = await stack.enter_async_context(live_router(in_stages(redis_server), router_id="r2"))
        async with live_router(in_stages(redis_server), router_id="r1") as first:
            for name in ("taken", "lost"):
                await first.route(name, prompt_tokens=1_000)
            other = second.stub.Report()
            await other.write(pb.ReportEvent(request_id="taken", started=pb.Started()))
            assert (await other.read()).known
        assert await in_flight(second) == 4
        await until(lambda: second.count("llmrouter_reservations_total", event="expired") == 1, what="the other lapses")
        assert await in_flight(second) == 2
        await other.write(pb.ReportEvent(request_id="taken", first_token=pb.FirstToken()))
        assert (await other.read()).known
        assert await in_flight(second) == 1
        await other.write(pb.ReportEvent(request_id="taken", finished=pb.Finished(output_tokens=6)))
        assert (await other.read()).known
        await other.done_writing()
        assert await in_flight(second) == 0


async def drive(live: LiveRouter, name: str, stop: asyncio.Event) -> int:
    """Requests one after the other, each reported to its end; raises where one fails."""
    done = 0
    while not stop.is_set():
        request_id = f"{name}-{done}"
        await live.route(request_id)
        await live.report(
            pb.ReportEvent(request_id=request_id, first_token=pb.FirstToken()),
            pb.ReportEvent(request_id=request_id, progress=pb.Progress(output_tokens=5)),
            pb.ReportEvent(request_id=request_id, finished=pb.Finished(output_tokens=9)),
        )
        done += 1
        await asyncio.sleep(0.01)
    return done


async def test_redis_gone_and_back_empty_under_load(redis_server: RedisServer) -> None:
    async with two_routers(shared(redis_server)) as routers:
        for live in routers:
            await live.route(f"long-{live.router.app.world.ledger.router_id}")
        stop = asyncio.Event()
        drivers = [asyncio.create_task(drive(live, f"{n}-{k}", stop)) for n, live in enumerate(routers) for k in (0, 1)]

        def acknowledged(*, ready: bool) -> bool:
            said = [live.acknowledgements[-1:] for live in routers]
            return all(last and last[0].state_backend_ready is ready for last in said)

        await until(lambda: acknowledged(ready=True), what="acknowledged ready")
        redis_server.stop()
        await until(lambda: acknowledged(ready=False), what="acknowledged not ready")
        degraded = await routers[0].route("degraded")
        assert (degraded.degraded, degraded.policy) == (True, "PowerOfTwo")
        assert routers[0].count("llmrouter_state_backend_up") == 0
        await asyncio.to_thread(redis_server.start)
        await until(lambda: acknowledged(ready=True), what="acknowledged ready again")
        stop.set()
        assert min(await asyncio.gather(*drivers)) > 0

        async def only_the_long_ones() -> bool:
            return [await in_flight(live) for live in routers] == [3, 3]

        await until(only_the_long_ones, what="what was in flight all the time, and nothing else")
        for live, request_id in zip((*routers, routers[0]), ("long-r1", "long-r2", "degraded"), strict=True):
            assert await live.finish(request_id)

        async def empty() -> bool:
            return await in_flight(routers[0]) == 0 and await in_flight(routers[1]) == 0

        await until(empty, what="loads return to zero")
        await until(lambda: all(live.count("llmrouter_state_backend_up") == 1 for live in routers), what="up again")
        for live in routers:
            await until(lambda live=live: len(live.router.app.world.open_requests) == 0, what="books empty")  # type: ignore[misc]


async def test_clients_that_cancel_in_a_storm_leave_nothing(redis_server: RedisServer) -> None:
    async with live_router(shared(redis_server, claimTimeoutSeconds=1)) as live:
        calls = [live.stub.Route(pb.RouteRequest(model="llama", prompt_tokens=5)) for _ in range(200)]
        waits = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        results = await asyncio.gather(*waits, return_exceptions=True)
        for answer in results:
            if isinstance(answer, pb.RouteResponse):
                await live.finish(answer.request_id)

        async def empty() -> bool:
            return await in_flight(live) == 0

        await until(empty, what="nothing left")

"""A composed router and simulated engines over real HTTP: what is scraped, what is foreign, who is ready."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
from support.router_world import config_of, live_router, until

from llmrouter.profiles import PROFILES
from llmrouter.testbed.engine_server import EngineServer, EngineServerConfig
from router_grpc.v1 import router_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.router_world import LiveRouter

ENGINE = EngineServerConfig(profile=PROFILES["llama-3.1-8b-rtx4090"], model="llama")
ENDLESS = {"prompt": 100, "max_tokens": 20_000, "ignore_eos": True, "stream": True}
OFTEN = {"scrapeIntervalSeconds": 0.1, "maxInFlightPerInstance": 2}


@asynccontextmanager
async def engine(port: int = 0) -> AsyncIterator[str]:
    """The endpoint of a simulated engine."""
    server = EngineServer(ENGINE)
    await server.start("127.0.0.1", port)
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        await server.close()


async def state_of(live: LiveRouter, endpoint: str) -> pb.InstanceState | None:
    snapshot = await live.stub.GetSnapshot(pb.GetSnapshotRequest())
    return next((state for state in snapshot.instances if state.instance_id == endpoint), None)


async def test_an_endpoint_that_is_gone_leaves_the_ready_set_and_comes_back() -> None:
    async with engine() as stays:
        async with engine() as goes, live_router(config_of(stays, goes, limits=OFTEN)) as live:

            async def scraped(endpoint: str) -> bool:
                state = await state_of(live, endpoint)
                return state is not None and state.HasField("running")

            await until(lambda: scraped(stays), what="first scraped")
            await until(lambda: scraped(goes), what="second scraped")

        async with live_router(config_of(stays, goes, limits=OFTEN)) as live:

            async def is_ready(endpoint: str) -> bool:
                return await state_of(live, endpoint) is not None

            async def is_gone() -> bool:
                return not await is_ready(goes)

            await until(is_gone, what="gone")
            assert (await live.route()).instance_id == stays
            assert live.count("llmrouter_scrape_failures_total", reason="Unreachable") >= 3
            async with engine(int(goes.rsplit(":", 1)[1])):
                await until(lambda: is_ready(goes), what="back")
                assert (await live.route()).instance_id == goes


async def test_foreign_load_fills_an_instance_and_its_end_lets_the_held_go() -> None:
    async with (
        engine() as endpoint,
        live_router(config_of(endpoint, limits=OFTEN)) as live,
        aiohttp.ClientSession() as session,
    ):
        calls = [await session.post(f"http://{endpoint}/v1/completions", json=ENDLESS) for _ in range(2)]
        view = live.router.app.service.snapshot

        await until(lambda: view().views[0].foreign.requests == 2, what="foreign load believed")
        waiting = asyncio.ensure_future(live.route("w"))
        await until(lambda: live.router.app.service.held == 1, what="held")
        for call in calls:
            call.close()
        assert (await waiting).held_seconds > 0


async def test_what_routers_dispatched_is_not_foreign() -> None:
    async with (
        engine() as endpoint,
        live_router(config_of(endpoint, limits={**OFTEN, "maxInFlightPerInstance": 50})) as live,
        aiohttp.ClientSession() as session,
    ):
        answers = [await live.route() for _ in range(3)]
        calls = [await session.post(f"http://{a.endpoint}/v1/completions", json=ENDLESS) for a in answers]

        async def scraped() -> bool:
            state = await state_of(live, endpoint)
            return state is not None and state.running == 3

        await until(scraped, what="the engine runs 3")
        seen: set[int] = set()
        for _ in range(5):
            seen.add(live.router.app.service.snapshot().views[0].foreign.requests)
            await live.router.app._scrape()
            await live.router.app._outside.scraper.settled()
        assert seen == {0}
        for call in calls:
            call.close()


async def test_gauges_show_instances_and_forget_those_that_are_gone() -> None:
    async with engine() as first, live_router(config_of(first, "127.0.0.1:1", limits=OFTEN)) as live:
        await live.route(excluded_instance_ids=["127.0.0.1:1"])

        def shown(endpoint: str) -> float | None:
            labels = {"pool": "main", "instance": endpoint}
            return live.router.registry.get_sample_value("llmrouter_in_flight_requests", labels)

        await until(lambda: shown(first) == 1, what="load shown")
        await until(lambda: shown("127.0.0.1:1") is None, what="unreachable instance no longer shown")
        assert live.count("llmrouter_instances", state="total") == 2
        assert live.count("llmrouter_instances", state="ready") == 1

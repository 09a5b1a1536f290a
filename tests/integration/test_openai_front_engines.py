"""The OpenAI front before simulated engines: many requests at once, engines that are killed, clients that leave."""

# ruff: noqa: ANN401 - fields of bodies and of resources

from __future__ import annotations

import asyncio
import json
import random
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from support.router_world import LiveRouter, config_of, live_router, until

from llmrouter.profiles import PROFILES
from llmrouter.testbed.engine_server import EngineServer, EngineServerConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PROFILE = "llama-3.1-8b-rtx4090"
STAY = {"claimTimeoutSeconds": 60, "reportGraceSeconds": 60}


@asynccontextmanager
async def served(
    engines: int, *, speed: float = 20.0, **openai: Any
) -> AsyncIterator[tuple[LiveRouter, list[EngineServer], aiohttp.ClientSession]]:
    """A front in mode Tokens before simulated engines, and a client of it."""
    async with AsyncExitStack() as stack:
        servers = []
        for _ in range(engines):
            server = EngineServer(EngineServerConfig(profile=PROFILES[PROFILE], model="llama", speed=speed))
            await server.start("127.0.0.1", 0)
            stack.push_async_callback(server.close)
            servers.append(server)
        pool = {
            "name": "main",
            "endpoints": [f"127.0.0.1:{server.port}" for server in servers],
            "profile": {"name": PROFILE},
            "continuesChat": True,
        }
        rules = {"resume": "Tokens", **openai}
        limits = {"maxInFlightPerInstance": 64, **STAY}
        config = config_of(pools=[pool], listeners={"openai": rules}, limits=limits)
        live = await stack.enter_async_context(live_router(config, openai_port=0))
        app = live.router.app
        assert app.front is not None
        session = aiohttp.ClientSession(f"http://127.0.0.1:{app.front.port}", connector=aiohttp.TCPConnector(limit=0))
        yield live, servers, await stack.enter_async_context(session)


def asked(session: aiohttp.ClientSession, tokens: int, *, chat: bool) -> Any:
    """A request for a stream of so many tokens."""
    prompt: dict[str, Any] = {"messages": [{"role": "user", "content": "x" * 80}]} if chat else {"prompt": "x" * 80}
    body = {"model": "llama", **prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    return session.post(path, json={**body, "stream_options": {"include_usage": True}})


async def stream(session: aiohttp.ClientSession, tokens: int, *, chat: bool) -> tuple[int, dict[str, int]]:
    """Tokens that came, and the usage that was said."""
    async with asked(session, tokens, chat=chat) as response:
        text = await response.text()
        assert response.status == 200, text
    *events, last, rest = text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    said = [json.loads(event.removeprefix("data: ")) for event in events]
    choices = [one["choices"][0] for one in said if one["choices"]]
    texts = [one.get("text") or one.get("delta", {}).get("content", "") for one in choices]
    assert len({one["id"] for one in said}) == 1
    return "".join(texts).count(" tok"), said[-1]["usage"]


async def nothing_is_left(live: LiveRouter) -> None:
    world = live.router.app.world
    await until(lambda: len(world.open_requests) == 0, what="no open request")
    await until(lambda: live.count("llmrouter_openai_open_requests") == 0, what="the front empty")
    assert await world.ledger.loads() == {}


@pytest.mark.parametrize("slice_tokens", [0, 16])
async def test_engines_are_killed_and_every_client_gets_each_token_once(slice_tokens: int) -> None:
    async with served(4, sliceTokens=slice_tokens, maxResumes=4) as (live, servers, session):
        lengths = [20 + 7 * index % 90 for index in range(40)]
        asking = [asyncio.create_task(stream(session, n, chat=n % 2 == 0)) for n in lengths]
        for doomed in servers[:2]:
            await until(lambda doomed=doomed: doomed.loop.counters.output_tokens_total > 60, what="tokens")  # type: ignore[misc]
            await doomed.die()
        answers = await asyncio.gather(*asking)
        assert [tokens for tokens, _ in answers] == lengths
        assert [usage["completion_tokens"] for _, usage in answers] == lengths
        assert {usage["prompt_tokens"] for _, usage in answers} == {20, 24}
        await nothing_is_left(live)
        causes = ("unreachable", "broken", "drained")
        assert sum(live.count("llmrouter_resumes_total", reason=cause) for cause in causes) > 0
        assert live.count("llmrouter_openai_requests_total", outcome="Whole") == len(lengths)
        if slice_tokens:
            slices = sum(live.count("llmrouter_slices_total", moved=moved) for moved in ("true", "false"))
            assert slices > len(lengths)


async def test_clients_that_leave_at_any_moment_leave_nothing_behind() -> None:
    rng = random.Random(7)
    async with served(3, sliceTokens=8) as (live, servers, session):

        async def impatient() -> None:
            patience_s = rng.uniform(0.0, 0.3)
            try:
                async with asyncio.timeout(patience_s):
                    await stream(session, 400, chat=True)
            except TimeoutError:
                pass

        async def sated() -> None:
            async with asked(session, 400, chat=True) as response:
                for _ in range(rng.randrange(20)):
                    await response.content.readuntil(b"\n\n")
                response.close()

        await asyncio.gather(*(leaves() for leaves in [impatient, sated] * 30))
        await nothing_is_left(live)
        await until(lambda: all(server.loop.in_flight == 0 for server in servers), what="engines empty")
        left = live.count("llmrouter_openai_requests_total", outcome="Left")
        whole = live.count("llmrouter_openai_requests_total", outcome="Whole")
        assert left > 0
        assert live.count("llmrouter_openai_requests_total", outcome="Failed") == 0
        assert left + whole <= 60

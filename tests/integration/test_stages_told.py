"""The instance that decodes is told who computes the prompt, and nobody else is: behind a stock Envoy, at the front."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from support.gateway import CHAT_PATH
from support.router_world import PROFILE, config_of, live_router, until

from llmrouter.testbed.cluster.processes import free_port
from llmrouter.testbed.envoy import bootstrap, start_envoy
from router_grpc.picker.headers import PREFILLER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.router_world import LiveRouter

ANSWER = {
    "choices": [{"message": {"role": "assistant", "content": "Hi"}}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 1},
}


@dataclass
class Engine:
    """An engine that answers everything alike and keeps what it was asked with."""

    port: int = 0
    headers: list[dict[str, str]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            await request.read()
            self.headers.append({name.lower(): value for name, value in request.headers.items()})
        return web.json_response(ANSWER)

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def serving(engine: Engine) -> AsyncIterator[Engine]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", engine.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    engine.port = runner.addresses[0][1]
    try:
        yield engine
    finally:
        await runner.cleanup()


def chat(words: int) -> dict[str, Any]:
    return {"model": "llama", "max_tokens": 3, "messages": [{"role": "user", "content": "word " * words}]}


@asynccontextmanager
async def staged(**settings: Any) -> AsyncIterator[tuple[LiveRouter, Engine, Engine]]:  # noqa: ANN401 - handed on
    """A router with an instance for each stage: the one that computes prompts, and the one that decodes."""
    parts: dict[str, Any] = {"listeners": {"openai": {}}} if "openai_port" in settings else {}
    async with serving(Engine()) as prefill, serving(Engine()) as decode:
        pools = [
            {"name": role.lower(), "role": role, "endpoints": [one.endpoint], "profile": {"name": PROFILE}}
            for role, one in (("Prefill", prefill), ("Decode", decode))
        ]
        async with live_router(config_of(pools=pools, **parts), **settings) as live:
            yield live, prefill, decode


async def check_told(url: str, live: LiveRouter, prefill: Engine, decode: Engine) -> None:
    """A long prompt and a short one arrive as they should at ``url``."""
    forged = {PREFILLER: "10.0.0.1:1"}
    async with aiohttp.ClientSession() as session:

        async def answers() -> bool:
            try:
                async with session.get(f"{url}/v1/models") as answer:
                    return answer.status == 200
            except aiohttp.ClientError:  # not listening yet
                return False

        await until(answers, what="the front and the instances are ready", within_s=30)
        for words in (2_000, 2):
            async with session.post(url + CHAT_PATH, json=chat(words), headers=forged) as answer:
                said = await answer.text()  # a client that leaves before the end is a cancelled request
                assert answer.status == 200, said
    assert [one.get(PREFILLER) for one in decode.headers] == [prefill.endpoint, None]
    assert prefill.headers == []
    await until(lambda: live.count("llmrouter_reservations_total", event="finished") == 2, what="both are over")
    assert await live.router.app.world.ledger.loads() == {}


@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "grpc"])
async def test_behind_envoy(tmp_path: Path, *, is_fast: bool) -> None:
    async with staged(ext_proc_port=0, ext_proc_is_fast=is_fast) as (live, prefill, decode):
        port = free_port()
        picker = f"127.0.0.1:{live.router.app.listener.ports['extProc.port']}"
        envoy = start_envoy(tmp_path, bootstrap(port=port, picker=picker, admin_port=free_port()))
        try:
            await check_told(f"http://127.0.0.1:{port}", live, prefill, decode)
        finally:
            envoy.stop()


async def test_at_the_openai_front() -> None:
    async with staged(openai_port=0) as (live, prefill, decode):
        front = live.router.app.front
        assert front is not None
        await check_told(f"http://127.0.0.1:{front.port}", live, prefill, decode)

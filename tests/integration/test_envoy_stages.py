"""Two stages behind a stock Envoy: the instance that decodes is told who computes the prompt, and nobody else is."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web
from support.gateway import CHAT_PATH
from support.router_world import PROFILE, config_of, live_router, until

from llmrouter.testbed.cluster.processes import free_port
from llmrouter.testbed.envoy import bootstrap, start_envoy
from router_grpc.picker.headers import PREFILLER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

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


async def test_the_instance_that_decodes_is_told_who_computes_the_prompt(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        prefill, decode = [await stack.enter_async_context(serving(Engine())) for _ in range(2)]
        pools = [
            {"name": role.lower(), "role": role, "endpoints": [one.endpoint], "profile": {"name": PROFILE}}
            for role, one in (("Prefill", prefill), ("Decode", decode))
        ]
        live = await stack.enter_async_context(live_router(config_of(pools=pools), ext_proc_port=0))
        port = free_port()
        picker = f"127.0.0.1:{live.router.app.listener.ports['extProc.port']}"
        envoy = start_envoy(tmp_path, bootstrap(port=port, picker=picker, admin_port=free_port()))
        stack.callback(envoy.stop)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        url = f"http://127.0.0.1:{port}"

        async def answers() -> bool:
            try:
                async with session.get(f"{url}/v1/models") as answer:
                    return answer.status == 200
            except aiohttp.ClientError:  # not listening yet
                return False

        await until(answers, what="Envoy and the instances are ready", within_s=30)
        forged = {PREFILLER: "10.0.0.1:1"}
        for words in (2_000, 2):
            async with session.post(url + CHAT_PATH, json=chat(words), headers=forged) as answer:
                assert answer.status == 200, await answer.text()
        assert [one.get(PREFILLER) for one in decode.headers] == [prefill.endpoint, None]
        assert prefill.headers == []
        await until(lambda: live.count("llmrouter_reservations_total", event="finished") == 2, what="both are over")
        assert await live.router.app.world.ledger.loads() == {}

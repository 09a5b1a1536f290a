"""The OpenAI front before clients and engines that break the rules; raw connections, no test asserts a time."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import pytest
from support.router_world import LiveRouter, config_of, live_router, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHAT = {"model": "llama", "messages": [{"role": "user", "content": "x"}], "max_tokens": 9, "stream": True}
STAY = {"claimTimeoutSeconds": 60, "reportGraceSeconds": 60}
GOOD = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
ENGINES = {
    "no HTTP": b"nonsense\r\n\r\n",
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\ncontent-ty",
    "a length that lies": HEAD + b"content-length: 99999\r\n\r\n" + GOOD,
    "chunks that lie": HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n" + GOOD,
    "no end": HEAD + b"connection: close\r\n\r\n" + GOOD,
    "a bomb of headers": HEAD + b"x: y\r\n" * 40_000 + b"\r\n",
    "wrong UTF-8": HEAD + b"connection: close\r\n\r\ndata: {\xff\xfe}\n\n" + GOOD,
    "no events": HEAD + b"connection: close\r\n\r\n" + b"x" * 100_000,
    "another type": b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{}",
}


@asynccontextmanager
async def served(answer: bytes) -> AsyncIterator[tuple[LiveRouter, int]]:
    """A front before two engines that answer every request with these bytes, and then leave; and its port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"POST"):
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # a scrape that was cut off
        finally:
            writer.close()

    servers = [await asyncio.start_server(handle, "127.0.0.1", 0) for _ in range(2)]
    try:
        endpoints = [f"127.0.0.1:{one.sockets[0].getsockname()[1]}" for one in servers]
        config = config_of(*endpoints, outliers={"consecutiveFailures": 0}, limits=STAY)
        async with live_router(config, openai_port=0) as live:
            front = live.router.app.front
            assert front is not None
            await until(lambda: len(live.router.app.world.instances.current()) == 2, what="instances")
            yield live, front.port
    finally:
        for one in servers:
            one.close()


async def nothing_is_left(live: LiveRouter) -> None:
    app = live.router.app
    await until(lambda: len(app.world.open_requests) == 0, what="no open request")
    await until(lambda: live.count("llmrouter_openai_open_requests") == 0, what="the front empty")
    assert await app.world.ledger.loads() == {}
    assert app.desk.intake.bytes == 0
    assert live.count("llmrouter_errors_total", part="openai") == 0


@pytest.mark.parametrize("kind", sorted(ENGINES))
async def test_engines_that_break_the_rules_are_told_of_and_leave_nothing(kind: str) -> None:
    async with served(ENGINES[kind]) as (live, port), aiohttp.ClientSession() as session:
        try:
            async with session.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=CHAT) as response:
                body = await response.read()
                assert response.status in (200, 502)
                if response.status == 502:
                    assert json.loads(body)["error"]["code"] == "InstanceFailed"
                else:
                    assert b"InstanceFailed" in body
                    assert b"[DONE]" not in body
        except aiohttp.ClientPayloadError:
            pass  # an answer that had begun, and could not say its end otherwise
        await nothing_is_left(live)
        failed = live.count("llmrouter_openai_requests_total", outcome="Failed")
        assert failed == 1


async def said(port: int, sent: bytes, *, pieces: int = 1 << 20, leaves: bool = False) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for at in range(0, len(sent), pieces):
            writer.write(sent[at : at + pieces])
            await writer.drain()
            await asyncio.sleep(0)
        if leaves:
            return b""
        async with asyncio.timeout(30):
            return await reader.read(4_096)
    finally:
        writer.close()


async def test_clients_that_break_the_rules_are_told_so_and_leave_nothing() -> None:
    async with served(b"") as (live, port):
        post = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
        assert b" 400 " in await said(port, b"nonsense\r\n\r\n")
        assert b" 400 " in await said(port, post + b"x-long: " + b"y" * 100_000 + b"\r\n\r\n")
        assert b" 400 " in await said(port, post + b"content-length: 3\r\n\r\n\xff\xfe\xfd")
        assert b" 400 " in await said(
            port, b"POST http://evil/v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
        )
        deep = b"[" * 100_000
        assert b" 400 " in await said(port, post + b"content-length: %d\r\n\r\n%b" % (len(deep), deep))
        body = json.dumps(CHAT).encode()
        slow = await said(port, post + b"content-length: %d\r\n\r\n%b" % (len(body), body), pieces=1)
        assert b" 502 " in slow
        await said(port, post + b"content-length: 9999\r\n\r\n{", leaves=True)
        await said(port, post + b"transfer-encoding: chunked\r\n\r\n5\r\n{", leaves=True)
        await nothing_is_left(live)

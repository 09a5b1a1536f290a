"""The fast listener on real sockets and on both event loops, before peers that mean no good."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from hpack import Encoder
from support.gateway import chat, request_body, request_headers, response_body, response_headers
from support.http2_peer import WIDE, data, message, request
from support.router_world import Bench, config_of, until

from router_grpc.http2 import frames as wire
from router_grpc.http2.frames import Code
from router_grpc.http2.limits import Limits
from router_grpc.listeners.ext_proc import METHOD, PICKER_NAME
from router_grpc.listeners.fast import FastServer
from router_grpc.picker.session import PickerDesk
from router_grpc.rates import Rate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from router_grpc.v1 import ext_proc_pb2 as pb

    Loops = Callable[[Coroutine[Any, Any, None]], None]

PATH = f"/{PICKER_NAME}/{METHOD}"
GREETING = wire.PREFACE + WIDE + wire.frame(wire.SETTINGS, wire.ACK, 0)


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Loops:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def within(test: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(test, 60))

    return within


@dataclass
class Listener:
    server: FastServer
    desk: PickerDesk
    bench: Bench
    port: int
    raws: list[Raw] = field(default_factory=list)

    def ended(self, reason: str) -> float:
        return self.bench.count("llmrouter_gateway_connections_ended_total", reason=reason)

    async def nothing_left(self) -> None:
        await until(lambda: not len(self.bench.world.open_requests), what="reservations released")
        await until(lambda: not self.desk._open, what="sessions over")
        await until(lambda: not self.desk.intake.bytes, what="bodies let go")
        assert self.bench.count("llmrouter_errors_total", part="listener") == 0


@asynccontextmanager
async def listening(limits: Limits | None = None) -> AsyncIterator[Listener]:
    bench = Bench(config_of("a:1", "b:1", limits={"maxInFlightPerInstance": 10_000, "maxPromptTokens": 10_000_000}))
    desk = PickerDesk(bench.world, bench.service, bench.reports)
    server = FastServer(desk, limits=limits)
    port = await server.listen("127.0.0.1", 0)
    listener = Listener(server, desk, bench, port)
    try:
        yield listener
    finally:
        for raw in listener.raws:
            raw.close()
            with suppress(ConnectionError):
                await raw.writer.wait_closed()
        await server.drain(0.1)
        await desk.settled()


class Raw:
    """A connection of bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._encoder = Encoder()
        self._encoder.header_table_size = 0
        self.data: dict[int, bytes] = {}
        self.over: dict[int, int] = {}
        self.goaway: int | None = None

    @classmethod
    async def to(cls, listener: Listener, greeting: bytes = GREETING) -> Raw:
        made = cls(*await asyncio.open_connection("127.0.0.1", listener.port))
        listener.raws.append(made)
        made.writer.write(greeting)
        return made

    def headers(self, stream_id: int, **changes: str) -> bytes:
        given = request(**{"path": PATH, **changes})
        return wire.frame(wire.HEADERS, wire.END_HEADERS, stream_id, self._encoder.encode(list(given.items())))

    async def say(self, sent: bytes) -> None:
        self.writer.write(sent)
        await self.writer.drain()

    async def hear(self) -> bool:
        """Takes the next frame; whether there was one."""
        try:
            upper, lower, kind, flags, stream_id = wire.HEAD.unpack(await self.reader.readexactly(wire.HEAD_BYTES))
            payload = await self.reader.readexactly(upper << 8 | lower)
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        if kind == wire.DATA:
            self.data[stream_id] = self.data.get(stream_id, b"") + payload
        elif kind == wire.RST_STREAM or (kind == wire.HEADERS and flags & wire.END_STREAM):
            self.over.setdefault(stream_id, kind)
        elif kind == wire.GOAWAY:
            self.goaway = struct.unpack(">LL", payload[:8])[1]
        return True

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert await self.hear(), "the connection ended"

    async def closed(self) -> None:
        while await self.hear():
            pass

    def close(self) -> None:
        self.writer.close()


def whole(*messages: pb.ProcessingRequest) -> bytes:
    return b"".join(message(one.SerializeToString()) for one in messages)


ASKED = whole(request_headers(), request_body(chat()))
ANSWERED = whole(response_headers(), response_body(b"{}", ends=True))


async def served(raw: Raw, stream_id: int) -> None:
    """A whole request on a stream."""
    await raw.say(raw.headers(stream_id) + data(stream_id, ASKED))
    await raw.until(lambda: stream_id in raw.data)
    await raw.say(data(stream_id, ANSWERED, ends=True))
    await raw.until(lambda: stream_id in raw.over)
    assert raw.over[stream_id] == wire.HEADERS


def test_bytes_may_come_one_by_one(run: Loops) -> None:
    async def test() -> None:
        async with listening() as listener:
            raw = await Raw.to(listener, b"")
            raw.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for one in GREETING + raw.headers(1) + data(1, ASKED):
                await raw.say(bytes((one,)))
                await asyncio.sleep(0)
            await raw.until(lambda: 1 in raw.data)
            await raw.say(data(1, ANSWERED, ends=True))
            await raw.until(lambda: 1 in raw.over)
            raw.close()
            await listener.nothing_left()
            await until(lambda: listener.ended("closed") == 1)

    run(test())


def test_a_gateway_that_reads_nothing_is_read_from_no_more(run: Loops) -> None:
    """It may say so much as a few windows and buffers hold; others are served; when it reads, all is there."""

    async def test() -> None:
        async with listening() as listener:
            raw = await Raw.to(listener)
            raw.writer.transport.set_write_buffer_limits(high=0)
            body = chat(messages=[{"role": "user", "content": "word " * 40_000}])
            asked = whole(request_headers(), *[request_body(body[at : at + 50_000], ends=at + 50_000 >= len(body))
                                               for at in range(0, len(body), 50_000)])  # fmt: skip
            sent = 0
            try:
                while sent < 500:
                    async with asyncio.timeout(2.0):
                        stream_id = 2 * sent + 1
                        await raw.say(raw.headers(stream_id) + data(stream_id, asked))
                        sent += 1
            except TimeoutError:
                sent += 1  # it is under way
            assert sent < 200, "there was no end to what it could say"
            other = await Raw.to(listener)
            await served(other, 1)
            other.close()
            listener_bytes = listener.desk.intake.bytes
            assert listener_bytes < 64 * 1024 * 1024
            reading = asyncio.create_task(raw.until(lambda: len(raw.data) == sent and complete(raw, len(body))))
            await raw.writer.drain()
            await asyncio.wait_for(reading, 30)
            raw.close()
            await listener.nothing_left()

    run(test())


def complete(raw: Raw, size: int) -> bool:
    return all(len(found) >= size for found in raw.data.values())


def test_windows_that_are_never_granted_keep_little_and_harm_nobody(run: Loops) -> None:
    async def test() -> None:
        async with listening() as listener:
            raw = await Raw.to(listener, wire.PREFACE + wire.settings({wire.INITIAL_WINDOW_SIZE: 0}))
            await raw.say(wire.frame(wire.SETTINGS, wire.ACK, 0))
            for stream_id in range(1, 101, 2):
                await raw.say(raw.headers(stream_id) + data(stream_id, ASKED))
            await until(lambda: len(listener.bench.world.open_requests) == 50, what="picked")
            other = await Raw.to(listener)
            await served(other, 1)
            other.close()
            assert 0 < listener.desk.intake.bytes < 50 * 2_000
            raw.close()
            await listener.nothing_left()

    run(test())


def test_a_storm_of_resets_leaves_nothing_and_ends_in_a_goaway(run: Loops) -> None:
    async def test() -> None:
        async with listening(Limits(resets=Rate(300, 0.0))) as listener:
            raw = await Raw.to(listener)
            await raw.say(raw.headers(1) + data(1, ASKED))
            for stream_id in range(3, 801, 2):
                await raw.say(raw.headers(stream_id) + data(stream_id, ASKED) + wire.rst_stream(stream_id, Code.CANCEL))
            await raw.until(lambda: raw.goaway == Code.NO_ERROR and 1 in raw.data)
            await raw.say(data(1, ANSWERED, ends=True))
            await raw.until(lambda: 1 in raw.over)
            await raw.say(wire.frame(wire.PING, wire.ACK, 0, b"drained?"))
            await raw.closed()
            await until(lambda: listener.ended("resets") == 1)
            await listener.nothing_left()

    run(test())


def test_requests_that_end_in_a_reset_as_envoy_does_are_no_storm(run: Loops) -> None:
    async def test() -> None:
        async with listening(Limits(resets=Rate(3, 0.0))) as listener:
            raw = await Raw.to(listener)
            for stream_id in range(1, 41, 2):
                await raw.say(raw.headers(stream_id) + data(stream_id, ASKED))
                await raw.until(lambda one=stream_id: one in raw.data)  # type: ignore[misc]
                before = len(raw.data[stream_id])
                await raw.say(data(stream_id, ANSWERED))
                await raw.until(lambda one=stream_id, size=before: len(raw.data[one]) > size)  # type: ignore[misc]
                await raw.say(wire.rst_stream(stream_id, Code.INTERNAL_ERROR))
            await served(raw, 41)
            assert raw.goaway is None
            await listener.nothing_left()

    run(test())


@pytest.mark.parametrize("at", ["headers", "body", "answer"])
def test_a_connection_that_breaks_gives_everything_back(run: Loops, at: str) -> None:
    async def test() -> None:
        async with listening() as listener:
            raw = await Raw.to(listener)
            for stream_id in range(1, 41, 2):
                asked = {"headers": whole(request_headers()), "body": ASKED[:-10], "answer": ASKED}[at]
                await raw.say(raw.headers(stream_id) + data(stream_id, asked))
            await until(lambda: len(listener.desk._open) == 20)
            raw.writer.transport.abort()
            await listener.nothing_left()

    run(test())


BAD: dict[str, Callable[[Raw], bytes]] = {
    "a header bomb": lambda _: wire.head(70_000, wire.HEADERS, wire.END_HEADERS, 3),
    "continuations without end": lambda _: (
        wire.frame(wire.HEADERS, 0, 3, b"") + 200 * wire.frame(wire.CONTINUATION, 0, 3, b"\x82" * 400)
    ),
    "pings without end": lambda _: 5_000 * wire.frame(wire.PING, 0, 0, b"12345678"),
    "settings without end": lambda _: 5_000 * wire.settings({}),
    "what is no frame": lambda _: b"\xff" * 100,
    "HTTP/1": lambda _: b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD)
def test_what_breaks_the_rules_ends_its_connection_alone(run: Loops, name: str) -> None:
    async def test() -> None:
        async with listening() as listener:
            good, bad = await Raw.to(listener), await Raw.to(listener)
            await good.say(good.headers(1) + data(1, ASKED))
            await good.until(lambda: 1 in good.data)
            await served(bad, 1)
            bad.writer.write(BAD[name](bad))
            await bad.closed()
            await good.say(data(1, ANSWERED, ends=True))
            await good.until(lambda: 1 in good.over)
            good.close()
            await listener.nothing_left()
            await until(lambda: listener.bench.count("llmrouter_gateway_connections") == 0)

    run(test())


def test_a_peer_that_says_nothing_is_let_go(run: Loops) -> None:
    async def test() -> None:
        async with listening(Limits(preface_s=0.1, keepalive_s=0.5, answer_s=0.5)) as listener:
            mute, silent = await Raw.to(listener, b""), await Raw.to(listener)
            await silent.say(silent.headers(1) + data(1, ASKED))
            await asyncio.wait_for(mute.closed(), 10)
            await asyncio.wait_for(silent.closed(), 10)
            await until(lambda: listener.ended("silent") == 2)
            await listener.nothing_left()

    run(test())


def test_connections_beyond_measure_are_refused(run: Loops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router_grpc.listeners.fast.MAX_CONNECTIONS", 2)

    async def test() -> None:
        async with listening() as listener:
            kept = [await Raw.to(listener) for _ in range(2)]
            for raw in kept:
                await served(raw, 1)
            refused = await Raw.to(listener)
            await asyncio.wait_for(refused.closed(), 5)
            assert listener.ended("refused") == 1
            kept[0].close()
            await until(lambda: listener.bench.count("llmrouter_gateway_connections") == 1)
            await served(await Raw.to(listener), 1)

    run(test())


def test_a_drain_waits_for_streams_and_tells_those_who_come(run: Loops) -> None:
    async def test() -> None:
        async with listening() as listener:
            raw, idle = await Raw.to(listener), await Raw.to(listener)
            await raw.say(raw.headers(1) + data(1, ASKED))
            await raw.until(lambda: 1 in raw.data)
            await served(idle, 1)
            drain = asyncio.create_task(listener.server.drain(20.0))
            await raw.until(lambda: raw.goaway == Code.NO_ERROR)
            for one in (raw, idle):
                await one.say(wire.frame(wire.PING, wire.ACK, 0, b"drained?"))
            await asyncio.wait_for(idle.closed(), 5)
            assert not drain.done()
            await raw.say(data(1, ANSWERED, ends=True))
            await raw.until(lambda: 1 in raw.over)
            await asyncio.wait_for(drain, 5)
            with pytest.raises(OSError, match=r"refused|Connect call failed"):
                await Raw.to(listener)
            await listener.nothing_left()

    run(test())


@pytest.mark.parametrize("seed", range(5))
def test_whatever_streams_do_nothing_is_left(run: Loops, seed: int) -> None:
    """Each goes as far as chance will have it: it ends, is reset, or goes down with its connection."""

    async def test() -> None:
        rng = random.Random(seed)
        async with listening() as listener:
            for _ in range(4):
                raw = await Raw.to(listener)
                steps: dict[int, int] = {}
                fresh = iter(range(1, 121, 2))
                while rng.random() > 0.002:
                    stream_id = next(fresh, 0) if not steps or rng.random() < 0.3 else rng.choice(list(steps))
                    if not stream_id:
                        break
                    step = steps.pop(stream_id, 0)
                    await raw.say(said(raw, stream_id, step))
                    if step + 1 == len(SAID) or rng.random() < 0.1:
                        await raw.say(wire.rst_stream(stream_id, Code.CANCEL))
                    else:
                        steps[stream_id] = step + 1
                if rng.random() < 0.5:
                    raw.writer.transport.abort()
                raw.close()
            await listener.nothing_left()
            assert sum(one.requests for one in (await listener.bench.world.ledger.loads()).values()) == 0

    run(test())


SAID = (whole(request_headers()), whole(request_body(chat())), whole(response_headers()),
        whole(response_body(b"{", ends=False)), whole(response_body(b"}", ends=True)))  # fmt: skip


def said(raw: Raw, stream_id: int, step: int) -> bytes:
    begins = raw.headers(stream_id) if step == 0 else b""
    return begins + data(stream_id, SAID[step], ends=step == len(SAID) - 1)

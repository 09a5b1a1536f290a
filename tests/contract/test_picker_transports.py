"""What holds over every transport of the endpoint picker, through the gRPC library's own client."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.gateway import chat, request_body, request_headers, response_body, response_headers
from support.router_world import config_of, live_router, until

from router_grpc.certificates import Tls
from router_grpc.listeners.ext_proc import METHOD, PICKER_NAME
from router_grpc.listeners.server import LIVENESS, NAMES_OF_READINESS
from router_grpc.picker.exchange import BODY_S
from router_grpc.v1 import ext_proc_pb2 as pb
from router_grpc.v1 import ext_proc_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.router_world import LiveRouter

STAY = {"scrapeIntervalSeconds": 60, "maxPromptTokens": 10_000_000}
EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]
OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


@dataclass
class Served:
    live: LiveRouter
    channel: grpc.aio.Channel
    calls: list[Any] = field(default_factory=list)

    def stream(self, **options: Any) -> Any:  # noqa: ANN401 - grpc's own
        self.calls.append(pb_grpc.ExternalProcessorStub(self.channel).Process(**options))  # type: ignore[no-untyped-call]
        return self.calls[-1]

    def raw(self, path: str = f"/{PICKER_NAME}/{METHOD}") -> Any:  # noqa: ANN401 - messages as bytes
        opened: Any = self.channel.stream_stream
        self.calls.append(opened(path)())
        return self.calls[-1]

    @property
    def in_flight(self) -> int:
        return len(self.live.router.app.world.open_requests)

    def cancel(self) -> None:
        for call in self.calls:
            call.cancel()

    async def nothing_left(self) -> None:
        await until(lambda: not self.in_flight, what="reservations released")
        self.cancel()
        desk = self.live.router.app.desk
        await until(lambda: not desk._open, what="sessions over")
        await until(lambda: not desk.intake.bytes, what="bodies let go")


@asynccontextmanager
async def serving(*, is_fast: bool, is_tls: bool = False, **parts: Any) -> AsyncIterator[Served]:  # noqa: ANN401
    config = config_of("127.0.0.1:1", "127.0.0.2:1", **{"limits": {**STAY, "maxInFlightPerInstance": 100}, **parts})
    tls = Tls(("localhost",)) if is_tls else None
    async with live_router(config, ext_proc_port=0, ext_proc_is_fast=is_fast, tls=tls, grace_s=5.0) as live:
        address = f"127.0.0.1:{live.router.app.listener.ports['extProc.port']}"
        certificates = live.router.app._outside.certificates
        if certificates is None:
            made = grpc.aio.insecure_channel(address, options=OPTIONS)
        else:
            trusted = grpc.ssl_channel_credentials(certificates.current.chain)
            options = (*OPTIONS, ("grpc.ssl_target_name_override", "localhost"))
            made = grpc.aio.secure_channel(address, trusted, options=options)
        async with made as channel:
            yield Served(live, channel)
        assert live.count("llmrouter_errors_total", part="listener") == 0


@pytest.fixture(params=["fast", "fast over TLS", "grpc", "grpc over TLS"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    async with serving(is_fast=request.param.startswith("fast"), is_tls=request.param.endswith("TLS")) as found:
        yield found


async def picked(stream: Any, body: bytes, *, chunk: int = 60_000) -> bytes:  # noqa: ANN401
    """Sends a request; the body that goes on."""
    await stream.write(request_headers())
    parts = [body[at : at + chunk] for at in range(0, len(body), chunk)]
    for place, part in enumerate(parts, start=1):
        await stream.write(request_body(part, ends=place == len(parts)))
    answer = await stream.read()
    assert answer.WhichOneof("response") == "request_headers", answer
    echoed: bytes = b""
    while True:
        part = (await stream.read()).request_body.response.body_mutation.streamed_response
        echoed += part.body
        if part.end_of_stream:
            break
    return echoed


async def answered(stream: Any, *bodies: bytes) -> list[bytes]:  # noqa: ANN401
    """Plays an answer in pieces; the pieces that go on."""
    await stream.write(response_headers())
    assert (await stream.read()).WhichOneof("response") == "response_headers"
    found = []
    for place, body in enumerate(bodies, start=1):
        await stream.write(response_body(body, ends=place == len(bodies)))
        found.append((await stream.read()).response_body.response.body_mutation.streamed_response.body)
    return found


async def test_a_request_is_taken_from_its_beginning_to_its_end(served: Served) -> None:
    stream = served.stream()
    assert await picked(stream, chat()) == chat()
    assert served.in_flight == 1
    usage = b'{"usage": {"prompt_tokens": 5, "completion_tokens": 7}}'
    assert await answered(stream, usage[:20], usage[20:]) == [usage[:20], usage[20:]]
    await stream.done_writing()
    assert await stream.read() is EOF
    assert await stream.code() is grpc.StatusCode.OK
    await served.nothing_left()
    assert served.live.count("llmrouter_reservations_total", event="finished") == 1


async def test_nine_megabytes_pass_in_both_directions(served: Served) -> None:
    body = chat(messages=[{"role": "user", "content": "word " * 1_800_000}])
    stream = served.stream()
    assert await picked(stream, body, chunk=1_000_000) == body
    answer = bytes(range(256)) * 200
    assert await answered(stream, *[answer] * 180) == [answer] * 180
    await served.nothing_left()


async def test_many_bodies_pass_at_a_time(served: Served) -> None:
    async def one(number: int) -> None:
        body = chat(messages=[{"role": "user", "content": f"{number} " * 100_000}])
        stream = served.stream()
        assert await picked(stream, body) == body
        assert await answered(stream, body[:50_000], body[50_000:100_000]) == [body[:50_000], body[50_000:100_000]]

    await asyncio.gather(*[one(number) for number in range(40)])
    await served.nothing_left()


async def test_a_piece_that_is_longer_than_gateways_take_goes_on_in_several(served: Served) -> None:
    stream = served.stream()
    await picked(stream, chat())
    await stream.write(response_headers())
    await stream.read()
    body = b"z" * 150_000
    await stream.write(response_body(body, ends=True))
    pieces = [(await stream.read()).response_body.response.body_mutation.streamed_response for _ in range(3)]
    assert b"".join(piece.body for piece in pieces) == body
    assert [piece.end_of_stream for piece in pieces] == [False, False, True]


@pytest.mark.parametrize("phase", ["headers", "body", "picked", "answer"])
async def test_a_stream_that_is_cancelled_gives_back_what_it_had(served: Served, phase: str) -> None:
    stream = served.stream()
    await stream.write(request_headers())
    if phase == "body":
        await stream.write(request_body(chat()[:10], ends=False))
    elif phase != "headers":
        await stream.write(request_body(chat()))
        assert (await stream.read()).WhichOneof("response") == "request_headers"
        assert served.in_flight == 1
    if phase == "answer":
        await stream.write(response_headers(content_type="text/event-stream"))
        await stream.read()
        assert (await stream.read()) is not None
    stream.cancel()
    await served.nothing_left()


async def test_a_connection_that_is_gone_gives_back_what_its_streams_had(served: Served) -> None:
    streams = [served.stream() for _ in range(10)]
    for stream in streams:
        await picked(stream, chat())
    assert served.in_flight == 10
    await served.channel.close(None)
    await served.nothing_left()


async def test_a_gateway_that_ends_early_is_answered_well(served: Served) -> None:
    stream = served.stream()
    await picked(stream, chat())
    await stream.done_writing()
    assert await stream.code() is grpc.StatusCode.OK
    await served.nothing_left()


async def test_a_call_of_no_message_ends_well(served: Served) -> None:
    stream = served.stream()
    await stream.done_writing()
    assert await stream.code() is grpc.StatusCode.OK


async def test_what_is_no_message_ends_its_stream_and_no_other(served: Served) -> None:
    good, bad = served.stream(), served.raw()
    assert await picked(good, chat()) == chat()
    await bad.write(b"\xff\xff\xff")
    assert await bad.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await answered(good, b"{}") == [b"{}"]
    await served.nothing_left()


async def test_a_message_that_cannot_come_now_ends_its_stream(served: Served) -> None:
    stream = served.stream()
    await stream.write(response_headers())
    assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "response_headers" in await stream.details()


async def test_a_message_that_is_too_long_ends_its_stream_and_no_other(served: Served) -> None:
    good, bad = served.stream(), served.raw()
    assert await picked(good, chat()) == chat()
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
        await bad.write(bytes(20 * 1024 * 1024))  # it may end while it is written
    assert await bad.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await answered(good, b"{}") == [b"{}"]
    await served.nothing_left()


async def test_a_body_that_is_too_long_is_answered_413(served: Served) -> None:
    stream = served.stream()
    await stream.write(request_headers())
    for _ in range(17):
        await stream.write(request_body(bytes(1024 * 1024), ends=False))
    answer = await stream.read()
    assert answer.immediate_response.status.code == 413
    await served.nothing_left()


async def test_a_body_that_never_ends_is_answered_408(served: Served) -> None:
    stream = served.stream()
    await stream.write(request_headers())
    await stream.write(request_body(b"{", ends=False))
    desk = served.live.router.app.desk
    await until(lambda: desk.intake.bytes == 1, what="the body has begun")
    for session in desk._open:
        desk._open[session] -= BODY_S
    desk.sweep()
    assert (await stream.read()).immediate_response.status.code == 408
    await served.nothing_left()


@pytest.fixture(params=["fast", "grpc"])
async def full(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Served, Any, Any]]:
    """A router whose two places are taken, by streams, and one more stream whose request is held."""
    limits = {**STAY, "maxInFlightPerInstance": 1}
    async with serving(is_fast=request.param == "fast", limits=limits) as found:
        taken = [found.stream() for _ in range(2)]
        for stream in taken:
            await picked(stream, chat())
        held = found.stream()
        await held.write(request_headers())
        await held.write(request_body(chat()))
        await until(lambda: found.live.router.app.service.held == 1, what="held")
        yield found, taken[0], held


async def test_a_request_that_is_held_is_answered_when_there_is_room(full: tuple[Served, Any, Any]) -> None:
    served, taken, held = full
    taken.cancel()
    assert (await held.read()).WhichOneof("response") == "request_headers"
    await held.read()
    assert await answered(held, b"{}") == [b"{}"]
    served.cancel()
    await served.nothing_left()


async def test_a_request_that_is_held_leaves_the_line_with_its_stream(full: tuple[Served, Any, Any]) -> None:
    served, _, held = full
    held.cancel()
    await until(lambda: not served.live.router.app.service.held, what="it has left the line")
    assert served.in_flight == 2
    served.cancel()
    await served.nothing_left()


async def test_what_comes_while_a_request_is_held_waits(full: tuple[Served, Any, Any]) -> None:
    """The end of the stream is what comes here: it is heard after the answer, and the place is given back."""
    served, taken, held = full
    await held.done_writing()
    await asyncio.sleep(0.05)
    assert served.live.router.app.service.held == 1
    taken.cancel()
    kinds = [(await held.read()).WhichOneof("response") for _ in range(2)]
    assert kinds == ["request_headers", "request_body"]
    assert await held.read() is EOF
    assert await held.code() is grpc.StatusCode.OK
    served.cancel()
    await served.nothing_left()


async def test_compressed_messages_are_read_or_refused(served: Served) -> None:
    """None is lost without a word: a gateway that compresses hears of it."""
    stream = served.stream(compression=grpc.Compression.Gzip)
    await stream.write(request_headers(headers={"long": "x" * 5_000}, ends=True, method="GET"))
    try:
        answer = await stream.read()
    except grpc.aio.AioRpcError:
        answer = None
    if not isinstance(answer, pb.ProcessingResponse):
        assert await stream.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("path", ["/no.such.Service/Method", f"/{PICKER_NAME}/Other"])
async def test_an_unknown_method_is_unimplemented(served: Served, path: str) -> None:
    call = served.raw(path)
    assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_health_is_asked_for_by_every_name(served: Served) -> None:
    stub = health_pb2_grpc.HealthStub(served.channel)
    for name in (*NAMES_OF_READINESS, LIVENESS):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, name
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await stub.Check(health_pb2.HealthCheckRequest(service="no.such"), timeout=5)
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_is_watched(served: Served) -> None:
    stub = health_pb2_grpc.HealthStub(served.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="readiness"))
    unknown = stub.Watch(health_pb2.HealthCheckRequest(service="no.such"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    await served.live.router.app.listener.retire()
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    alive = await stub.Check(health_pb2.HealthCheckRequest(service=LIVENESS), timeout=5)
    assert alive.status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    unknown.cancel()


@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "grpc"])
async def test_a_drain_lets_streams_end_and_takes_no_new_connection(is_fast: bool) -> None:  # noqa: FBT001
    async with serving(is_fast=is_fast) as served:
        stream = served.stream()
        await picked(stream, chat())
        listener = served.live.router.app.listener
        drain = asyncio.create_task(listener.drain(10.0))
        await asyncio.sleep(0.1)
        assert not drain.done()
        assert await answered(stream, b"{", b"}") == [b"{", b"}"]
        await stream.done_writing()
        assert await stream.code() is grpc.StatusCode.OK
        await asyncio.wait_for(drain, 5)
        address = f"127.0.0.1:{listener.ports['extProc.port']}"
        async with grpc.aio.insecure_channel(address) as channel:
            call = pb_grpc.ExternalProcessorStub(channel).Process()  # type: ignore[no-untyped-call]
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert served.in_flight == 0


@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "grpc"])
async def test_a_drain_ends_within_its_grace(is_fast: bool) -> None:  # noqa: FBT001
    async with serving(is_fast=is_fast) as served:
        stream = served.stream()
        await picked(stream, chat())
        await asyncio.wait_for(served.live.router.app.listener.drain(0.2), 5)
        assert await stream.code() is not grpc.StatusCode.OK
        await served.nothing_left()

"""One HTTP request as a gateway brings it to a picker: messages sent, answers expected, each within its time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio

from router_grpc.v1 import ext_proc_pb2 as pb
from router_grpc.v1 import ext_proc_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    Headers = Sequence[tuple[str, str]]

DESTINATION = "x-gateway-destination-endpoint"
SERVED = "x-gateway-destination-endpoint-served"
SUBSET = "x-gateway-destination-endpoint-subset"
SUBSET_NAMESPACE = "envoy.lb.subset_hint"
PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
MOST_CHUNK_BYTES = 65_536
"""Some gateways take no more of a body in one message."""

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]

DUPLEX = pb.ProtocolConfiguration(request_body_mode=pb.FULL_DUPLEX_STREAMED, response_body_mode=pb.FULL_DUPLEX_STREAMED)


class Deviation(Exception):  # noqa: N818 - what a picker does, not what went wrong here
    """The picker did something else than the protocol says; the message is what, and what was expected."""


@dataclass(frozen=True, slots=True)
class Target:
    """A picker under test, and what it is asked for.

    Attributes:
        channel: to the picker.
        model: one that it serves.
        answer_s: for how long an answer is waited for.
        most_body_bytes: a body that is longer must be refused.
        health: to its health service, where that has a port of its own.
        address: ``host:port`` of the picker.
        second: another picker of the same instances.
        drain: has the picker stop.
    """

    channel: grpc.aio.Channel
    model: str
    answer_s: float = 10.0
    most_body_bytes: int = 32 * 1024 * 1024
    health: grpc.aio.Channel | None = None
    address: str = ""
    second: Target | None = None
    drain: Callable[[], Awaitable[None]] | None = None


@dataclass(slots=True)
class Picked:
    """What a picker said to a request: a destination and the body that goes on, or an answer in the engine's place."""

    destination: str = ""
    metadata: str = ""
    body: bytes = b""
    chunks: list[int] = field(default_factory=list)
    set_headers: dict[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    status: int | None = None
    """Of the answer in the engine's place."""


class Stream:
    """One stream of the protocol."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._call: Any = pb_grpc.ExternalProcessorStub(target.channel).Process()  # type: ignore[no-untyped-call]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()

    async def send(self, message: pb.ProcessingRequest) -> None:
        """Sends a message."""
        try:
            await asyncio.wait_for(self._call.write(message), self._target.answer_s)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise Deviation(f"the stream ended while the request was sent: {await self._status()}") from error

    async def _status(self) -> str:
        """What the stream ended with."""
        code = await asyncio.wait_for(self._call.code(), self._target.answer_s)
        return f"{code.name} {await self._call.details() or ''}".strip()[:200]

    async def receive(self) -> pb.ProcessingResponse:
        """The next message; raises Deviation where none comes in time, or the stream ends."""
        try:
            message = await asyncio.wait_for(self._call.read(), self._target.answer_s)
        except TimeoutError:
            raise Deviation(f"no answer within {self._target.answer_s:g} s") from None
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            raise Deviation(f"the stream ended in place of an answer: {said(error)}") from error
        if message is _EOF:
            raise Deviation("the stream ended in place of an answer")
        answer: pb.ProcessingResponse = message
        return answer

    async def expect(self, kind: str) -> pb.ProcessingResponse:
        """The next message, which must be of a kind."""
        message = await self.receive()
        if message.WhichOneof("response") != kind:
            raise Deviation(f"{message.WhichOneof('response')} came where {kind} was due")
        return message

    async def silence(self, seconds: float) -> None:
        """Nothing may come for so long."""
        try:
            message = await asyncio.wait_for(self._call.read(), seconds)
        except TimeoutError:
            return
        kind = "the end of the stream" if message is _EOF else message.WhichOneof("response")
        raise Deviation(f"{kind} came before the body had ended")

    async def picked(self, *, has_body: bool = True) -> Picked:
        """Everything up to the end of the request's phase, in its order."""
        first = await self.receive()
        kind = first.WhichOneof("response")
        if kind == "immediate_response":
            return Picked(status=first.immediate_response.status.code)
        if kind != "request_headers":
            raise Deviation(f"{kind} came where request_headers was due")
        found = _read_headers(first)
        ended = not has_body
        while not ended:
            part = (await self.expect("request_body")).request_body.response.body_mutation.streamed_response
            found.body += part.body
            found.chunks.append(len(part.body))
            ended = part.end_of_stream
        return found


async def ask(
    target: Target,
    *,
    path: str = "/v1/chat/completions",
    chunks: Sequence[bytes] = (),
    headers: Headers = (),
    raw: bool = True,
    subset: object = None,
    config: pb.ProtocolConfiguration | None = DUPLEX,
) -> Picked:
    """A whole request: its headers, its body in ``chunks``, and what the picker says to it."""
    async with Stream(target) as stream:
        await stream.send(headers_message(path, headers=headers, raw=raw, subset=subset, config=config))
        for place, chunk in enumerate(chunks, start=1):
            await stream.send(body_message(chunk, ends=place == len(chunks)))
        return await stream.picked()


async def answering(target: Target, body: bytes) -> AsyncIterator[Stream]:
    """A stream whose request has been picked for: its answer can begin."""
    async with Stream(target) as stream:
        await stream.send(headers_message("/v1/chat/completions"))
        await stream.send(body_message(body, ends=True))
        found = await stream.picked()
        if found.status is not None:
            raise Deviation(f"a good request was answered with status {found.status}")
        yield stream


def headers_message(
    path: str,
    *,
    method: str = "POST",
    ends: bool = False,
    headers: Headers = (),
    raw: bool = True,
    subset: object = None,
    config: pb.ProtocolConfiguration | None = DUPLEX,
) -> pb.ProcessingRequest:
    """A request's headers; ``subset`` is a text or a list where the gateway gives a hint."""
    given = [(":method", method), (":path", path), ("content-type", "application/json"), *headers]
    message = pb.ProcessingRequest(
        request_headers=pb.HttpHeaders(headers=pb.HeaderMap(headers=[_header(*one, raw=raw) for one in given]))
    )
    message.request_headers.end_of_stream = ends
    if config is not None:
        message.protocol_config.CopyFrom(config)
    if subset is not None:
        message.metadata_context.filter_metadata[SUBSET_NAMESPACE][SUBSET] = subset  # type: ignore[assignment]
    return message


def body_message(body: bytes, *, ends: bool) -> pb.ProcessingRequest:
    """A piece of a request's body."""
    return pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=ends))


def answer_headers(
    status: int = 200, *, content_type: str = "application/json", served: str = ""
) -> pb.ProcessingRequest:
    """An answer's headers."""
    given = ((":status", str(status)), ("content-type", content_type))
    headers = pb.HeaderMap(headers=[_header(*one, raw=True) for one in given])
    message = pb.ProcessingRequest(response_headers=pb.HttpHeaders(headers=headers))
    if served:
        message.metadata_context.filter_metadata["envoy.lb"][SERVED] = served
    return message


def answer_body(body: bytes, *, ends: bool) -> pb.ProcessingRequest:
    """A piece of an answer's body."""
    return pb.ProcessingRequest(response_body=pb.HttpBody(body=body, end_of_stream=ends))


def said(error: BaseException) -> str:
    """An error of gRPC in a few words."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name} {error.details() or ''}".strip()[:200]
    return type(error).__name__


def _header(name: str, value: str, *, raw: bool) -> pb.HeaderValue:
    return pb.HeaderValue(key=name, raw_value=value.encode()) if raw else pb.HeaderValue(key=name, value=value)


def _read_headers(message: pb.ProcessingResponse) -> Picked:
    mutation = message.request_headers.response.header_mutation
    values: Mapping[str, str] = {
        one.header.key.lower(): (one.header.raw_value.decode("utf-8", "replace") or one.header.value)
        for one in mutation.set_headers
    }
    fields = message.dynamic_metadata.fields
    inner = fields["envoy.lb"].struct_value.fields if "envoy.lb" in fields else {}
    return Picked(
        destination=values.get(DESTINATION, ""),
        metadata=inner[DESTINATION].string_value if DESTINATION in inner else "",
        set_headers=dict(values),
        removed=tuple(name.lower() for name in mutation.remove_headers),
    )

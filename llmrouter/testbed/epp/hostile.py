"""Requests that no client means well, and messages out of order: a clear status, and the others go on."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc.aio

from llmrouter.testbed.epp.case import BAD_REQUEST, TOO_LARGE, Case, chat, check, check_picked, goes_on
from llmrouter.testbed.epp.stream import (
    PROCESS,
    Deviation,
    Stream,
    Target,
    answer_body,
    answer_headers,
    ask,
    body_message,
    headers_message,
    said,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from llmrouter.testbed.epp.stream import Picked
    from router_grpc.v1 import ext_proc_pb2 as pb


async def _too_long(target: Target) -> None:
    piece = b"x" * 1_000_000
    async with Stream(target) as stream:
        await stream.send(headers_message("/v1/chat/completions"))
        first: asyncio.Task[Picked] = asyncio.create_task(stream.picked())
        try:
            for _ in range(target.most_body_bytes // len(piece) + 1):
                if first.done():
                    break
                await stream.send(body_message(piece, ends=False))
            found = await first
        finally:
            await asyncio.gather(first, return_exceptions=True) if first.done() else first.cancel()
    check(found.status == TOO_LARGE, f"status {found.status or 'none: it was sent on'}, not {TOO_LARGE}")


async def _a_byte_at_a_time(target: Target) -> None:
    body = chat(target)
    check_picked(await ask(target, chunks=[body[at : at + 1] for at in range(len(body))]), body)


def _body(make: Callable[[Target], bytes], *allowed: int) -> Callable[[Target], Awaitable[None]]:
    """A body that is sent on as it is, or refused with one of ``allowed``."""

    async def run(target: Target) -> None:
        body = make(target)
        found = await ask(target, chunks=[body[at : at + 60_000] for at in range(0, len(body), 60_000)])
        if found.status is None:
            check_picked(found, body)
        else:
            check(found.status in allowed, f"status {found.status}, not {' or '.join(map(str, allowed))}")
        await goes_on(target)

    return run


def _twice(target: Target) -> bytes:
    return b'{"model": "nobody\'s", ' + chat(target)[1:]


async def _never_ends(target: Target) -> None:
    """Fifty clients that say the beginning of a body and no more; then they leave."""
    streams = [Stream(target) for _ in range(50)]
    try:
        for stream in streams:
            await stream.send(headers_message("/v1/chat/completions"))
            await stream.send(body_message(b"{", ends=False))
        await goes_on(target)
    finally:
        for stream in streams:
            await stream.__aexit__()
    await goes_on(target)


async def _many_headers(target: Target) -> None:
    """A gateway bounds headers itself; what it lets through, here 1 MB, is picked for or refused as the client's."""
    headers = [(f"x-{place}", "a" * 100) for place in range(10_000)]
    found = await ask(target, chunks=[chat(target)], headers=headers)
    check(found.status is None or BAD_REQUEST <= found.status < SERVER_ERROR, f"status {found.status}")
    await goes_on(target)


async def _no_utf8(target: Target) -> None:
    message = headers_message("/v1/chat/completions")
    for name in ("x-request-id", "x-gateway-inference-fairness-id", "x-some"):
        message.request_headers.headers.headers.add(key=name, raw_value=b"\xff\xfe\x00")
    async with Stream(target) as stream:
        await stream.send(message)
        await stream.send(body_message(chat(target), ends=True))
        found = await stream.picked()
    check(found.status in {None, BAD_REQUEST}, f"status {found.status}")
    await goes_on(target)


async def _out_of_order(target: Target) -> None:
    """Each of these streams may end with an error; it must not hang, and the next client is served."""
    orders: Sequence[Sequence[pb.ProcessingRequest]] = (
        [body_message(b"{}", ends=True)],
        [answer_headers()],
        [headers_message("/"), headers_message("/")],
        [headers_message("/"), answer_body(b"a", ends=True)],
        [headers_message("/v1/models", ends=True), body_message(b"a", ends=True), body_message(b"b", ends=True)],
    )
    for messages in orders:
        async with Stream(target) as stream:
            with suppress(Deviation):
                for message in messages:
                    await stream.send(message)
        await goes_on(target)


async def _no_messages(target: Target) -> None:
    """Bytes that are no message of the protocol."""
    for garbage in (b"\xff" * 20, b"\x12\xff\xff\xff\xff\x0f", b""):
        method: Any = target.channel.stream_stream(PROCESS, request_serializer=bytes, response_deserializer=bytes)
        call = method()
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await asyncio.wait_for(call.write(garbage), target.answer_s)
            await asyncio.wait_for(call.done_writing(), target.answer_s)
        try:
            await asyncio.wait_for(call.code(), target.answer_s)
        except TimeoutError:
            raise Deviation(f"the stream is still open after {garbage[:4]!r} and its end") from None
        finally:
            call.cancel()
        await goes_on(target)


async def _many_at_once(target: Target) -> None:
    found = await asyncio.gather(
        *(ask(target, chunks=[chat(target, text=f"{place}")]) for place in range(100)), return_exceptions=True
    )
    wrong = [said(one) for one in found if isinstance(one, BaseException)]
    check(not wrong, f"{len(wrong)} of 100 streams at once: {wrong[:1]}")


SERVER_ERROR = 500
BIG = 10**400

CASES = (
    Case("a body that is too long is 413", _too_long),
    Case("a body of one byte at a time", _a_byte_at_a_time),
    Case("a body that is nested 50,000 deep", _body(lambda _: b"[" * 50_000, BAD_REQUEST)),
    Case("a body that is no UTF-8", _body(lambda one: chat(one, text="~").replace(b"~", b"\xff\xfe"), BAD_REQUEST)),
    Case("a surrogate alone", _body(lambda one: chat(one, text="~").replace(b"~", b"\\ud800"), BAD_REQUEST)),
    Case("the same key twice", _body(_twice, BAD_REQUEST, 404)),
    Case("a number that is none", _body(lambda one: chat(one, temperature=float("nan")), BAD_REQUEST)),
    Case("a number of 400 digits", _body(lambda one: chat(one, max_tokens=BIG), BAD_REQUEST)),
    Case("negative tokens", _body(lambda one: chat(one, max_tokens=-1), BAD_REQUEST)),
    Case("a prompt that is no text", _body(lambda one: chat(one, messages=[{"content": {"a": [1]}}]), BAD_REQUEST)),
    Case("messages that are none", _body(lambda one: chat(one, messages="a"), BAD_REQUEST)),
    Case("clients that never finish their bodies", _never_ends),
    Case("10,000 headers", _many_headers),
    Case("headers that are no UTF-8", _no_utf8),
    Case("messages out of order", _out_of_order),
    Case("bytes that are no messages", _no_messages),
    Case("100 streams at once", _many_at_once),
)
"""Of requests that are meant ill, and gateways that err."""

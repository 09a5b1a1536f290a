"""What is asked of a picker, one case each: they stand in the order of a request's life."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmrouter.testbed.epp.stream import (
    DESTINATION,
    DUPLEX,
    MOST_CHUNK_BYTES,
    SERVED,
    SUBSET,
    Deviation,
    Picked,
    Stream,
    Target,
    answer_body,
    answer_headers,
    answering,
    ask,
    body_message,
    headers_message,
)
from router_grpc.v1 import ext_proc_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BAD_REQUEST, TOO_LARGE, SATURATED, UNAVAILABLE = 400, 413, 429, 503
QUIET_S = 0.2
NOBODY = "192.0.2.1:9"
"""An endpoint that is nobody's (RFC 5737)."""

HEALTH_NAMES = ("", "readiness", "liveness", "envoy.service.ext_proc.v3.ExternalProcessor", "inference-extension")


@dataclass(frozen=True, slots=True)
class Case:
    """One question; ``needs`` names the target that it is put to: one that serves, that has no instance, or is full."""

    name: str
    run: Callable[[Target], Awaitable[None]]
    needs: str = "serving"


def chat(target: Target, *, text: str = "Hello", **changes: object) -> bytes:
    """A chat request."""
    content: dict[str, Any] = {"model": target.model, "messages": [{"role": "user", "content": text}], "max_tokens": 8}
    return json.dumps(content | changes).encode()


def check(condition: object, message: str) -> None:
    """Raises Deviation unless the condition holds."""
    if not condition:
        raise Deviation(message)


def check_picked(found: Picked, body: bytes | None = None) -> None:
    """A destination, said twice and alike, and the body as it was."""
    check(found.status is None, f"answered with status {found.status} in place of a destination")
    check(found.destination, f"no header {DESTINATION}")
    if body is not None:
        check(found.body == body, f"{len(found.body)} bytes of {len(body)} came back, or other ones")
        check(max(found.chunks, default=0) <= MOST_CHUNK_BYTES, f"a piece of {max(found.chunks)} bytes")


async def _one_chunk(target: Target) -> None:
    body = chat(target)
    check_picked(await ask(target, chunks=[body]), body)


async def _three_chunks(target: Target) -> None:
    body = chat(target)
    check_picked(await ask(target, chunks=[body[:7], body[7:20], body[20:]]), body)


async def _nothing_before_the_end(target: Target) -> None:
    body = chat(target)
    async with Stream(target) as stream:
        await stream.send(headers_message("/v1/chat/completions"))
        await stream.send(body_message(body[:10], ends=False))
        await stream.silence(QUIET_S)


async def _long_body(target: Target) -> None:
    body = chat(target, text="word " * 60_000)
    check_picked(await ask(target, chunks=[body[at : at + 60_000] for at in range(0, len(body), 60_000)]), body)


async def _ends_twice(target: Target) -> None:
    body = chat(target, text="word " * 250_000)
    parts = [body[at : at + 60_000] for at in range(0, len(body), 60_000)]
    async with Stream(target) as stream:
        await stream.send(headers_message("/v1/chat/completions"))
        for place, part in enumerate(parts, start=1):
            await stream.send(body_message(part, ends=place == len(parts)))
        await stream.send(body_message(b"", ends=True))
        check_picked(await stream.picked(), body)
        await stream.send(answer_headers())
        await stream.expect("response_headers")


async def _empty_body(target: Target) -> None:
    found = await ask(target, path="/v1/unknown", chunks=[b""])
    check_picked(found, b"")
    check(found.chunks == [0], f"an empty body came back in {len(found.chunks)} pieces")


async def _without_body(target: Target) -> None:
    async with Stream(target) as stream:
        await stream.send(headers_message("/v1/models", method="GET", ends=True))
        check_picked(await stream.picked(has_body=False))


async def _header_is_metadata(target: Target) -> None:
    found = await ask(target, chunks=[chat(target)])
    check_picked(found)
    check(found.metadata == found.destination, f"header {found.destination!r}, metadata {found.metadata!r}")


async def _plain_values(target: Target) -> None:
    check_picked(await ask(target, chunks=[chat(target)], raw=False))


async def _same_key_twice(target: Target) -> None:
    check_picked(await ask(target, chunks=[chat(target)], headers=[("x-some", "a"), ("x-some", "b")]))


async def _upper_case_keys(target: Target) -> None:
    check_picked(await ask(target, chunks=[chat(target)], headers=[("X-Request-Id", "a"), ("Accept", "*/*")]))


async def _a_destination(target: Target) -> str:
    found = await ask(target, chunks=[chat(target)])
    check_picked(found)
    return found.destination.split(",", maxsplit=1)[0]


async def _subset_list(target: Target) -> None:
    await _subset(target, lambda endpoint: [endpoint, NOBODY])


async def _subset_text(target: Target) -> None:
    await _subset(target, lambda endpoint: f"{NOBODY},{endpoint}")


async def _subset_commas_in_list(target: Target) -> None:
    await _subset(target, lambda endpoint: [f"{NOBODY},{endpoint}"])


async def _subset_host(target: Target) -> None:
    await _subset(target, lambda endpoint: [endpoint.rpartition(":")[0]], whole=False)


async def _subset(target: Target, make: Callable[[str], object], *, whole: bool = True) -> None:
    endpoint = await _a_destination(target)
    for _ in range(5):
        found = await ask(target, chunks=[chat(target)], subset=make(endpoint))
        check_picked(found)
        first = found.destination.split(",", maxsplit=1)[0]
        alike = first == endpoint if whole else first.rpartition(":")[0] == endpoint.rpartition(":")[0]
        check(alike, f"{first} is not of the subset of {endpoint}")


async def _subset_empty(target: Target) -> None:
    await _refused(target, UNAVAILABLE, chat(target), subset=[])


async def _subset_of_nobody(target: Target) -> None:
    await _refused(target, UNAVAILABLE, chat(target), subset=[NOBODY])


async def _no_instance(target: Target) -> None:
    await _refused(target, UNAVAILABLE, chat(target))


async def _saturated(target: Target) -> None:
    await _refused(target, SATURATED, chat(target))


async def _not_json(target: Target) -> None:
    await _refused(target, BAD_REQUEST, b"{")


async def _no_model(target: Target) -> None:
    await _refused(target, BAD_REQUEST, b'{"messages": [{"role": "user", "content": "a"}]}')


async def _refused(target: Target, status: int, body: bytes, subset: object = None) -> None:
    found = await ask(target, chunks=[body], subset=subset)
    check(found.status == status, f"status {found.status or 'none: it was sent on'}, not {status}")


async def _unknown_path(target: Target) -> None:
    check_picked(await ask(target, path="/some/other/api", chunks=[b"\x00\x01 not JSON"]), b"\x00\x01 not JSON")


def _path(path: str, content: dict[str, Any]) -> Callable[[Target], Awaitable[None]]:
    async def run(target: Target) -> None:
        body = json.dumps({"model": target.model, **content}).encode()
        check_picked(await ask(target, path=path, chunks=[body]), body)

    return run


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


async def _stream_is_echoed(target: Target) -> None:
    """Chunk by chunk, each before the next is sent, cut within characters and within ``data:``."""
    text = "".join(f'data: {{"choices": [{{"delta": {{"content": "hé{n}"}}}}]}}\n\n' for n in range(10)).encode()
    parts = [text[at : at + 7] for at in range(0, len(text), 7)] + [b"data: [DONE]\n\n"]
    async for stream in answering(target, chat(target, stream=True)):
        await stream.send(answer_headers(content_type="text/event-stream"))
        await stream.expect("response_headers")
        for place, part in enumerate(parts, start=1):
            await stream.send(answer_body(part, ends=place == len(parts)))
            message = await stream.expect("response_body")
            echo = message.response_body.response.body_mutation.streamed_response
            check(echo.body == part, f"chunk {place} came back as {echo.body[:40]!r}, it was {part[:40]!r}")
            check(echo.end_of_stream == (place == len(parts)), f"chunk {place} ends the stream, or does not")


async def _long_answer(target: Target) -> None:
    whole = json.dumps(
        {"choices": [{"message": {"content": "x" * 200_000}}], "usage": {"completion_tokens": 5}}
    ).encode()
    async for stream in answering(target, chat(target)):
        await stream.send(answer_headers())
        await stream.expect("response_headers")
        for at in range(0, len(whole), 60_000):
            await stream.send(answer_body(whole[at : at + 60_000], ends=at + 60_000 >= len(whole)))
        got, ended = b"", False
        while not ended:
            part = (await stream.expect("response_body")).response_body.response.body_mutation.streamed_response
            check(len(part.body) <= MOST_CHUNK_BYTES, f"a piece of {len(part.body)} bytes")
            got, ended = got + part.body, part.end_of_stream
        check(got == whole, f"{len(got)} bytes of {len(whole)} came back, or other ones")


async def _answer_trailers(target: Target) -> None:
    async for stream in answering(target, chat(target)):
        await stream.send(answer_headers(content_type="application/grpc"))
        await stream.expect("response_headers")
        await stream.send(answer_body(b"abc", ends=False))
        await stream.send(pb.ProcessingRequest(response_trailers=pb.HttpTrailers()))
        while (message := await stream.receive()).WhichOneof("response") == "response_body":
            part = message.response_body.response.body_mutation.streamed_response
            check(not part.end_of_stream, "the body ended the stream, and trailers were to come")
        check(message.WhichOneof("response") == "response_trailers", f"{message.WhichOneof('response')} ended it")


async def _engine_fails(target: Target) -> None:
    async for stream in answering(target, chat(target)):
        await stream.send(answer_headers(UNAVAILABLE))
        await stream.expect("response_headers")
        await stream.send(answer_body(b"no", ends=True))
        await stream.expect("response_body")


async def _served_by_another(target: Target) -> None:
    async for stream in answering(target, chat(target)):
        await stream.send(answer_headers(served=NOBODY))
        await stream.expect("response_headers")


async def _client_leaves(target: Target) -> None:
    """In every phase; the picker goes on serving others."""
    for sent in range(4):
        async with Stream(target) as stream:
            if sent > 0:
                await stream.send(headers_message("/v1/chat/completions"))
            if sent > 1:
                await stream.send(body_message(chat(target), ends=True))
            if sent > 2:  # noqa: PLR2004 - the phases in order
                check_picked(await stream.picked())
                await stream.send(answer_headers())
    await _one_chunk(target)


async def _any_configuration(target: Target) -> None:
    for flag in (False, True):
        config = pb.ProtocolConfiguration()
        config.CopyFrom(DUPLEX)
        config.send_body_without_waiting_for_header_response = flag
        check_picked(await ask(target, chunks=[chat(target)], config=config))
    check_picked(await ask(target, chunks=[chat(target)], config=None))


async def _health(target: Target) -> None:
    stub: Any = health_pb2_grpc.HealthStub(target.health or target.channel)
    wrong = []
    for name in HEALTH_NAMES:
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=target.answer_s)
        except grpc.aio.AioRpcError as error:
            wrong.append(f"{name or 'the empty name'}: {error.code().name}")
            continue
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            wrong.append(f"{name or 'the empty name'}: status {answer.status}")
    check(not wrong, "; ".join(wrong))


async def _forged_headers(target: Target) -> None:
    forged = ((DESTINATION, NOBODY), (SERVED, NOBODY), (SUBSET, NOBODY))
    found = await ask(target, chunks=[chat(target)], headers=forged)
    check_picked(found)
    check(NOBODY not in found.destination, "a client's header chose the endpoint")
    left = [name for name in (SERVED, SUBSET) if name not in found.removed and found.set_headers.get(name, "x") != ""]
    check(not left, f"the engine gets the client's {', '.join(left)}")


CASES = (
    Case("a body in one chunk", _one_chunk),
    Case("a body in three chunks", _three_chunks),
    Case("nothing is said before the body ends", _nothing_before_the_end),
    Case("a body of 300 kB comes back whole, in pieces of at most 64 KiB", _long_body),
    Case("a body of 1 MB that ends twice", _ends_twice),
    Case("an empty body", _empty_body),
    Case("a request without a body", _without_body),
    Case("the destination's header and metadata are equal", _header_is_metadata),
    Case("headers as text", _plain_values),
    Case("a header that comes twice", _same_key_twice),
    Case("header names in capitals", _upper_case_keys),
    Case("a subset as a list", _subset_list),
    Case("a subset as text", _subset_text),
    Case("a subset as a list of texts with commas", _subset_commas_in_list),
    Case("a subset of hosts without ports", _subset_host),
    Case("an empty subset is 503", _subset_empty),
    Case("a subset of nobody is 503", _subset_of_nobody),
    Case("no instance is 503", _no_instance, needs="empty"),
    Case("no room is 429", _saturated, needs="full"),
    Case("a body that is no JSON is 400", _not_json),
    Case("a body without a model is 400", _no_model),
    Case("an unknown path is sent on", _unknown_path),
    Case("/v1/completions", _path("/v1/completions", {"prompt": "a"})),
    Case("/v1/responses", _path("/v1/responses", {"input": "a"})),
    Case("/v1/embeddings", _path("/v1/embeddings", {"input": ["a"]})),
    Case("/v1/messages", _path("/v1/messages", {"max_tokens": 8, "messages": [{"role": "user", "content": "a"}]})),
    Case(
        "/v1/messages/count_tokens",
        _path("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "a"}]}),
    ),
    Case("/v1/audio/transcriptions", _path("/v1/audio/transcriptions", {"file": "a"})),
    Case("a body that is too long is 413", _too_long),
    Case("a stream comes back chunk by chunk, at once", _stream_is_echoed),
    Case("an answer of 200 kB comes back whole", _long_answer),
    Case("an answer with trailers", _answer_trailers),
    Case("an engine that fails", _engine_fails),
    Case("an answer from another endpoint than was picked", _served_by_another),
    Case("clients that leave in every phase", _client_leaves),
    Case("every configuration of full-duplex streaming", _any_configuration),
    Case("health under all names", _health),
    Case("forged headers choose nothing and go no further", _forged_headers),
)
"""All cases."""

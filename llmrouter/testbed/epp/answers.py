"""What a picker does while an answer passes, however that ends."""

from __future__ import annotations

import json

from llmrouter.testbed.epp.case import NOBODY, UNAVAILABLE, Case, chat, check, check_picked, goes_on, placed
from llmrouter.testbed.epp.stream import (
    MOST_CHUNK_BYTES,
    Stream,
    Target,
    answer_body,
    answer_headers,
    answering,
    body_message,
    headers_message,
)
from router_grpc.v1 import ext_proc_pb2 as pb


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
    await goes_on(target)


async def _gone_meanwhile(target: Target) -> None:
    """The instance that was picked is not there any more: the gateway's own answer comes in place of the engine's."""
    async for stream in answering(target, chat(target)):
        await stream.send(answer_headers(UNAVAILABLE, content_type="text/plain"))
        await stream.expect("response_headers")
        await stream.send(answer_body(b"upstream connect error or disconnect/reset before headers", ends=True))
        await stream.expect("response_body")
    await goes_on(target)


async def _without_a_body(target: Target) -> None:
    async for stream in answering(target, chat(target)):
        message = answer_headers(204)
        message.response_headers.end_of_stream = True
        await stream.send(message)
        await stream.expect("response_headers")
    await goes_on(target)


async def _lies(target: Target) -> None:
    """Usage that cannot be: what passes is the same, and the next request is picked for."""
    lies: tuple[object, ...] = ({"completion_tokens": -5}, {"completion_tokens": 10**18}, {"prompt_tokens": "9"}, [])
    for usage in lies:
        body = json.dumps({"choices": [], "usage": usage}).encode()
        async for stream in answering(target, chat(target)):
            await stream.send(answer_headers())
            await stream.expect("response_headers")
            await stream.send(answer_body(body, ends=True))
            said = (await stream.expect("response_body")).response_body.response.body_mutation.streamed_response
            check(said.body == body, f"{body!r} came back as {said.body[:80]!r}")
    await goes_on(target)


async def _no_text(target: Target) -> None:
    """Bytes that are no text, and a stream that ends within a line."""
    async for stream in answering(target, chat(target, stream=True)):
        await stream.send(answer_headers(content_type="text/event-stream"))
        await stream.expect("response_headers")
        for part in (b"data: \xff\xfe\x00", b"\xed\xa0\x80\n\ndata: {"):
            await stream.send(answer_body(part, ends=False))
            said = (await stream.expect("response_body")).response_body.response.body_mutation.streamed_response
            check(said.body == part, f"{part!r} came back as {said.body[:80]!r}")
        await stream.send(answer_body(b"", ends=True))
        await stream.expect("response_body")


async def _room_comes_back(target: Target) -> None:
    """A picker that takes one request: a client that leaves, in either phase, gives its place back."""
    async with placed(target, "before any request"):
        pass
    async with placed(target, "after a client left before the answer") as stream:
        await stream.send(answer_headers())
        await stream.expect("response_headers")
    async with placed(target, "after a client left within the answer"):
        pass


async def _room_comes_back_at_the_end(target: Target) -> None:
    for status in (200, UNAVAILABLE):
        async with placed(target, "before an answer") as stream:
            await stream.send(answer_headers(status))
            await stream.expect("response_headers")
            await stream.send(answer_body(b"{}", ends=True))
            await stream.expect("response_body")
            async with placed(target, f"after an answer with status {status}"):
                pass


CASES = (
    Case("a stream comes back chunk by chunk, at once", _stream_is_echoed),
    Case("an answer of 200 kB comes back whole", _long_answer),
    Case("an answer with trailers", _answer_trailers),
    Case("an answer without a body", _without_a_body),
    Case("an engine that fails", _engine_fails),
    Case("an instance that is gone when the request comes", _gone_meanwhile),
    Case("an answer from another endpoint than was picked", _served_by_another),
    Case("usage that cannot be", _lies),
    Case("an answer that is no text", _no_text),
    Case("clients that leave in every phase", _client_leaves),
    Case("the place of a client that left is free again", _room_comes_back, needs="one"),
    Case("the place of an answer that ended is free again", _room_comes_back_at_the_end, needs="one"),
)
"""Of answers."""

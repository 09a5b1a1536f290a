"""A replay as OpenAI clients do it: retries before the first token, none after, and answers in any framing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrouter.testbed.completion_stream import CompletionStream, Unchunker, completion_request
from llmrouter.testbed.replay_client import Life, ReplayCounts, RequestFailedError
from llmrouter.testbed.replay_front import ThroughFront

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

EVENTS = [
    b'data: {"choices": [{"text": " a"}]}\n\n',
    b'data: {"usage": {"prompt_tokens": 4, "completion_tokens": 2}}\n\n',
    b"data: [DONE]\n\n",
]
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-LLMRouter-Instance: 10.0.0.1:8000\r\n\r\n"
WHOLE = HEAD + b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in EVENTS) + b"0\r\n\r\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n"
CUT = WHOLE[: len(HEAD) + 50]


@st.composite
def framed(draw: st.DrawFn) -> tuple[bytes, bytes, list[int]]:
    body = draw(st.binary(min_size=1, max_size=300))
    ends = sorted(draw(st.sets(st.integers(1, len(body)), max_size=8)) | {len(body)})
    chunks = [body[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    extension = draw(st.sampled_from([b"", b";name=value"]))
    wire = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks) + b"0\r\n\r\n"
    cuts = sorted(draw(st.sets(st.integers(1, len(wire)), max_size=20)))
    return body, wire, cuts


@given(framed())
def test_chunks_are_taken_apart_however_they_arrive(case: tuple[bytes, bytes, list[int]]) -> None:
    body, wire, cuts = case
    unchunker = Unchunker()
    found = [unchunker.feed(wire[start:end]) for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    assert b"".join(found) == body


async def test_an_answer_byte_by_byte_has_its_events_usage_and_headers() -> None:
    stream = CompletionStream(b"")
    for byte in WHOLE:
        stream.data_received(bytes([byte]))
    assert (stream.events, stream.usage().output_tokens, stream.status) == (3, 2, 200)
    assert stream.header("x-llmrouter-instance") == "10.0.0.1:8000"


def test_a_request_carries_the_headers_it_is_given() -> None:
    request = completion_request(
        endpoint="a:1", model="m", request_id="r", prompt_tokens=2, output_tokens=1, headers={"x-one": "two"}
    )
    head, _, body = request.partition(b"\r\n\r\n")
    assert b"x-one: two\r\n" in head
    assert f"Content-Length: {len(body)}".encode() in head


@asynccontextmanager
async def answering(answers: Sequence[bytes]) -> AsyncIterator[str]:
    """A front that gives these answers, one for each connection."""
    left = iter(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"]}")
        writer.write(next(left))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def served(answers: Sequence[bytes]) -> tuple[Life, ReplayCounts]:
    life, counts = Life("id", 4, 2, "code"), ReplayCounts()
    async with answering(answers) as address:
        await ThroughFront(address, "m").serve(life, counts)
    return life, counts


async def test_an_answer_tells_who_gave_it_and_how_long_it_was() -> None:
    life, counts = await served([WHOLE])
    assert (life.instance_id, life.usage_output_tokens, counts.retries) == ("10.0.0.1:8000", 2, 0)


async def test_a_503_is_tried_again_after_the_wait_that_it_asks_for() -> None:
    life, counts = await served([BUSY, BUSY, WHOLE])
    assert (life.retries, counts.retries, life.usage_output_tokens) == (2, 2, 2)


@pytest.mark.parametrize(
    ("answers", "retries"),
    [
        ([BUSY] * 3, 2),
        ([CUT, WHOLE], 0),  # a client cannot take back what it has shown
        ([b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", WHOLE], 0),
    ],
)
async def test_what_is_not_tried_again_fails(answers: Sequence[bytes], retries: int) -> None:
    life, counts = Life("id", 4, 2, "code"), ReplayCounts()
    async with answering(answers) as address:
        with pytest.raises(RequestFailedError):
            await ThroughFront(address, "m").serve(life, counts)
    assert counts.retries == retries

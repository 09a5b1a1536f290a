"""Engines that always say the same, and die when they are told to: what an undisturbed answer is, is known.

The answer is a list of tokens. A request that gives the beginning of it as text is answered with what follows, as an
engine that samples greedily would. Chat templates cut white space at the end of a message: so is it cut here.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

ANSWER = (
    "Once",
    " upon",
    " a",
    " naïve",
    " 時",
    "間",
    ",",
    " \n",
    "\n",
    "the",
    " 🙂",
    " end",
    ' \\"x\\"',
    " of",
    " it",
)
PROMPT = "Tell me a story."
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
PROMPT_TOKENS = 7
"""What an engine counts for ``PROMPT``."""

_ids = count()


def position_of(path: str, body: dict[str, Any], answer: Sequence[str]) -> int:
    """How many tokens of the answer the prompt holds already."""
    if path == COMPLETION:
        given = body["prompt"].removeprefix(PROMPT)
    elif body.get("continue_final_message"):
        assert body["add_generation_prompt"] is False
        assert body["messages"][-1]["role"] == "assistant"
        given = body["messages"][-1]["content"].rstrip()
    else:
        return 0
    for at in range(len(answer) + 1):
        if "".join(answer[:at]) == given:
            return at
    raise AssertionError(f"no beginning of the answer: {given!r}")


def events_of(path: str, body: dict[str, Any], answer: Sequence[str] = ANSWER) -> list[bytes]:
    """The events that an engine streams, one for each token."""
    head = {"id": f"cmpl-{next(_ids)}", "object": "chunk", "created": next(_ids), "model": body["model"]}
    options = body.get("stream_options") or {}
    begin, limit = position_of(path, body, answer), body.get("max_tokens") or len(answer)
    tokens = list(answer[begin:][:limit])
    ends = "stop" if begin + len(tokens) == len(answer) else "length"
    prompt_tokens = PROMPT_TOKENS + begin

    def event(choices: list[dict[str, Any]], made: int) -> bytes:
        said: dict[str, Any] = {**head, "choices": choices}
        if options.get("continuous_usage_stats") or not choices:
            said["usage"] = {
                "prompt_tokens": prompt_tokens,
                "total_tokens": prompt_tokens + made,
                "completion_tokens": made,
            }
        return b"data: " + json.dumps(said, ensure_ascii=False).encode() + b"\n\n"

    def choice(text: str, finish: str | None) -> dict[str, Any]:
        said = {"delta": {"content": text}} if path == CHAT else {"text": text}
        return {"index": 0, **said, "finish_reason": finish}

    found = []
    if path == CHAT:
        found.append(event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}], 0))
    for made, token in enumerate(tokens, start=1):
        found.append(event([choice(token, ends if made == len(tokens) else None)], made))
    if options.get("include_usage"):
        found.append(event([], len(tokens)))
    return [*found, b"data: [DONE]\n\n"]


def whole_of(path: str, body: dict[str, Any], answer: Sequence[str] = ANSWER) -> bytes:
    """The answer to a request that does not stream."""
    begin, limit = position_of(path, body, answer), body.get("max_tokens") or len(answer)
    tokens = list(answer[begin:][:limit])
    ends = "stop" if begin + len(tokens) == len(answer) else "length"
    text = "".join(tokens)
    said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if path == CHAT else {"text": text}
    usage = {
        "prompt_tokens": PROMPT_TOKENS + begin,
        "total_tokens": PROMPT_TOKENS + begin + len(tokens),
        "completion_tokens": len(tokens),
    }
    head = {"id": f"cmpl-{next(_ids)}", "object": "whole", "created": next(_ids), "model": body["model"]}
    return json.dumps({**head, "choices": [{"index": 0, **said, "finish_reason": ends}], "usage": usage}).encode()


@dataclass
class Script:
    """What an engine does with one request.

    ``bytes_before_death`` of the body are sent before the connection breaks; ``is_clean`` ends it as if all were said.
    """

    status: int = 200
    bytes_before_death: int | None = None
    is_clean: bool = False
    dies_before_head: bool = False
    chunk_bytes: int = 1 << 20
    head_waits: asyncio.Event | None = None
    waits_after: tuple[int, asyncio.Event] | None = None
    """Bytes of the body after which the rest waits for an event."""


@dataclass
class Engine:
    """One engine; scripts are used one after the other, then it is healthy."""

    scripts: list[Script] = field(default_factory=list)
    answer: tuple[str, ...] = ANSWER
    bodies: list[dict[str, Any]] = field(default_factory=list)
    raw_bodies: list[bytes] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    error_after: int | None = None
    """Events of a stream after which it says an error, and ends."""
    cut_off: int = 0
    """Requests whose client left before the answer's end."""
    open: int = 0
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            writer.close()
            return
        lines = head.decode().split("\r\n")
        method, path, _ = lines[0].split(" ")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        raw = await reader.readexactly(int(fields.get("content-length", "0")))
        if method == "GET":
            text = b"" if path == "/metrics" else b"got " + path.encode()
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text))
            writer.close()
            return
        self.heads.append(head)
        self.raw_bodies.append(raw)
        script = self.scripts.pop(0) if self.scripts else Script()
        self.open += 1
        answering = asyncio.create_task(self._answer(path, raw, script, writer))
        leaving = asyncio.create_task(reader.read())
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                self.cut_off += 1
        finally:
            answering.cancel()
            leaving.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
            self.open -= 1
            writer.close()

    async def _answer(self, path: str, raw: bytes, script: Script, writer: asyncio.StreamWriter) -> None:
        body = json.loads(raw)
        self.bodies.append(body)
        if script.head_waits is not None:
            await script.head_waits.wait()
        if script.dies_before_head:
            writer.transport.abort()
            return
        if script.status != 200:
            text = b'{"error":{"message":"no","code":%d}}' % script.status
            head = (
                b"HTTP/1.1 %d No\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            )
            writer.write(head % (script.status, len(text)) + text)
            return
        streams = body.get("stream")
        kind = b"text/event-stream; charset=utf-8" if streams else b"application/json"
        text = self._stream(path, body) if streams else whole_of(path, body, self.answer)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nx-of-engine: yes\r\n" % kind)
        writer.write(b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n")
        if script.bytes_before_death is not None:
            text = text[: script.bytes_before_death]
        waits_at = script.waits_after[0] if script.waits_after else len(text)
        await self._write(text[:waits_at], script, writer)
        if script.waits_after is not None:
            await script.waits_after[1].wait()
            await self._write(text[waits_at:], script, writer)
        if script.bytes_before_death is None or script.is_clean:
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        else:
            await asyncio.sleep(0.01)  # what was written is read before the reset
            writer.transport.abort()

    def _stream(self, path: str, body: dict[str, Any]) -> bytes:
        events = events_of(path, body, self.answer)
        if self.error_after is not None:
            events = [*events[: self.error_after], b'data: {"error":{"message":"engine dead"}}\n\n', events[-1]]
        return b"".join(events)

    async def _write(self, text: bytes, script: Script, writer: asyncio.StreamWriter) -> None:
        for at in range(0, len(text), script.chunk_bytes):
            piece = text[at : at + script.chunk_bytes]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(0)


@asynccontextmanager
async def engines(*scripts: list[Script]) -> AsyncIterator[list[Engine]]:
    """One engine for each list of scripts, on free ports; a list may be of several: who is asked first takes first."""
    made = [Engine(scripts=one) for one in scripts]
    servers = []
    for engine in made:
        server = await asyncio.start_server(engine.handle, "127.0.0.1", 0)
        engine.port = server.sockets[0].getsockname()[1]
        servers.append(server)
    try:
        yield made
    finally:
        for server in servers:
            server.close()

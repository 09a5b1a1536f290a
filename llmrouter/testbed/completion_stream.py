"""One streamed completion over HTTP/1.1, read at the least cost per token.

A replay reads thousands of server-sent events a second beside the engines that make them. So this reader counts event
markers in the raw bytes as they arrive and decodes nothing but the last event's usage.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

MARKER = b"data:"
DONE = b"data: [DONE]"
TAIL_BYTES = 4096
_USAGE = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
_CHUNKED = re.compile(rb"(?im)^transfer-encoding:[^\r\n]*chunked")
_OK = b"200"


@dataclass
class Unchunker:
    """Takes the framing of HTTP/1.1 chunks off, however the bytes arrive. Trailers are not looked for."""

    _left: int = 0
    _line: bytes = b""

    def feed(self, data: bytes) -> bytes:
        """The body's bytes in these."""
        parts: list[bytes] = []
        at = 0
        while at < len(data):
            if self._left > 0:
                part = data[at : at + self._left]
                parts.append(part)
                self._left -= len(part)
                at += len(part)
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._line += data[at:]
                break
            line, self._line = (self._line + data[at:end]).strip(), b""
            at = end + 1
            if line:  # an empty one ends the chunk before
                self._left = int(line.partition(b";")[0], 16)
        return b"".join(parts)


class CompletionError(Exception):
    """The instance did not answer, refused, or stopped in the middle; the message says which."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the instance counted them."""

    prompt_tokens: int
    output_tokens: int


@dataclass
class CompletionStream(asyncio.Protocol):
    """A connection that sends one request and follows its answer; instants are the event loop's."""

    request: bytes
    events: int = 0
    chunks: int = 0
    first_token_at_s: float | None = None
    finished_at_s: float | None = None
    first: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    _tail: bytes = b""
    head: bytes = b""
    _has_head: bool = False
    _unchunker: Unchunker | None = None
    _status: bytes = b""
    _transport: asyncio.Transport | None = None
    _lost: Exception | None = None

    def __post_init__(self) -> None:
        """Takes the running loop's clock."""
        self._now = asyncio.get_running_loop().time

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the request."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Counts events; keeps the tail, where the usage is."""
        self.chunks += 1
        if not self._has_head:
            data = self._read_head(data)
        if self._unchunker is not None:
            data = self._unchunker.feed(data)
        if not data:
            return
        overlap = self._tail[-(len(MARKER) - 1) :]
        self.events += (overlap + data).count(MARKER)
        self._tail = data[-TAIL_BYTES:] if len(data) >= TAIL_BYTES else (self._tail + data)[-TAIL_BYTES:]
        if self.first_token_at_s is None and self.events and self._status == _OK:
            self.first_token_at_s = self._now()
            self.first.set()
        if DONE in self._tail[-len(data) - len(DONE) :]:
            self.finished_at_s = self._now()
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the stream, whole or not."""
        self._lost = exc
        self._transport = None
        self._end()

    def abort(self) -> None:
        """Closes the connection, which cancels the request at the instance."""
        if self._transport is not None:
            self._transport.abort()
        self._end()

    @property
    def status(self) -> int | None:
        """The answer's; ``None`` before it came."""
        return int(self._status) if self._status else None

    def header(self, name: str) -> str:
        """The answer's first of this name; empty where it has none."""
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            said, _, value = line.partition(":")
            if said.strip().lower() == name:
                return value.strip()
        return ""

    def usage(self) -> Usage:
        """What the instance said at the end; raises CompletionError for any other end."""
        if self._status != _OK:
            raise CompletionError(f"status {self._status.decode() or 'none'}: {_readable(self._tail)}")
        if self.finished_at_s is None:
            raise CompletionError(
                f"the stream broke after {self.events} events{f': {self._lost}' if self._lost else ''}"
            )
        found = _USAGE.findall(self._tail)
        try:
            usage = json.loads(found[-1])
            return Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise CompletionError(f"the stream ended without usage: {_readable(self._tail)}") from error

    def _read_head(self, data: bytes) -> bytes:
        self.head += data
        head, separator, body = self.head.partition(b"\r\n\r\n")
        if not separator:
            return b""
        found = _STATUS.match(head)
        self._status = found[1] if found else b"000"
        self._unchunker = Unchunker() if _CHUNKED.search(head) else None
        self.head, self._has_head = head, True
        return body

    def _end(self) -> None:
        self.first.set()
        self.closed.set()
        if self._transport is not None:
            self._transport.close()


def completion_request(
    *,
    endpoint: str,
    model: str,
    request_id: str,
    prompt_tokens: int,
    output_tokens: int,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """A streamed ``POST /v1/completions`` whose prompt and answer have exactly these lengths."""
    options = {
        "model": model,
        "max_tokens": output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    prompt = b"1," * (prompt_tokens - 1) + b"1"
    body = json.dumps(options).encode()[:-1] + b', "prompt": [' + prompt + b"]}"
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {endpoint}\r\nContent-Type: application/json\r\n"
        f"Accept: text/event-stream\r\nX-Request-Id: {request_id}\r\nContent-Length: {len(body)}\r\n"
        f"{more}Connection: close\r\n\r\n"
    )
    return head.encode() + body


async def open_completion(endpoint: str, request: bytes, *, timeout_s: float) -> CompletionStream:
    """Connects and sends; raises CompletionError where nobody listens."""
    host, _, port = endpoint.rpartition(":")
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            _, stream = await loop.create_connection(lambda: CompletionStream(request), host.strip("[]"), int(port))
    except (OSError, TimeoutError) as error:
        raise CompletionError(f"{endpoint} did not answer: {error or 'timed out'}") from error
    return stream


def _readable(content: bytes) -> str:
    return " ".join(content.decode(errors="replace").split())[:200]

"""What an engine's answer says of itself while it passes: its first token, how many there are, and its usage.

An answer is either one JSON object or a stream of server-sent events. Chunks may end anywhere, within a character as
well as within a line. Nothing is kept but the line under way and, of a JSON answer, its end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from llmrouter.quick import quick
from router_grpc.picker.bodies import read_json

MAX_LINE_BYTES = 256 * 1024
"""A line that is longer is counted, and not read."""

MAX_SAID_TOKENS = 1_000_000_000
"""A count that is larger is said to be this: whoever learns from usage does not believe it."""

MAX_KEPT_BYTES = 64 * 1024
"""Of a JSON answer so much of its end is kept: usage stands last."""

_DATA = b"data:"
_DONE = b"[DONE]"
_END = b"\n\n"
_USAGE = b'"usage"'


@quick
@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as an engine counted them; ``None`` where it did not say."""

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None


class AnswerScan:
    """Reads an answer as it passes. ``events`` counts those that carry something: about one for each token."""

    def __init__(self, *, is_stream: bool) -> None:
        self.is_stream = is_stream
        self._line = bytearray()
        self._skips_line = False
        self.events = 0
        self.has_begun = False
        self.usage = Usage()

    @property
    def output_tokens(self) -> int | None:
        """As the engine counted them, else as many as there were events; ``None`` where neither is known."""
        if self.usage.output_tokens is not None:
            return self.usage.output_tokens
        return self.events if self.is_stream and self.events else None

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes."""
        if chunk:
            self.has_begun = self.has_begun or not self.is_stream
            if self.is_stream:
                self._feed_lines(chunk)
            else:
                self._line += chunk
                del self._line[: max(0, len(self._line) - MAX_KEPT_BYTES)]

    def end(self) -> None:
        """The answer is over."""
        if self.is_stream:
            self._take(bytes(self._line))
        else:
            self._note(_last_usage(bytes(self._line)))
        self._line.clear()

    def _feed_lines(self, chunk: bytes) -> None:
        if chunk.endswith(_END) and not self._line and not self._skips_line and chunk.find(b"\n") == len(chunk) - 2:
            self._take(chunk[:-2])  # one event, as most chunks are
            return
        first, *others = chunk.split(b"\n")
        self._extend(first)
        for line in others:
            if not self._skips_line:
                self._take(bytes(self._line))
            self._line.clear()
            self._skips_line = False
            self._extend(line)

    def _extend(self, part: bytes) -> None:
        if self._skips_line:
            return
        if len(self._line) + len(part) > MAX_LINE_BYTES:
            if self._line.startswith(_DATA):
                self._count()
            self._line.clear()
            self._skips_line = True
        else:
            self._line += part

    def _take(self, line: bytes) -> None:
        if not line.startswith(_DATA):
            return
        data = line[len(_DATA) :].strip()
        if not data or data == _DONE:
            return
        content: dict[str, Any] = {}
        if _USAGE in data:
            content = _object(data)
            self._note(_usage_of(content))
        if _carries(data) and content.get("choices") != []:
            self._count()

    def _count(self) -> None:
        self.events += 1
        self.has_begun = True

    def _note(self, usage: Usage) -> None:
        known = self.usage
        self.usage = Usage(
            prompt_tokens=_newer(usage.prompt_tokens, known.prompt_tokens),
            output_tokens=_newer(usage.output_tokens, known.output_tokens),
            cached_tokens=_newer(usage.cached_tokens, known.cached_tokens),
        )


def _carries(data: bytes) -> bool:
    """Whether an event carries part of an answer: OpenAI's choices and deltas, Anthropic's deltas of content."""
    return b'"choices"' in data or (b'delta"' in data and b'"message_delta"' not in data)


def _newer(value: int | None, known: int | None) -> int | None:
    return known if value is None else value


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = read_json(text)
    except (ValueError, RecursionError):
        return {}  # not an answer that says usage; it is passed on as it is all the same
    return value if isinstance(value, dict) else {}


def _last_usage(text: bytes) -> Usage:
    """Usage of a JSON answer, of which perhaps only the end is there."""
    place = text.rfind(_USAGE)
    if place > 0 and text[place - 1 : place] != b"\\":
        found = _object(b"{" + text[place:])  # an object where usage and what follows it are the answer's own members
        if isinstance(found.get("usage"), dict):
            return _usage_of(found)
    whole = _object(text)
    if whole:
        return _usage_of(whole)
    if place < 0:
        return Usage()
    begin = text.find(b"{", place)
    try:
        found, _ = json.JSONDecoder().raw_decode(text[begin:].decode("utf-8", "replace")) if begin >= 0 else ({}, 0)
    except (ValueError, RecursionError):
        return Usage()
    return _usage_of({"usage": found})


def _usage_of(content: dict[str, Any]) -> Usage:
    """OpenAI's names and Anthropic's; Anthropic's first event carries it within ``message``."""
    usage = content.get("usage")
    for inner in ("message", "response"):
        if usage is None and isinstance(content.get(inner), dict):
            usage = content[inner].get("usage")
    if not isinstance(usage, dict):
        return Usage()
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else usage.get("cache_read_input_tokens")
    return Usage(
        prompt_tokens=_whole(usage.get("prompt_tokens", usage.get("input_tokens"))),
        output_tokens=_whole(usage.get("completion_tokens", usage.get("output_tokens"))),
        cached_tokens=_whole(cached),
    )


def _whole(value: object) -> int | None:
    """A count of tokens; ``None`` where it is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    return min(value, MAX_SAID_TOKENS)

"""Server-sent events: a stream of bytes cut into events, which nothing changes."""

from __future__ import annotations

import json
import re
from typing import Any

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""An event that is longer is none: as long as the longest prompt, whose tokens an engine may repeat in one event."""

DONE = b"[DONE]"
DONE_EVENT = b"data: [DONE]\n\n"

_END = re.compile(rb"\r?\n\r?\n")
_LONGEST_END = 4


class EventTooLongError(ValueError):
    """An event has no end within ``MAX_EVENT_BYTES``."""


class EventCutter:
    """Takes bytes cut anywhere, gives whole events, each with the blank line that ends it."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._kept = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that end within the chunk.

        Raises:
            EventTooLongError: one does not end.
        """
        kept, events, begin = self._kept, [], 0
        at = max(0, len(kept) + 1 - _LONGEST_END)
        kept += chunk
        while found := _END.search(kept, at):
            at = found.end()
            events.append(bytes(kept[begin:at]))
            begin = at
        del kept[:begin]
        if len(kept) > self._max_event_bytes:
            raise EventTooLongError(f"an event of more than {self._max_event_bytes} bytes")
        return events


def data_of(event: bytes) -> bytes:
    """What the event's ``data`` lines say."""
    lines = (line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:"))
    return b"\n".join(lines).strip()


def object_of(text: bytes | bytearray) -> dict[str, Any] | None:
    """A JSON object; ``None`` where it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None  # not ours to judge: who asks passes it on as it is
    return value if isinstance(value, dict) else None


def event_of(said: dict[str, Any]) -> bytes:
    """An event that says this."""
    return b"data: " + json_bytes(said) + b"\n\n"


def json_bytes(value: object) -> bytes:
    """JSON without spaces; in plain characters where the text holds halves of characters, which UTF-8 cannot."""
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()

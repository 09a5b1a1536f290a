"""What the cases of the suite are made of."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmrouter.testbed.epp.stream import (
    DESTINATION,
    MOST_CHUNK_BYTES,
    Deviation,
    Picked,
    Stream,
    ask,
    body_message,
    headers_message,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from llmrouter.testbed.epp.stream import Target

BAD_REQUEST, TOO_LARGE, SATURATED, UNAVAILABLE = 400, 413, 429, 503
QUIET_S = 0.2
NOBODY = "192.0.2.1:9"
"""An endpoint that is nobody's (RFC 5737)."""


@dataclass(frozen=True, slots=True)
class Case:
    """One question; ``needs`` names the target that it is put to (``command.NEEDS`` says what each is)."""

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


async def goes_on(target: Target) -> None:
    """Another client's request is picked for as ever."""
    body = chat(target)
    check_picked(await ask(target, chunks=[body]), body)


@asynccontextmanager
async def placed(target: Target, when: str) -> AsyncIterator[Stream]:
    """A stream whose request is picked for by a picker that takes one; of another's end it may hear late."""
    deadline_s = time.monotonic() + target.answer_s
    while True:
        async with Stream(target) as stream:
            await stream.send(headers_message("/v1/chat/completions"))
            await stream.send(body_message(chat(target), ends=True))
            found = await stream.picked()
            if found.status is None:
                check_picked(found)
                yield stream
                return
        check(time.monotonic() < deadline_s, f"{when} still status {found.status}")
        await asyncio.sleep(QUIET_S)

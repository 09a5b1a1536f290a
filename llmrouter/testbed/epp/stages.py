"""Instances that do one stage of a request each: the one that answers is told which one computes the prompt."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from llmrouter.testbed.epp.case import NOBODY, Case, chat, check, check_picked
from llmrouter.testbed.epp.stream import DESTINATION, ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.testbed.epp.stream import Target

PREFILLER = "x-prefiller-host-port"
WORDS = 2_000
"""Of a prompt that is worth handing over."""


async def _named(target: Target, headers: Sequence[tuple[str, str]] = ()) -> None:
    word = secrets.token_hex(3)  # a prompt that nobody has cached
    body = chat(target, text=f"{word} " * WORDS)
    found = await ask(target, chunks=[body], headers=headers)
    check_picked(found, body)
    said = found.set_headers.get(PREFILLER, "")
    check(said, f"no header {PREFILLER}")
    host, _, port = said.rpartition(":")
    check(host and port.isdecimal(), f"{PREFILLER} {said!r} is not host:port")
    check(said != NOBODY, "the engine gets the client's")
    check(said not in found.destination.split(","), f"{PREFILLER} and {DESTINATION} are both {said}")


async def _forged(target: Target) -> None:
    await _named(target, [(PREFILLER, NOBODY)])


CASES = (
    Case("two stages: another endpoint computes a long prompt", _named, needs="stages"),
    Case("two stages: a forged prefill endpoint is replaced", _forged, needs="stages"),
)

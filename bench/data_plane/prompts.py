"""The bodies of the requests: files with one JSON body a line, a placeholder where a number goes.

Sixteen applications share a beginning among their requests; what follows is new in every request.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from pathlib import Path

MODEL = "llama"
PLACEHOLDER = "#" * 12
APPLICATIONS = 16
LONG_APPLICATIONS = 4
SHORT_TOKENS, LONG_TOKENS = 200, 100_000
WORDS_PER_TOKEN = 0.75
"""The rule of thumb for English."""

STREAM_CHUNKS = 200
_TEXT = (
    "the of and to in is that it was for on are with as be this have from or one had by but not what all were when we "
    "there can an your which their said if do will each about how up out them then she many some so these would other "
    "into has more her two like him see time could no make than first been its who now people my made over did down "
    "only way find use may water long little very after words called just where most know get through back much before "
    "go good new write our used me man too any day same right look think also around another came come work three word "
    "must because does part even place well such here take why things help put years different away again off went old "
    "number great tell men say small every found still between name should home big give air line set own under read"
)
_WORDS = _TEXT.split()


@dataclass(frozen=True, slots=True)
class PromptFiles:
    """Where the bodies lie: short ones, short ones that ask for a stream, long ones."""

    short: Path
    streams: Path
    long: Path


def write_prompts(folder: Path, rng: random.Random) -> PromptFiles:
    """Writes the three files; the same stream of chances gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    files = PromptFiles(folder / "short.jsonl", folder / "streams.jsonl", folder / "long.jsonl")
    short = [_messages(SHORT_TOKENS, rng) for _ in range(APPLICATIONS)]
    long = [_messages(LONG_TOKENS, rng) for _ in range(LONG_APPLICATIONS)]
    _write(files.short, [_body(one, streams=False) for one in short])
    _write(files.streams, [_body(one, streams=True) for one in short])
    _write(files.long, [_body(one, streams=False) for one in long])
    return files


def _messages(tokens: int, rng: random.Random) -> list[dict[str, str]]:
    words = rng.choices(_WORDS, k=int(tokens * WORDS_PER_TOKEN))
    half = len(words) // 2
    return [
        {"role": "system", "content": " ".join(words[:half])},
        {"role": "user", "content": f"{PLACEHOLDER} {' '.join(words[half:])}"},
    ]


def _body(messages: list[dict[str, str]], *, streams: bool) -> str:
    # The engines look at the first bytes alone: how to answer stands before the prompt.
    head = {"model": MODEL, "stream": streams, "max_tokens": STREAM_CHUNKS, "messages": messages}
    return json.dumps(head, separators=(",", ":"))


def _write(path: Path, bodies: list[str]) -> None:
    path.write_text("\n".join(bodies) + "\n", encoding="utf-8")

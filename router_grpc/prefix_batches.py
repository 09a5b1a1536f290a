"""Uses of prefix caches as bytes: what routers tell each other of where they sent which prompt beginnings.

A batch is one byte of version, eight that name the key its hashes were made with, and its uses: bytes of the instance's
id, tokens of a block, tokens of the prompt, number of hashes, the id, the hashes (all little-endian).
"""

from __future__ import annotations

import math
import struct
from collections import deque
from typing import NamedTuple

from llmrouter.errors import InvalidInputError
from llmrouter.routing.prefixes import MAX_BLOCKS

VERSION = 1
KEY_ID_BYTES = 8
MAX_BATCH_BYTES = 24 * 1024
"""Of a batch: 3,000 blocks. The largest prompt has 2,048, 16 KiB."""

MAX_WAITING_BYTES = 4 * MAX_BATCH_BYTES
"""Uses that wait to be told; the oldest give way."""

MAX_ID_BYTES = 512
MIN_BLOCK_TOKENS, MAX_BLOCK_TOKENS = 1e-6, 1e9
MAX_PROMPT_TOKENS = 2**31 - 1
HASH_BYTES = 8

_HEAD = struct.Struct(f"<B{KEY_ID_BYTES}s")
_USE = struct.Struct("<HdIH")


class ToldUse(NamedTuple):
    """A prompt that was sent to an instance: hashes of its beginnings, shortest first, and what a block has."""

    instance_id: str
    hashes: tuple[int, ...]
    block_tokens: float
    prompt_tokens: int


class Outbox:
    """Uses that are still to be told, in the order they were made; ``dropped`` counts those that had no room."""

    def __init__(self) -> None:
        self._waiting: deque[ToldUse] = deque()
        self._bytes = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, use: ToldUse) -> None:
        """To be told with one of the next batches."""
        self._waiting.append(use)
        self._bytes += _room(use)
        while self._bytes > MAX_WAITING_BYTES:
            self._bytes -= _room(self._waiting.popleft())
            self.dropped += 1

    def take(self) -> list[ToldUse]:
        """The oldest that fit into one batch."""
        taken, room = [], MAX_BATCH_BYTES - _HEAD.size
        while self._waiting and (needed := _room(self._waiting[0])) <= room:
            taken.append(self._waiting.popleft())
            room -= needed
            self._bytes -= needed
        return taken

    def clear(self) -> None:
        """Nobody is told of what waits."""
        self.dropped += len(self._waiting)
        self._waiting.clear()
        self._bytes = 0


def encode(key_id: bytes, uses: list[ToldUse]) -> bytes:
    """What ``decode`` reads; as ``Outbox.take`` gave them, uses fit into a batch."""
    parts = [_HEAD.pack(VERSION, key_id)]
    for use in uses:
        name = _name(use.instance_id)
        parts.append(_USE.pack(len(name), use.block_tokens, use.prompt_tokens, len(use.hashes)))
        parts.append(name)
        parts.append(struct.pack(f"<{len(use.hashes)}Q", *use.hashes))
    return b"".join(parts)


def decode(raw: bytes) -> tuple[bytes, list[ToldUse]]:
    """What was encoded: the key's name, and the uses in their order; time and memory are bounded whatever the bytes.

    Raises:
        InvalidInputError: another version, or no such bytes.
    """
    if not _HEAD.size <= len(raw) <= MAX_BATCH_BYTES:
        raise InvalidInputError(f"a batch of uses has {len(raw)} bytes, not {_HEAD.size} to {MAX_BATCH_BYTES}")
    version, key_id = _HEAD.unpack_from(raw)
    if version != VERSION:
        raise InvalidInputError(f"a batch of uses is of version {version}, here it is {VERSION}")
    uses, at = [], _HEAD.size
    while at < len(raw):
        use, at = _read(raw, at)
        uses.append(use)
    return key_id, uses


def _read(raw: bytes, at: int) -> tuple[ToldUse, int]:
    if at + _USE.size > len(raw):
        raise InvalidInputError(f"a batch of uses is cut at byte {at}")
    name_bytes, block_tokens, prompt_tokens, count = _USE.unpack_from(raw, at)
    at += _USE.size
    end = at + name_bytes + count * HASH_BYTES
    is_sound = (
        1 <= name_bytes <= MAX_ID_BYTES
        and math.isfinite(block_tokens)
        and MIN_BLOCK_TOKENS <= block_tokens <= MAX_BLOCK_TOKENS
        and 1 <= prompt_tokens <= MAX_PROMPT_TOKENS
        and 1 <= count <= MAX_BLOCKS
    )
    if not is_sound or end > len(raw):
        raise InvalidInputError(f"a batch of uses has one that is out of bounds before byte {at}")
    name = raw[at : at + name_bytes].decode("utf-8", "replace")
    hashes = struct.unpack_from(f"<{count}Q", raw, at + name_bytes)
    return ToldUse(name, hashes, block_tokens, prompt_tokens), end


def _room(use: ToldUse) -> int:
    return _USE.size + len(_name(use.instance_id)) + HASH_BYTES * len(use.hashes)


def _name(instance_id: str) -> bytes:
    return instance_id.encode("utf-8", "replace")

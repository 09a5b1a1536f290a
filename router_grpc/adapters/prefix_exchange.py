"""Where routers tell each other which prompt beginnings they sent where: a capped stream in Redis, and a common key."""

from __future__ import annotations

import asyncio
import hashlib
from importlib import resources
from typing import TYPE_CHECKING, Any

from redis.client import NEVER_DECODE
from redis.exceptions import NoScriptError, RedisError

from llmrouter.errors import LedgerUnavailableError
from router_grpc.prefix_batches import MAX_BATCH_BYTES
from router_grpc.prefix_sharing import HeardBatches

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

MAX_ENTRIES = 1_024
"""Of the stream, 24 MB at most: four routers that publish ten times a second fill it in 25 s."""

PAGE = 64
PAGE_BYTES = 128 * 1024
"""An answer ends with the batch that reaches this: 16,384 blocks and one batch more."""

STREAM_TTL_S = 3_600.0
KEY_TTL_S = 7 * 24 * 3_600.0


class RedisPrefixExchange:
    """A ``PrefixExchange`` in Redis 6.2 or later, one script call a swap. Its keys carry the ledger's hash tag.

    Args:
        client: authenticated as its maker pleases, who also closes it; the ledger's own will do.
        namespace: the ledger's: routers with the same one share a key and what they sent where.
        author: this router, in this life of its process: never used before, nor by another.
        timeout_s: how long any one call may take, waiting for a connection included.
        max_entries: the cap of the stream.
    """

    def __init__(
        self, client: Redis, namespace: str, author: str, *, timeout_s: float, max_entries: int = MAX_ENTRIES
    ) -> None:
        self._execute: Callable[..., Awaitable[Any]] = client.execute_command
        stream = f"{{llmrouter:{namespace}}}:prefixes"
        self._keys = stream, f"{stream}:key"
        self._author = author
        self._timeout_s = timeout_s
        self._max_entries = max_entries
        self._read: tuple[bytes, bytes] = b"", b"0"
        self._script = (resources.files("router_grpc") / "lua" / "prefixes_swap.lua").read_text(encoding="utf-8")
        self._sha = hashlib.sha1(self._script.encode(), usedforsecurity=False).hexdigest()

    async def swap(self, batch: bytes) -> HeardBatches:
        """See ``PrefixExchange``; at most ``PAGE`` entries a call."""
        lives = round(STREAM_TTL_S * 1_000), round(KEY_TTL_S * 1_000)
        words = self._author, batch, self._max_entries, *lives, *self._read, PAGE, PAGE_BYTES, MAX_BATCH_BYTES
        tail = len(self._keys), *self._keys, *words
        try:
            answer = await self._ask("EVALSHA", self._sha, *tail)
        except NoScriptError:  # the server is new or has forgotten: EVAL runs the script and keeps it
            answer = await self._ask("EVAL", self._script, *tail)
        key, birth, place, missed, large, *batches = answer
        self._read = birth, place
        return HeardBatches(key, tuple(batches), missed=int(missed), too_large=int(large))

    async def agree_on(self, key: bytes) -> bytes:
        """See ``PrefixExchange``."""
        await self._ask("SET", self._keys[1], key, "PX", round(KEY_TTL_S * 1_000), "NX")
        return await self._ask("GET", self._keys[1]) or b""

    async def _ask(self, command: str, *words: str | bytes | int) -> Any:  # noqa: ANN401 - Redis answers in any shape
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._execute(command, *words, **{NEVER_DECODE: True})
        except NoScriptError:
            raise
        except (RedisError, OSError, TimeoutError) as error:
            raise LedgerUnavailableError(f"prefixes: {command}: {type(error).__name__}: {error}") from error

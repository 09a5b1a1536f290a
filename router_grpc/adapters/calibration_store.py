"""Keeps what routers learn of step times in Redis: one hash beside the ledger, one field a pool."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.client import NEVER_DECODE
from redis.exceptions import RedisError

from llmrouter.errors import LedgerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

LIFETIME_S = 7 * 24 * 3_600
"""What nobody saves for so long is forgotten."""


class RedisCalibrationStore:
    """A ``CalibrationStore`` in Redis; its key carries the hash tag of the ledger.

    Args:
        client: authenticated as its maker pleases, who also closes it; the ledger's own will do.
        namespace: the ledger's.
        timeout_s: how long any one call may take.
    """

    def __init__(self, client: Redis, namespace: str, *, timeout_s: float) -> None:
        self._execute: Callable[..., Awaitable[Any]] = client.execute_command
        self._key = f"{{llmrouter:{namespace}}}:calibration"
        self._timeout_s = timeout_s

    async def load(self, pool: str) -> bytes | None:
        """See ``CalibrationStore``."""
        raw = await self._call("HGET", self._key, pool, **{NEVER_DECODE: True})
        return None if raw is None else bytes(raw)

    async def save(self, pool: str, raw: bytes) -> None:
        """See ``CalibrationStore``."""
        await self._call("HSET", self._key, pool, raw)
        await self._call("EXPIRE", self._key, LIFETIME_S)

    async def _call(self, *words: str | bytes | int, **options: bool) -> Any:  # noqa: ANN401 - what Redis answers
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._execute(*words, **options)
        except (RedisError, OSError, TimeoutError) as error:
            raise LedgerUnavailableError(f"calibration: {type(error).__name__}: {error}") from error

"""Tells other routers which prompt beginnings were sent where, and learns where they sent theirs.

All routers of one ledger hash with one key, random, which the first of them brings: equal beginnings have equal hashes
everywhere. Until the key is known a router hashes with its own, tells nothing and hears nothing.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from llmrouter.errors import InvalidInputError, LedgerUnavailableError
from router_grpc.prefix_batches import decode, encode

if TYPE_CHECKING:
    from llmrouter.metrics import PrefixMetrics
    from router_grpc.ports import InstanceSource
    from router_grpc.prefix_batches import ToldUse
    from router_grpc.prefixing import Prefixing

KEY_BYTES = 32
STEP_S = 0.1
"""Between steps: a router publishes a batch a step at most, 240 KiB a second."""

AWAY_S = 1.0
"""Between steps while the others cannot be reached."""

BLOCKS_AT_ONCE = 512
"""After so many the event loop does something else: about a millisecond (``bench/prefix_sharing.py``)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeardBatches:
    """What others published, oldest first. ``key`` is the common one, ``None`` where nobody has brought one yet.

    ``missed`` entries were gone before they were read; ``too_large`` ones were left where they are.
    """

    key: bytes | None
    batches: tuple[bytes, ...]
    missed: int = 0
    too_large: int = 0


class PrefixExchange(Protocol):
    """Where routers tell each other what they sent where. One object serves one router.

    Raises:
        LedgerUnavailableError: from any method, where the backend did not answer in time.
    """

    async def swap(self, batch: bytes) -> HeardBatches:
        """Publishes a batch, unless it is empty; what others published since the last call, a bounded part of it."""
        ...

    async def agree_on(self, key: bytes) -> bytes:
        """The common key; this one, where there is none yet."""
        ...


class PrefixSharing:
    """Steps of sharing; one object for each router, of its event loop.

    A use that is told twice, or never, does no harm: what fails is dropped and counted, and not tried again.

    Args:
        exchange: what routers have in common.
        prefixes: this router's, with its outbox.
        instances: uses of others are not taken in.
        metrics: where uses and batches are counted.
    """

    def __init__(
        self, exchange: PrefixExchange, prefixes: Prefixing, instances: InstanceSource, *, metrics: PrefixMetrics
    ) -> None:
        self._exchange = exchange
        self._prefixes = prefixes
        self._outbox = prefixes.outbox
        self._instances = instances
        self._uses = metrics.exchange_uses
        self._batches = metrics.exchange_batches
        self._counted_drops = 0
        self._has_common_key = False
        self._is_away = False
        self._is_refused = False
        self._turn = asyncio.Lock()

    @property
    def pause_s(self) -> float:
        """How long to wait until the next step."""
        return AWAY_S if self._is_away else STEP_S

    async def step(self) -> None:
        """Publishes a batch of what was sent from here, and takes in what others published; never raises for Redis.

        Nothing is published before the common key is known, nor while the policy leaves prefixes alone.
        """
        async with self._turn:
            try:
                if self._prefixes.enabled:
                    await self._step()
            finally:
                self._count_drops()

    async def _step(self) -> None:
        told = self._outbox.take() if self._has_common_key else []
        try:
            heard = await self._exchange.swap(encode(self._prefixes.key_id, told) if told else b"")
            key = heard.key if heard.key is not None else await self._exchange.agree_on(self._prefixes.key)
        except LedgerUnavailableError:
            self._is_away = True
            self._count_batches("Unavailable")
            self._count_uses("Dropped", len(told))
            return
        self._is_away = False
        self._count_uses("Published", len(told))
        self._count_batches("Published", 1 if told else 0)
        self._count_batches("Missed", heard.missed)
        self._count_batches("Refused", heard.too_large)
        if self._follow(key):
            for batch in heard.batches:
                await self._take_in(batch)

    def _follow(self, key: bytes) -> bool:
        """Hashes with the common key from now on; False where it cannot be one."""
        if len(key) != KEY_BYTES:
            if not self._is_refused:
                _log.error("the common key of prefix hashes is none: prefixes are not shared")
            self._is_refused, self._has_common_key = True, False
            self._count_batches("Refused")
            return False
        if self._prefixes.change_key(key):
            self._outbox.clear()
            _log.info("prefixes are hashed with the routers' common key from now on: the index begins empty")
        self._is_refused, self._has_common_key = False, True
        return True

    async def _take_in(self, batch: bytes) -> None:
        try:
            key_id, uses = decode(batch)
        except InvalidInputError:
            self._count_batches("Refused")
            return
        if key_id != self._prefixes.key_id:
            self._count_batches("OtherKey")
            return
        self._count_batches("Received")
        blocks = 0
        for use in uses:
            self._count_uses("Received" if self._apply(use) else "Unknown")
            blocks += len(use.hashes)
            if blocks >= BLOCKS_AT_ONCE:
                blocks = 0
                await asyncio.sleep(0)
        await asyncio.sleep(0)

    def _apply(self, use: ToldUse) -> bool:
        instance = self._instances.get(use.instance_id)
        if instance is None:
            return False
        self._prefixes.index.use(
            use.instance_id,
            use.hashes,
            block_tokens=use.block_tokens,
            prompt_tokens=use.prompt_tokens,
            kv_tokens=instance.profile.kv_tokens,
        )
        return True

    def _count_drops(self) -> None:
        self._count_uses("Dropped", self._outbox.dropped - self._counted_drops)
        self._counted_drops = self._outbox.dropped

    def _count_uses(self, event: str, number: int = 1) -> None:
        if number:
            self._uses.labels(event).inc(number)

    def _count_batches(self, event: str, number: int = 1) -> None:
        if number:
            self._batches.labels(event).inc(number)

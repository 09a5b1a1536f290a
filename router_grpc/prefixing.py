"""What this router takes to be in the engines' prefix caches: names prompts, expects hits, and learns from usage.

Of a prompt nothing is kept but keyed hashes of its beginnings (SipHash-2-4). The key is random, the router's own or,
with Redis, that of all its routers: a hash says nothing of the text to who does not have both, and texts cannot be made
to collide. Each model and cache salt of a client has a key of its own, derived from that one by BLAKE2b, so that
nobody's prompt counts as cached for another salt.
"""

from __future__ import annotations

import logging
from hashlib import blake2b
from typing import TYPE_CHECKING

from llmrouter.metrics import MAX_INSTANCE_LABELS
from llmrouter.quick import changed
from llmrouter.routing.prefixes import MAX_BLOCKS, PrefixIndex, thinned
from router_grpc.beginnings import KEY_BYTES, hash_each, hashes_of
from router_grpc.prefix_batches import KEY_ID_BYTES, Outbox, ToldUse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmrouter.domain import Instance, Request
    from llmrouter.metrics import PrefixMetrics
    from llmrouter.routing.prefixes import Use
    from router_grpc.calls import RouteAsk

BLOCK_BYTES = 256
"""Of text: about 64 tokens of English."""

NamedPrompt = tuple[tuple[int, ...], float]
"""Hashes of a prompt's beginnings, shortest first, and the tokens of each block between them."""

NAMELESS: NamedPrompt = ((), 0.0)

KEPT_BYTES_PER_BLOCK = 40
"""Memory of one hash of a held request."""

_log = logging.getLogger(__name__)


class Prefixing:
    """The prefixes of one router. Methods belong to the event loop.

    Args:
        key: of the hashes, 16 to 64 random bytes; the empty one of tests is no secret.
        index: where prompts are; its own bound holds.
        is_shared: whether other routers are told what is sent where; what is to be told waits in ``outbox``.

    ``enabled`` says whether the policy in force wants hits to count.
    """

    def __init__(self, key: bytes = b"", index: PrefixIndex | None = None, *, is_shared: bool = False) -> None:
        self._key = key
        self._keys: dict[str, bytes] = {}
        """Keys of models without a salt, by model: of few names, those of the configuration."""
        self.index = index or PrefixIndex()
        self.outbox = Outbox()
        self.enabled = True
        self._is_shared = is_shared
        self._shown: set[tuple[str, str]] = set()

    @property
    def key(self) -> bytes:
        """A secret: to be told to the other routers of one ledger, and to nobody else."""
        return self._key

    @property
    def key_id(self) -> bytes:
        """Says which key hashes were made with, and nothing of the key."""
        return blake2b(b"prefix key", digest_size=KEY_ID_BYTES, key=self._key, person=b"llmrouter key id").digest()

    def change_key(self, key: bytes) -> bool:
        """Names prompts with this key from now on; where it is another one, the index begins empty."""
        if key == self._key:
            return False
        self._key = key
        self._keys.clear()
        self.index.keep_only(())
        return True

    def named(self, ask: RouteAsk, prompt_tokens: int) -> NamedPrompt:
        """The hashes of the beginnings of a prompt: the client's where it gave some, else of the text."""
        if ask.prefix_hashes:
            given, block_tokens = thinned(ask.prefix_hashes, ask.prefix_block_tokens)
            return hash_each(given, self._key_of(ask)), float(block_tokens)
        prompt = ask.prompt
        if prompt is None or len(prompt) < BLOCK_BYTES:
            return NAMELESS
        hashes = hashes_of(prompt, self._key_of(ask), BLOCK_BYTES, MAX_BLOCKS)
        return hashes, prompt_tokens * BLOCK_BYTES / len(prompt)

    def hits(self, named: NamedPrompt, prompt_tokens: int) -> Mapping[str, int]:
        """Tokens of a prompt of so many that each instance probably has cached now; none where it is not listed."""
        hashes, block_tokens = named
        return self.index.hits(hashes, block_tokens, prompt_tokens) if self.enabled and hashes else {}

    def with_hits(self, request: Request) -> Request:
        """The request with the prompt tokens that each instance probably has cached now."""
        if not self.enabled or not request.prefix_hashes:
            return request
        hits = self.hits((request.prefix_hashes, request.prefix_block_tokens), request.prompt_tokens)
        return changed(request, cached_tokens=hits)

    def sent(self, request: Request, instance: Instance, metrics: PrefixMetrics) -> Use | None:
        """A request goes to an instance; what was expected there, to be held against its usage."""
        if not self.enabled or not request.prefix_hashes:
            return None
        metrics.hit_tokens.labels("expected").inc(request.cached_tokens.get(instance.instance_id, 0))
        return self._used(request, instance)

    def handed_over(self, request: Request, instance: Instance) -> None:
        """An instance is given a prompt that another one computes, and has it from then on."""
        if self.enabled and request.prefix_hashes:
            self._used(request, instance)

    def _used(self, request: Request, instance: Instance) -> Use:
        if self._is_shared:
            told = request.prefix_hashes, request.prefix_block_tokens, request.prompt_tokens
            self.outbox.add(ToldUse(instance.instance_id, *told))
        kv_tokens = instance.profile.kv_tokens
        hashes, block_tokens, prompt_tokens = request.prefix_hashes, request.prefix_block_tokens, request.prompt_tokens
        return self.index.use(
            instance.instance_id, hashes, block_tokens=block_tokens, prompt_tokens=prompt_tokens, kv_tokens=kv_tokens
        )

    def reported(self, use: Use, cached_tokens: int, metrics: PrefixMetrics) -> None:
        """An engine said how many prompt tokens it had cached of a request that was sent there."""
        before = self.index.shares.get(use.instance_id, 1.0)
        self.index.reported(use, cached_tokens)
        metrics.hit_tokens.labels("checked").inc(use.expected_tokens)
        metrics.hit_tokens.labels("reported").inc(max(0, cached_tokens))
        after = self.index.shares.get(use.instance_id, 1.0)
        if (before > 0) != (after > 0):
            said = "prefix hits count again" if after > 0 else "no prefix hits come true: they count as none"
            _log.warning(said, extra={"instance": use.instance_id})

    def show(self, instances: Sequence[Instance], metrics: PrefixMetrics) -> None:
        """Sets the gauges; series of instances that are gone are dropped."""
        metrics.entries.set(self.index.entries)
        shares, shown = self.index.shares, set()
        for instance in instances[:MAX_INSTANCE_LABELS]:
            if (share := shares.get(instance.instance_id)) is not None:
                labels = (instance.pool, instance.instance_id)
                metrics.hit_share.labels(*labels).set(share)
                shown.add(labels)
        for labels in self._shown - shown:
            metrics.hit_share.remove(*labels)
        self._shown = shown

    def _key_of(self, ask: RouteAsk) -> bytes:
        """The key of whatever separates prompts of equal text."""
        known = None if ask.cache_salt else self._keys.get(ask.model)
        if known is None:
            apart = f"{len(ask.model)} {ask.model}{ask.cache_salt}\n".encode("utf-8", "surrogatepass")
            known = blake2b(apart, digest_size=KEY_BYTES, key=self._key, person=b"llmrouter apart").digest()
            if not ask.cache_salt:
                self._keys[ask.model] = known
        return known

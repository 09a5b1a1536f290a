"""Routers that tell each other what they sent where: their indexes, and the exchanges they share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry
from support.ledgers import TIMEOUT_S
from support.router_world import FixedInstances, config_of, instances_of

from llmrouter.domain import Request
from llmrouter.metrics import RouterMetrics
from router_grpc.adapters.prefix_exchange import MAX_ENTRIES, RedisPrefixExchange
from router_grpc.adapters.redis_ledger import redis_client
from router_grpc.calls import RouteAsk
from router_grpc.prefix_sharing import PrefixExchange, PrefixSharing
from router_grpc.prefixing import Prefixing

NAMESPACE = "tests/suite"
STREAM = f"{{llmrouter:{NAMESPACE}}}:prefixes"


class PrefixRouter:
    """One life of one router: its index, its exchange and its metrics; of two instances, ``a:1`` and ``b:1``."""

    def __init__(self, exchange: PrefixExchange, *, key: bytes) -> None:
        self.registry = CollectorRegistry()
        self.metrics = RouterMetrics(self.registry).prefixes
        self.prefixes = Prefixing(key, is_shared=True)
        self.instances = FixedInstances(instances_of(config_of("a:1", "b:1")))
        self.sharing = PrefixSharing(exchange, self.prefixes, self.instances, metrics=self.metrics)

    def request(self, prompt: bytes) -> Request:
        ask = RouteAsk(model="m", prompt_tokens=len(prompt) // 4, prompt=prompt)
        hashes, block_tokens = self.prefixes.named(ask, ask.prompt_tokens)
        return Request("r", "m", ask.prompt_tokens, 10.0, 0.0, prefix_hashes=hashes, prefix_block_tokens=block_tokens)

    def send(self, prompt: bytes, instance_id: str) -> None:
        instance = self.instances.get(instance_id)
        assert instance is not None
        self.prefixes.sent(self.request(prompt), instance, self.metrics)

    def expected(self, prompt: bytes) -> dict[str, int]:
        return dict(self.prefixes.with_hits(self.request(prompt)).cached_tokens)

    def uses(self, event: str) -> float:
        return self.registry.get_sample_value("llmrouter_prefix_exchange_uses_total", {"event": event}) or 0.0

    def batches(self, event: str) -> float:
        return self.registry.get_sample_value("llmrouter_prefix_exchange_batches_total", {"event": event}) or 0.0


class RedisRoom:
    """A real Redis, for as many routers as a test likes, each with a key of its own to begin with."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S, max_entries: int = MAX_ENTRIES) -> None:
        self.client = redis_client(url, timeout_s=timeout_s)
        self._timeout_s = timeout_s
        self._max_entries = max_entries
        self._made = 0

    def exchange(self, author: str) -> RedisPrefixExchange:
        return RedisPrefixExchange(
            self.client, NAMESPACE, author, timeout_s=self._timeout_s, max_entries=self._max_entries
        )

    def router(self, author: str) -> PrefixRouter:
        self._made += 1
        return PrefixRouter(self.exchange(author), key=bytes([self._made]) * 32)

    async def put(self, raw: bytes) -> None:
        """Appends an entry as a stranger who can write."""
        await self.exchange("stranger").swap(raw)


@asynccontextmanager
async def redis_room(
    url: str, *, timeout_s: float = TIMEOUT_S, max_entries: int = MAX_ENTRIES
) -> AsyncIterator[RedisRoom]:
    """A room that is closed in the end."""
    room = RedisRoom(url, timeout_s=timeout_s, max_entries=max_entries)
    try:
        yield room
    finally:
        await room.client.aclose()

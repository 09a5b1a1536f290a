"""Routers that learn lengths and share them, and the exchanges they share them through."""

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
from prometheus_client import CollectorRegistry
from support.ledgers import TIMEOUT_S

from llmrouter.lengths.bins import BINS
from llmrouter.lengths.distribution import MEDIAN
from llmrouter.lengths.online import OnlineQuantiles
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.lengths.sketches import Counts
from llmrouter.metrics import RouterMetrics
from router_grpc.adapters.length_exchange import LEASE_S, MAX_ENTRIES, RedisLengthStore
from router_grpc.adapters.redis_ledger import redis_client
from router_grpc.length_sharing import LengthSharing
from router_grpc.ports import LengthExchange

NAMESPACE = "tests/suite"


class Learner:
    """A `LengthLearner` in the event loop."""

    def __init__(self, *, half_life: float | None = 150.0) -> None:
        self.online = OnlineQuantiles(shared=True, half_life=half_life)

    async def delta(self) -> tuple[Counts, Counts]:
        return self.online.delta()

    async def merge(self, counts: Sequence[tuple[Counts, Counts]]) -> None:
        for one in counts:
            self.online.merge(one)

    async def counts(self) -> tuple[Counts, Counts]:
        return self.online.counts()


class SharingRouter:
    """One life of one router: its learner, its exchange and its metrics."""

    def __init__(self, exchange: LengthExchange, *, half_life: float | None = 150.0) -> None:
        self.registry = CollectorRegistry()
        self.learner = Learner(half_life=half_life)
        self.metrics = RouterMetrics(self.registry)
        self.sharing = LengthSharing(exchange, self.learner, metrics=self.metrics)

    def teach(self, application: str, *, median: float, count: int, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        for tokens in np.exp(rng.normal(math.log(median), 0.4, count)):
            request = LengthRequest(prompt_tokens=50, application=application, model="m")
            self.learner.online.learn(request, float(max(1, round(tokens))))

    def median(self, application: str) -> float:
        request = LengthRequest(prompt_tokens=50, application=application, model="m")
        return self.learner.online.predict([request]).row(0).quantiles[MEDIAN]

    def answers(self) -> float:
        """How many answers are known; exact where nothing is forgotten."""
        return float(self.learner.online.counts()[0].counts.sum())

    def events(self, event: str) -> float:
        return self.registry.get_sample_value("llmrouter_length_exchange_total", {"event": event}) or 0.0

    def dropped(self) -> float:
        return self.registry.get_sample_value("llmrouter_length_exchange_dropped_counts_total") or 0.0


def counts_of(key: str, number: float = 1.0, *, in_bin: int = 3) -> tuple[Counts, Counts]:
    """So many answers in one bin, of all requests and of one group."""
    row = np.zeros((1, BINS))
    row[0, in_bin] = number
    return Counts(("",), row), Counts((key,), row.copy())


def keys_of(counts: Sequence[tuple[Counts, Counts]]) -> list[str]:
    return [key for _, groups in counts for key in groups.keys]


@asynccontextmanager
async def redis_store(
    url: str, *, timeout_s: float = TIMEOUT_S, max_entries: int = MAX_ENTRIES, lease_s: float = LEASE_S
) -> AsyncIterator[RedisLengthStore]:
    """A store on a real Redis, for as many exchanges as a test likes."""
    client = redis_client(url, timeout_s=timeout_s)
    try:
        yield RedisLengthStore(client, NAMESPACE, timeout_s=timeout_s, max_entries=max_entries, lease_s=lease_s)
    finally:
        await client.aclose()

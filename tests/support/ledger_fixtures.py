"""Fixtures over `support.ledgers`: a Redis that tests share, and routers over one record of each kind."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.ledgers import Fleet, emptied, memory_ledger, redis_ledger, resilient_ledger

from llmrouter.testbed.cluster.redis import RedisServer
from router_grpc.adapters.memory_ledger import MemoryBook


@pytest.fixture(scope="session")
def common_redis(redis_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis for the tests that leave it running; each starts with it empty."""
    with RedisServer(redis_binary, tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture(params=["memory", "redis", "resilient"])
async def fleet(request: pytest.FixtureRequest, common_redis: RedisServer) -> AsyncIterator[Fleet]:
    """Routers over one record, of each kind in turn."""
    if request.param == "memory":
        book = MemoryBook()
        fleet = Fleet(lambda router_id: memory_ledger(router_id, book))
    else:
        url = await emptied(common_redis.url)
        make = redis_ledger if request.param == "redis" else resilient_ledger
        fleet = Fleet(lambda router_id: make(router_id, url))
    yield fleet
    await fleet.close()

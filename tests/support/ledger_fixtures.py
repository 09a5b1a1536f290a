"""Fixtures over `support.ledgers`: a Redis that tests share, and routers over one record of each kind."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.ledgers import TIMEOUT_S, Fleet, memory_ledger, redis_ledger, resilient_ledger

from llmrouter.testbed.cluster.redis import RedisServer
from router_grpc.adapters.memory_ledger import MemoryBook
from router_grpc.adapters.redis_ledger import redis_client


@pytest.fixture(scope="session")
def common_redis(redis_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis for the tests that leave it running; each starts with it empty."""
    with RedisServer(redis_binary, tmp_path_factory.mktemp("redis")) as running:
        yield running


async def emptied(server: RedisServer) -> str:
    """The URL of a server that has forgotten everything, scripts as well."""
    client = redis_client(server.url, timeout_s=TIMEOUT_S)
    await client.flushall()
    await client.script_flush()
    await client.aclose()
    return server.url


@pytest.fixture(params=["memory", "redis", "resilient"])
async def fleet(request: pytest.FixtureRequest, common_redis: RedisServer) -> AsyncIterator[Fleet]:
    """Routers over one record, of each kind in turn."""
    if request.param == "memory":
        book = MemoryBook()
        fleet = Fleet(lambda router_id: memory_ledger(router_id, book))
    else:
        url = await emptied(common_redis)
        make = redis_ledger if request.param == "redis" else resilient_ledger
        fleet = Fleet(lambda router_id: make(router_id, url))
    yield fleet
    await fleet.close()

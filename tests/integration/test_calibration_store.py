"""What routers learn of step times, in a real Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmrouter.errors import LedgerUnavailableError
from router_grpc.adapters.calibration_store import LIFETIME_S, RedisCalibrationStore
from router_grpc.adapters.redis_ledger import redis_client

if TYPE_CHECKING:
    from llmrouter.testbed.cluster.redis import RedisServer

pytest_plugins = ["support.redis_server"]


async def test_what_is_saved_is_loaded_and_lives_for_a_time(redis_server: RedisServer) -> None:
    client = redis_client(redis_server.url, password=None, timeout_s=1.0)
    try:
        store = RedisCalibrationStore(client, "ns/one", timeout_s=1.0)
        other = RedisCalibrationStore(client, "ns/other", timeout_s=1.0)
        assert await store.load("main") is None
        await store.save("main", b'{"a": 1}')
        await store.save("main", b'{"a": 2}')
        assert await store.load("main") == b'{"a": 2}'
        assert await store.load("second") is None
        assert await other.load("main") is None
        assert 0 < await client.ttl("{llmrouter:ns/one}:calibration") <= LIFETIME_S
    finally:
        await client.aclose()


async def test_a_redis_that_is_away_is_one_clear_error(redis_server: RedisServer) -> None:
    client = redis_client(redis_server.url, password=None, timeout_s=0.2)
    try:
        store = RedisCalibrationStore(client, "ns/one", timeout_s=0.2)
        redis_server.stop()
        with pytest.raises(LedgerUnavailableError, match="calibration"):
            await store.load("main")
        with pytest.raises(LedgerUnavailableError, match="calibration"):
            await store.save("main", b"{}")
    finally:
        await client.aclose()

"""A real redis-server of each test's own, which a test may stop and start again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from llmrouter.testbed.cluster.redis import RedisServer, provide_redis


@pytest.fixture(scope="session")
def redis_binary() -> Path:
    """Where redis-server is: on PATH, or unpacked from Debian's package into the cache."""
    return provide_redis()


@pytest.fixture
def redis_server(redis_binary: Path, tmp_path: Path) -> Iterator[RedisServer]:
    """A running, empty Redis on a loopback port: `.url`, `.port`, `.stop()`, `.start()`, `.pause()`, `.resume()`."""
    with RedisServer(redis_binary, tmp_path / "redis") as running:
        yield running

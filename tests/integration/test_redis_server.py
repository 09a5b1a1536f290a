"""The Redis fixture is a real server that tests can take away, hang and bring back."""

import pytest
import redis

from llmrouter.testbed.cluster.redis import RedisServer

pytest_plugins = ["support.redis_server"]


def test_an_outage_and_the_return(redis_server: RedisServer) -> None:
    client = redis.Redis.from_url(redis_server.url, socket_timeout=1, retry_on_timeout=False)
    assert client.set("key", "value")

    redis_server.stop()
    with pytest.raises(redis.ConnectionError):
        client.get("key")

    redis_server.start()
    assert client.get("key") is None


def test_a_paused_server_answers_late(redis_server: RedisServer) -> None:
    client = redis.Redis.from_url(redis_server.url, socket_timeout=0.2)
    assert client.ping()

    redis_server.pause()
    with pytest.raises(redis.TimeoutError):
        client.ping()

    redis_server.resume()
    assert client.ping()

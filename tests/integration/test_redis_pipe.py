"""Commands over one connection: their order, errors of one alone, a server that stalls, goes and comes back."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ConnectionError as NoConnectionError
from redis.exceptions import ResponseError

from router_grpc.adapters.redis_ledger import redis_client
from router_grpc.adapters.redis_pipe import RedisPipe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llmrouter.testbed.cluster.redis import RedisServer

pytest_plugins = ["support.redis_server"]


@asynccontextmanager
async def pipe_to(server: RedisServer) -> AsyncIterator[RedisPipe]:
    client = redis_client(server.url)
    pipe = RedisPipe(client)
    yield pipe
    await pipe.close()
    await client.aclose()


async def test_answers_are_those_of_their_commands(redis_server: RedisServer) -> None:
    async with pipe_to(redis_server) as pipe:
        said = await asyncio.gather(*(pipe.execute("ECHO", f"word {n}") for n in range(500)))
        assert said == [f"word {n}" for n in range(500)]
        mixed = await asyncio.gather(
            pipe.execute("SET", "a", 1), pipe.execute("NONSENSE"), pipe.execute("GET", "a"), return_exceptions=True
        )
        assert (mixed[0], mixed[2]) == ("OK", "1")
        assert isinstance(mixed[1], ResponseError)


async def test_one_that_is_not_waited_for_any_more_disturbs_nobody(redis_server: RedisServer) -> None:
    async with pipe_to(redis_server) as pipe:
        await pipe.execute("PING")
        gone = asyncio.ensure_future(pipe.execute("ECHO", "gone"))
        stays = asyncio.ensure_future(pipe.execute("ECHO", "stays"))
        await asyncio.sleep(0)
        gone.cancel()
        assert await stays == "stays"
        assert await pipe.execute("ECHO", "next") == "next"


async def test_a_server_that_stalls_is_given_up_and_a_new_connection_made(redis_server: RedisServer) -> None:
    async with pipe_to(redis_server) as pipe:
        assert await pipe.execute("ECHO", "before") == "before"
        redis_server.pause()
        waiting = [asyncio.ensure_future(pipe.execute("ECHO", str(n))) for n in range(3)]
        await asyncio.sleep(0)
        pipe.reset()
        for one in waiting:
            with pytest.raises(NoConnectionError):
                await one
        redis_server.resume()
        assert await pipe.execute("ECHO", "after") == "after"


async def test_a_server_that_went_away_fails_what_is_under_way_and_is_found_again(redis_server: RedisServer) -> None:
    async with pipe_to(redis_server) as pipe:
        assert await pipe.execute("ECHO", "before") == "before"
        redis_server.stop()
        with pytest.raises((NoConnectionError, OSError)):
            await pipe.execute("ECHO", "lost")
        with pytest.raises((NoConnectionError, OSError)):
            await pipe.execute("ECHO", "nobody there")
        redis_server.start()
        assert await pipe.execute("ECHO", "after") == "after"


async def test_closing_ends_what_is_under_way(redis_server: RedisServer) -> None:
    async with pipe_to(redis_server) as pipe:
        await pipe.execute("PING")
        redis_server.pause()
        waiting = asyncio.ensure_future(pipe.execute("ECHO", "x"))
        await asyncio.sleep(0)
        await pipe.close()
        with pytest.raises(NoConnectionError, match="closed"):
            await waiting
        redis_server.resume()


async def test_a_pause_of_this_process_is_not_the_server_s_fault(redis_server: RedisServer) -> None:
    """The answer waits in the socket while the deadline passes; the timer is the first to be looked at."""
    async with pipe_to(redis_server) as pipe:
        assert await pipe.execute("PING") == "PONG"
        said = [asyncio.ensure_future(pipe.execute("ECHO", str(n), within_s=0.05)) for n in range(3)]
        for _ in range(4):
            await asyncio.sleep(0)
        time.sleep(0.3)  # noqa: ASYNC251 - the pause itself
        assert await asyncio.gather(*said) == ["0", "1", "2"]


async def test_a_server_that_does_not_answer_in_time_is_given_up(redis_server: RedisServer) -> None:
    async with pipe_to(redis_server) as pipe:
        assert await pipe.execute("PING") == "PONG"
        redis_server.pause()
        for _ in range(2):  # the second one finds no connection, and a server that takes one without a word
            with pytest.raises(TimeoutError):
                await pipe.execute("PING", within_s=0.05)
            pipe.reset()
        redis_server.resume()
        assert await pipe.execute("PING", within_s=5.0) == "PONG"

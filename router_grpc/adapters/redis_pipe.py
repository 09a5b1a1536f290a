"""Commands to Redis over one connection: those of one turn of the event loop in one write, answers in their order.

A client that takes a connection of its pool for each command spends more time on that than Redis does on the command.
Redis answers one command after the other anyway. The connection is the client's: it knows addresses, TLS and passwords.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as NoConnectionError
from redis.exceptions import RedisError, ResponseError

from router_grpc.unbroken import end_tasks

if TYPE_CHECKING:
    from redis.asyncio import Connection, Redis

Command = tuple[str | int, ...]

PAUSE_S = 0.05
"""A timer that is later than this tells of a pause of this process, not of its server."""

GRACES = 2
"""So often, where one pause follows the other."""


class RedisPipe:
    """One connection, made when it is needed and again when it broke. Belongs to one event loop."""

    def __init__(self, client: Redis) -> None:
        self._pool = client.connection_pool
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._unsent: deque[tuple[Command, asyncio.Future[Any]]] = deque()
        self._sent: deque[asyncio.Future[Any]] = deque()
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._leaving: set[asyncio.Future[None]] = set()

    async def execute(self, *command: str | int, within_s: float | None = None) -> Any:  # noqa: ANN401 - of any shape
        """The answer to a command; raises what redis-py raises, and TimeoutError where it is not there in time.

        ``within_s`` bounds the wait for a connection, and that for the answer; the caller has to ``reset`` then. Time
        that this process itself did not run in does not count: an answer that came meanwhile is read first.
        """
        if self._connection is None:
            async with asyncio.timeout(within_s):
                await self._connect()
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Any] = loop.create_future()
        self._unsent.append((command, answered))
        self._wake.set()
        if within_s is None:
            return await answered
        timer = loop.call_later(within_s, _late, answered, loop, loop.time() + within_s, within_s)
        try:
            return await answered
        finally:
            timer.cancel()

    def reset(self) -> None:
        """An answer was not there in time: whatever is under way fails, and the next command has a new connection."""
        self._drop(NoConnectionError("given up: an answer before this one was not there in time"))

    async def close(self) -> None:
        """Gives the connection back."""
        self._drop(NoConnectionError("closed"))
        await asyncio.gather(*self._leaving)

    async def _connect(self) -> None:
        async with self._connecting:
            if self._connection is not None:
                return
            connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
            self._connection = connection
            self._tasks = [asyncio.create_task(one) for one in (self._write(connection), self._read(connection))]

    async def _write(self, connection: Connection) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                batch, self._unsent = self._unsent, deque()
                left = [(command, answered) for command, answered in batch if not answered.done()]
                self._sent += [answered for _, answered in left]
                if left:
                    packed = connection.pack_commands([command for command, _ in left])
                    await connection.send_packed_command(packed, check_health=False)
        except (RedisError, OSError) as error:
            self._broke(connection, error)

    async def _read(self, connection: Connection) -> None:
        try:
            while True:
                try:
                    answer, problem = await connection.read_response(), None
                except ResponseError as error:  # of this command alone
                    answer, problem = None, error
                answered = self._sent.popleft()
                if answered.done():
                    continue  # its caller has gone
                if problem is None:
                    answered.set_result(answer)
                else:
                    answered.set_exception(problem)
        except (RedisError, OSError) as error:
            self._broke(connection, error)

    def _broke(self, connection: Connection, error: Exception) -> None:
        if connection is self._connection:
            self._drop(error)

    def _drop(self, error: Exception) -> None:
        connection, self._connection = self._connection, None
        waiting = [*self._sent, *(answered for _, answered in self._unsent)]
        self._sent, self._unsent = deque(), deque()
        self._wake = asyncio.Event()
        for answered in waiting:
            if not answered.done():
                answered.set_exception(error)
        tasks, self._tasks = self._tasks, []
        if connection is not None:
            leaving = asyncio.ensure_future(self._give_back(connection, tasks))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def _give_back(self, connection: Connection, tasks: list[asyncio.Task[None]]) -> None:
        """Ends a connection, without waiting for a peer that does not answer."""
        await end_tasks(tasks)
        await connection.disconnect(nowait=True)
        await self._pool.release(connection)


def _late(
    answered: asyncio.Future[Any], loop: asyncio.AbstractEventLoop, due_s: float, within_s: float, graces: int = GRACES
) -> None:
    """The time is up; where the loop comes to it late, the answer has its time once more: both may have stood still."""
    if answered.done():
        return
    if graces and loop.time() - due_s > PAUSE_S:
        loop.call_later(within_s, _late, answered, loop, loop.time() + within_s, within_s, graces - 1)
    else:
        answered.set_exception(TimeoutError("no answer in time"))

"""Steps that end once they have begun, though their caller leaves; and tasks that end when they are told to."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine

T = TypeVar("T")

CANCEL_AGAIN_S = 0.2

_log = logging.getLogger(__name__)


class Unbroken:
    """Runs steps to their end, though whoever waits for them is cancelled."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(
        self,
        step: Coroutine[Any, Any, T],
        *,
        abandoned: Callable[[T], Awaitable[None]] | None = None,
        is_immediate: bool = False,
    ) -> T:
        """The step's result. Where the caller is cancelled meanwhile, ``abandoned`` gets the result instead.

        One that is immediate waits for nothing: nobody can break it off, and it needs no task of its own.
        """
        if is_immediate:
            return await step
        task = self._keep(step)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._keep(_finish(task, abandoned))
            raise

    async def settled(self) -> None:
        """Returns when no step is under way."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _keep(self, step: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(step)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def at_once(step: Coroutine[Any, Any, T]) -> T:
    """The result of a step that waits for nothing; raises RuntimeError where it does wait."""
    try:
        step.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    step.close()
    raise RuntimeError("a step that was to wait for nothing does wait")


async def _finish(task: asyncio.Task[T], abandoned: Callable[[T], Awaitable[None]] | None) -> None:
    try:
        result = await task
        if abandoned is not None:
            await abandoned(result)
    except Exception:  # noqa: BLE001 - nobody waits for it any more: the log is where it can be seen
        _log.exception("a step that its caller left failed")


async def end_tasks(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancels tasks until all have ended: where a library swallows one cancellation, a loop would go on."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _ended, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)

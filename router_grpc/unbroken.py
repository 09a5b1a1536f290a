"""Steps that end once they have begun, though their caller leaves; steps in no task; tasks that end when told to."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator

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


def begun(
    step: Coroutine[Any, Any, None], keep: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
) -> asyncio.Task[None] | None:
    """Runs a step as far as it goes without waiting; ``None`` where that is to its end, else the task it goes on in.

    Before it first waits it must not ask for the task that it runs in, as time-outs do. What it raises till then is
    raised here. ``keep`` makes the task; one that is cancelled ends the step, however early.
    """
    try:
        waits_for = step.send(None)
    except StopIteration:
        return None
    task = keep(_going_on(step, waits_for))
    task.add_done_callback(lambda _task: step.close())  # a task that had not begun says nothing to it
    return task


async def _going_on(step: Coroutine[Any, Any, None], waits_for: object) -> None:
    await _Rest(step, waits_for)


class _Rest:
    """What is left of a step that waits already."""

    def __init__(self, step: Coroutine[Any, Any, None], waits_for: object) -> None:
        self._step, self._waits_for = step, waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        step, waits_for = self._step, self._waits_for
        while True:
            try:
                try:
                    sent = yield waits_for
                except BaseException as error:  # noqa: BLE001 - the step's to deal with
                    waits_for = step.throw(error)
                else:
                    waits_for = step.send(sent)
            except StopIteration:
                return


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

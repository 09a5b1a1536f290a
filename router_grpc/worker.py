"""One thread beside the event loop: it answers what is asked in batches, within a deadline, and does chores between."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")

_log = logging.getLogger(__name__)


class NotInTimeError(Exception):
    """No answer within the deadline, or no place to wait for one; ``reason`` is ``Late``, ``Full`` or ``Error``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, eq=False)
class _Ask(Generic[A, B]):
    item: A
    answered: asyncio.Future[B]


class BatchWorker(Generic[A, B]):
    """Answers of one thread. All methods belong to the event loop that ``start`` ran on; ``answer`` to the thread.

    Args:
        answer: answers for a batch, in its order; what it raises is an ``Error`` to every asker, logged.
        name: of the thread.
        max_batch: asks answered together.
        max_waiting: asks that may wait; more are refused at once.
        max_chores: chores that may wait; more are dropped.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[A]], Sequence[B]],
        *,
        name: str,
        max_batch: int = 64,
        max_waiting: int = 1_024,
        max_chores: int = 4_096,
    ) -> None:
        self._answer = answer
        self._name = name
        self._max_batch, self._max_waiting, self._max_chores = max_batch, max_waiting, max_chores
        self._queue: SimpleQueue[_Ask[A, B] | Callable[[], object] | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        # Each count has one writer, so that neither side needs a lock.
        self._asks_put = self._chores_put = 0
        self._asks_taken = self._chores_taken = 0
        self._ending = False

    @property
    def chores(self) -> int:
        """Chores that wait."""
        return self._chores_put - self._chores_taken

    def start(self) -> None:
        """Starts the thread; must run on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Ends the thread once it has done what waits."""
        if self._thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    async def ask(self, item: A, *, deadline_s: float) -> B:
        """The answer to an item; raises NotInTimeError."""
        if self._loop is None:
            raise NotInTimeError("Error")
        answered: asyncio.Future[B] = self._loop.create_future()
        self.hand_over(item, answered, deadline_s=deadline_s)
        return await answered

    def hand_over(self, item: A, answered: asyncio.Future[B], *, deadline_s: float) -> None:
        """Has the thread answer an item through a future of the event loop, which fails as ``ask`` does."""
        if self._loop is None or self._thread is None:
            _fail([answered], "Error")
            return
        if self._asks_put - self._asks_taken >= self._max_waiting:
            _fail([answered], "Full")
            return
        timer = self._loop.call_later(deadline_s, _fail, [answered], "Late")
        answered.add_done_callback(lambda _answered: timer.cancel())
        self._asks_put += 1
        self._queue.put(_Ask(item, answered))

    def chore(self, step: Callable[[], object]) -> bool:
        """Has the thread run ``step`` when nothing is asked; ``False`` where too many wait already."""
        if self.chores >= self._max_chores:
            return False
        self._chores_put += 1
        self._queue.put(step)
        return True

    async def run(self, step: Callable[[], T]) -> T:
        """The result of a step that the thread runs among its chores, however many wait."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def run_and_tell() -> None:
            try:
                result = step()
            except Exception as error:  # noqa: BLE001 - raised where it is awaited
                self._tell(_fail_with, [done], error)
            else:
                self._tell(_resolve, [done], [result])

        self._chores_put += 1
        self._queue.put(run_and_tell)
        return await done

    def _work(self) -> None:
        chores: deque[Callable[[], object]] = deque()
        while not self._ending or chores:
            asks: list[_Ask[A, B]] = []
            item = self._next(wait=not chores and not self._ending)
            while item is not None:
                if isinstance(item, _Ask):
                    asks.append(item)
                    if len(asks) >= self._max_batch:
                        break
                else:
                    chores.append(item)
                item = self._next(wait=False)
            if asks:
                self._asks_taken += len(asks)
                self._serve([ask for ask in asks if not ask.answered.done()])
            elif chores:
                self._do(chores.popleft())

    def _next(self, *, wait: bool) -> _Ask[A, B] | Callable[[], object] | None:
        """What comes next; ``None`` where nothing waits, and at the end."""
        try:
            item = self._queue.get(block=wait)
        except Empty:
            return None
        if item is None:
            self._ending = True
        return item

    def _serve(self, asks: list[_Ask[A, B]]) -> None:
        if not asks:
            return
        futures = [ask.answered for ask in asks]
        try:
            answers = self._answer([ask.item for ask in asks])
        except Exception:  # noqa: BLE001 - the askers are told, the thread goes on
            _log.exception("%s failed", self._name)
            self._tell(_fail, futures, "Error")
        else:
            self._tell(_resolve, futures, answers)

    def _do(self, chore: Callable[[], object]) -> None:
        self._chores_taken += 1  # before anybody is told of its end, and may ask how many wait
        try:
            chore()
        except Exception:  # noqa: BLE001 - a chore has nobody to tell; the thread goes on
            _log.exception("a chore of %s failed", self._name)

    def _tell(self, what: Callable[..., None], *arguments: object) -> None:
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError:
            _log.debug("the event loop is gone: nobody waits for the answer")


def _resolve(futures: Sequence[asyncio.Future[T]], results: Sequence[T]) -> None:
    for future, result in zip(futures, results, strict=True):
        if not future.done():
            future.set_result(result)


def _fail(futures: Sequence[asyncio.Future[T]], reason: str) -> None:
    _fail_with(futures, NotInTimeError(reason))


def _fail_with(futures: Sequence[asyncio.Future[T]], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)

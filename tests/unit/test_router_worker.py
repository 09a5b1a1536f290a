"""The thread beside the event loop: batches, deadlines, bounds, chores and its end."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from router_grpc.worker import BatchWorker, NotInTimeError

if TYPE_CHECKING:
    from collections.abc import Sequence

LONG_S = 20.0


class Gate:
    """An answer that waits until the test lets it go, and the batches it was given."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, batch: Sequence[int]) -> list[int]:
        self.batches.append(list(batch))
        self.entered.set()
        assert self.open.wait(LONG_S)
        return [10 * item for item in batch]


async def entered(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.entered.wait, LONG_S)


async def test_what_waits_is_answered_together_in_order() -> None:
    gate = Gate()
    worker = BatchWorker(gate, name="test", max_batch=3)
    worker.start()
    first = asyncio.create_task(worker.ask(0, deadline_s=LONG_S))
    await entered(gate)
    rest = [asyncio.create_task(worker.ask(item, deadline_s=LONG_S)) for item in range(1, 6)]
    await asyncio.sleep(0)
    gate.open.set()
    assert await asyncio.gather(first, *rest) == [0, 10, 20, 30, 40, 50]
    assert gate.batches == [[0], [1, 2, 3], [4, 5]]
    await worker.close()


async def test_a_late_answer_is_an_error_and_is_not_computed_for_nobody() -> None:
    gate = Gate()
    worker = BatchWorker(gate, name="test")
    worker.start()
    first = asyncio.create_task(worker.ask(1, deadline_s=LONG_S))
    await entered(gate)
    with pytest.raises(NotInTimeError) as error:
        await worker.ask(2, deadline_s=0.0)
    assert error.value.reason == "Late"
    gate.open.set()
    assert await first == 10
    assert await worker.ask(3, deadline_s=LONG_S) == 30
    assert gate.batches == [[1], [3]]
    await worker.close()


async def test_no_more_wait_than_may() -> None:
    gate = Gate()
    worker = BatchWorker(gate, name="test", max_waiting=2)
    worker.start()
    first = asyncio.create_task(worker.ask(1, deadline_s=LONG_S))
    await entered(gate)
    waiting = [asyncio.create_task(worker.ask(item, deadline_s=LONG_S)) for item in (2, 3)]
    await asyncio.sleep(0)
    with pytest.raises(NotInTimeError) as error:
        await worker.ask(4, deadline_s=LONG_S)
    assert error.value.reason == "Full"
    gate.open.set()
    assert await asyncio.gather(first, *waiting) == [10, 20, 30]
    await worker.close()


async def test_an_answer_that_raises_is_told_and_survived() -> None:
    def answer(batch: Sequence[int]) -> list[int]:
        if batch[0] < 0:
            raise ValueError("negative")
        return list(batch)

    worker = BatchWorker(answer, name="test")
    worker.start()
    with pytest.raises(NotInTimeError) as error:
        await worker.ask(-1, deadline_s=LONG_S)
    assert error.value.reason == "Error"
    assert await worker.ask(1, deadline_s=LONG_S) == 1
    await worker.close()


async def test_asks_go_before_chores_and_chores_are_bounded() -> None:
    gate = Gate()
    done: list[str] = []
    worker = BatchWorker(gate, name="test", max_chores=2)
    worker.start()
    first = asyncio.create_task(worker.ask(1, deadline_s=LONG_S))
    await entered(gate)
    assert worker.chore(lambda: done.append("a"))
    assert worker.chore(lambda: 1 // 0)
    assert not worker.chore(lambda: done.append("too many"))
    second = asyncio.create_task(worker.ask(2, deadline_s=LONG_S))
    second.add_done_callback(lambda _task: done.append("answered"))
    await asyncio.sleep(0)
    gate.open.set()
    assert list(await asyncio.gather(first, second)) == [10, 20]
    assert await worker.run(lambda: gate.batches) == [[1], [2]]
    assert sorted(done) == ["a", "answered"]
    assert worker.chores == 0
    with pytest.raises(ZeroDivisionError):
        await worker.run(lambda: 1 // 0)
    await worker.close()


async def test_it_ends_with_what_waits_done() -> None:
    done: list[int] = []
    worker = BatchWorker[int, int](list, name="test")
    worker.start()
    for item in range(100):
        worker.chore(lambda item=item: done.append(item))  # type: ignore[misc]
    await worker.close()
    assert done == list(range(100))
    with pytest.raises(NotInTimeError):
        await worker.ask(1, deadline_s=LONG_S)

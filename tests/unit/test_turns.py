"""What is asked in one turn of the event loop is answered together; a step needs a task only once it waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from support.router_world import FakeClock

from router_grpc.turns import Turns
from router_grpc.unbroken import begun

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Asked:
    def __init__(self, most: int = 3) -> None:
        self.clock = FakeClock()
        self.turns: list[list[int]] = []
        self.rounds: list[tuple[float, float]] = []
        self.all = Turns(self._answer, self._came_round, most=most, clock=self.clock)

    def _answer(self, turn: list[int]) -> float:
        self.turns.append(turn)
        self.clock.now_s += 1.0
        return 1.0

    def _came_round(self, took_s: float, besides_s: float) -> None:
        self.rounds.append((took_s, besides_s))


async def test_a_turn_is_answered_together_when_it_is_ended() -> None:
    asked = Asked()
    for one in (1, 2):
        asked.all.wait(one)
    assert asked.turns == []
    asked.all.take()
    asked.all.take()
    assert asked.turns == [[1, 2]]
    asked.clock.now_s += 0.25
    await asyncio.sleep(0)
    assert asked.turns == [[1, 2]]
    assert asked.rounds == [(1.0, 0.25)], "what the loop did besides answering"


async def test_a_turn_that_nobody_ends_is_answered_when_the_loop_comes() -> None:
    asked = Asked()
    asked.all.wait(1)
    asked.clock.now_s += 0.5
    await asyncio.sleep(0)
    assert asked.turns == [[1]]
    assert asked.rounds == [(1.0, 0.5)]


async def test_more_than_may_be_answered_together_waits_for_the_next_rounds() -> None:
    asked = Asked(most=3)
    for one in range(8):
        asked.all.wait(one)
    asked.all.take()
    assert asked.turns == [[0, 1, 2]]
    for _ in range(3):
        await asyncio.sleep(0)
    assert asked.turns == [[0, 1, 2], [3, 4, 5], [6, 7]]


def keep(step: Coroutine[None, None, None]) -> asyncio.Task[None]:
    return asyncio.ensure_future(step)


async def test_a_step_that_waits_for_nothing_has_no_task() -> None:
    done = []

    async def step() -> None:
        done.append(asyncio.current_task())

    def of_no_task() -> None:
        done.append(begun(step(), keep))

    asyncio.get_running_loop().call_soon(of_no_task)
    await asyncio.sleep(0)
    assert done == [None, None]


async def test_a_step_goes_on_in_a_task_of_its_own_with_what_it_waited_for() -> None:
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    heard: list[object] = []

    async def step() -> None:
        heard.append(await answer)
        await asyncio.sleep(0)
        heard.append(asyncio.current_task())
        async with asyncio.timeout(1):
            await asyncio.sleep(0)

    task = begun(step(), keep)
    assert task is not None
    answer.set_result(7)
    await task
    assert heard == [7, task]


async def test_a_step_hears_of_what_failed_and_its_failure_is_its_tasks() -> None:
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def step() -> None:
        try:
            await answer
        except ValueError:
            raise KeyError("told") from None

    task = begun(step(), keep)
    answer.set_exception(ValueError())
    assert task is not None
    with pytest.raises(KeyError, match="told"):
        await task


@pytest.mark.parametrize("turns", [0, 1, 3], ids=["before the task began", "as it began", "while it waits"])
async def test_a_step_is_ended_with_its_task_however_early(turns: int) -> None:
    ended = []

    async def step() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    task = begun(step(), keep)
    assert task is not None
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert ended == [True]


async def test_what_a_step_raises_before_it_waits_is_raised_at_once() -> None:
    async def step() -> None:
        raise KeyError("at once")

    with pytest.raises(KeyError, match="at once"):
        begun(step(), keep)

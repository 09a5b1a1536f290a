"""When a router acknowledges: a change in its turn, nothing new now and then, a failure ever more seldom."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, Counter
from support.router_world import Bench, config_of, said_of, until

from router_grpc.telling import LONGEST_TURN_S, QUIET_S, QUIET_S_OF_ROUTER, SHORTEST_TURN_S, Telling, Turn, turn_of

if TYPE_CHECKING:
    from llmrouter.acknowledgement import RouterAcknowledgement


def test_turns_follow_names_and_last_as_long_as_writes_take() -> None:
    names = [f"r{number:02}" for number in range(50)]
    assert [turn_of(name, names, write_s=0.001).after_s for name in names[:3]] == [
        0,
        SHORTEST_TURN_S,
        2 * SHORTEST_TURN_S,
    ]
    assert turn_of("r49", names, write_s=9.0).after_s == pytest.approx(49 * LONGEST_TURN_S)
    assert turn_of("r00", names, write_s=0.001).quiet_s == pytest.approx(50 * QUIET_S_OF_ROUTER)
    assert turn_of("r00", ["r00", "r01"], write_s=0.001).quiet_s == QUIET_S


class Teller:
    """A loop that writes into a list, and fails as often as it is told to."""

    def __init__(self, *, failures: int = 0, turn: Turn | None = None, news_s: float = QUIET_S) -> None:
        runtime = Bench(config_of()).service.runtime
        assert runtime is not None
        self.said: list[RouterAcknowledgement] = []
        self.news = False
        self._failures, self._turn = failures, turn
        self.failed = Counter("failed", "Failures.", registry=CollectorRegistry())
        self.loop = Telling(
            self._write,
            lambda: said_of(runtime),
            has_news=lambda: self.news,
            news_s=lambda: news_s,
            failures=self.failed,
        )

    async def _write(self, acknowledgement: RouterAcknowledgement) -> Turn | None:
        if self._failures:
            self._failures -= 1
            raise TimeoutError
        self.said.append(acknowledgement)
        self.news = False
        return self._turn

    async def until_said(self, count: int) -> None:
        await until(lambda: len(self.said) >= count, what=f"{count} acknowledgements")


async def test_a_change_is_said_at_once_and_what_a_trial_counts_a_little_later() -> None:
    teller = Teller(news_s=0.01, turn=Turn(quiet_s=60.0))
    task = asyncio.create_task(teller.loop.run())
    await teller.until_said(1)
    teller.loop.note_change()
    await teller.until_said(2)
    teller.news = True
    await teller.until_said(3)
    task.cancel()


async def test_what_is_as_it_was_is_said_again_after_a_while() -> None:
    teller = Teller(turn=Turn(quiet_s=0.01))
    task = asyncio.create_task(teller.loop.run())
    await teller.until_said(2)
    task.cancel()


async def test_what_could_not_be_written_is_counted_and_tried_again() -> None:
    teller = Teller(failures=2)
    task = asyncio.create_task(teller.loop.run())
    await teller.until_said(1)
    assert teller.failed._value.get() == 2
    task.cancel()

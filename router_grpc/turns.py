"""What is asked in one turn of the event loop, answered together: when somebody says so, or when the loop comes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Turns(Generic[T]):
    """Gathers what is asked; all methods belong to one event loop.

    Args:
        answer: answers so many at a time as there may be, tells whoever asked, and says how long (s) answering took. It
            must not raise.
        came_round: is told how long (s) answers took since the loop began its round, and all else that it did in it.
        most: answered at a time; others wait for the loop to come round.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        answer: Callable[[list[T]], float],
        came_round: Callable[[float, float], None],
        *,
        most: int,
        clock: Callable[[], float],
    ) -> None:
        self._answer, self._came_round, self._most, self._clock = answer, came_round, most, clock
        self._waiting: list[T] = []
        self._goes_round = False
        self._since_s = self._took_s = 0.0

    def wait(self, one: T) -> None:
        """Has one more answered, at the end of this turn."""
        self._waiting.append(one)
        if not self._goes_round:
            self._begin_round()

    def take(self) -> None:
        """Ends the turn."""
        if self._waiting:
            turn, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            self._took_s += self._answer(turn)

    def _begin_round(self) -> None:
        self._goes_round = True
        self._since_s, self._took_s = self._clock(), 0.0
        asyncio.get_running_loop().call_soon(self._round)

    def _round(self) -> None:
        passed_s = self._clock() - self._since_s
        besides_s = passed_s - self._took_s
        self.take()
        self._goes_round = False
        self._came_round(self._took_s, besides_s)
        if self._waiting:
            self._begin_round()

"""When a model that is too slow rests: one late answer is the machine, several in a row are the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LATE_IN_A_ROW = 5
"""After so many late answers in a row the model rests."""

REST_S = 10.0
"""How long a model that was too slow rests before it is tried again."""


class Lateness:
    """Counts late answers against a budget. ``clock`` gives seconds and never goes back."""

    def __init__(self, *, budget_s: float, clock: Callable[[], float]) -> None:
        self.budget_s = budget_s
        self._clock = clock
        self._late = 0
        self._resting_until_s: float | None = None

    @property
    def resting(self) -> bool:
        """Whether the model rests now because it was too slow."""
        return self._resting_until_s is not None and self._clock() < self._resting_until_s

    def note(self, elapsed_s: float) -> bool:
        """Takes how long an answer took; returns whether it was late."""
        if elapsed_s <= self.budget_s:
            self._late = 0
            return False
        self._late += 1
        if self._late >= LATE_IN_A_ROW:
            self._late = 0
            self._resting_until_s = self._clock() + REST_S
        return True

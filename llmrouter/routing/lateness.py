"""When a model that is too slow rests: one late answer is the machine, several in a row are the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LATE_IN_A_ROW = 5
"""After so many late answers in a row the model rests."""

REST_S = 10.0
"""How long a model rests before it is tried again."""


class Rest:
    """A pause of ``REST_S``. A clock that goes back ends it: it never lasts longer than it should."""

    def __init__(self) -> None:
        self._until_s: float | None = None

    def begin(self, now_s: float) -> None:
        """Begins, or begins anew."""
        self._until_s = now_s + REST_S

    def lasts(self, now_s: float) -> bool:
        """Whether it lasts at ``now_s``."""
        return self._until_s is not None and 0.0 < self._until_s - now_s <= REST_S


class Lateness:
    """Counts late answers against a budget. ``clock`` gives seconds."""

    def __init__(self, *, budget_s: float, clock: Callable[[], float]) -> None:
        self.budget_s = budget_s
        self._clock = clock
        self._late = 0
        self._rest = Rest()

    @property
    def resting(self) -> bool:
        """Whether the model rests now because it was too slow."""
        return self._rest.lasts(self._clock())

    def note(self, elapsed_s: float) -> bool:
        """Takes how long an answer took; returns whether it was late."""
        if elapsed_s <= self.budget_s:
            self._late = 0
            return False
        self._late += 1
        if self._late >= LATE_IN_A_ROW:
            self._late = 0
            self._rest.begin(self._clock())
        return True

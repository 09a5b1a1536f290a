"""How often something may be: a rate, and what counts against it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """``burst`` at once, ``per_s`` in the long run."""

    burst: float
    per_s: float


class Meter:
    """Counts against a rate; instants are seconds, and one that goes back counts as none."""

    __slots__ = ("_at_s", "_left", "_rate")

    def __init__(self, rate: Rate, now_s: float) -> None:
        self._rate, self._left, self._at_s = rate, rate.burst, now_s

    def allows(self, now_s: float) -> bool:
        """Whether one more is within the rate; counted if it is."""
        self._left = min(self._rate.burst, self._left + max(0.0, now_s - self._at_s) * self._rate.per_s)
        self._at_s = now_s
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

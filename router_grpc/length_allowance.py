"""How much of a router's time foretelling lengths may take on the event loop: less while the loop is behind.

A prediction is worth less than the requests that wait for the loop meanwhile. Its share of the time is cut while the
loop runs late, and grows again while it does not, as a sender's window does in a network; a burst is let through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST_SHARE, MOST_SHARE = 0.1, 0.6
CUT, GROWTH = 0.7, 0.05
WINDOW_S = 0.05
"""The share moves once in so long."""

BURST_S = 0.02
"""Time that may be taken at once after a pause."""

MANY_LATE = 0.25
"""With a larger share of late batches in a window, foretelling gets less."""


class Allowance:
    """The time that foretelling may still take. ``clock`` gives seconds and never goes back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._share = MOST_SHARE
        self._left_s = BURST_S
        self._at_s = self._moved_at_s = clock()
        self._batches = self._late = 0

    @property
    def share(self) -> float:
        """Of the time, what foretelling may take now."""
        return self._share

    def is_left(self) -> bool:
        """Whether there is time for one more."""
        now_s = self._clock()
        passed_s, self._at_s = max(0.0, now_s - self._at_s), now_s
        self._left_s = min(BURST_S, self._left_s + self._share * passed_s)
        return self._left_s > 0.0

    def took(self, seconds: float, *, late: bool) -> None:
        """A batch took so long; ``late`` where the loop came to it later than it should."""
        self._left_s -= seconds
        self._batches += 1
        self._late += late
        now_s = self._clock()
        if 0.0 <= now_s - self._moved_at_s < WINDOW_S:
            return
        if self._late > MANY_LATE * self._batches:
            self._share = max(LEAST_SHARE, CUT * self._share)
        else:
            self._share = min(MOST_SHARE, self._share + GROWTH)
        self._moved_at_s, self._batches, self._late = now_s, 0, 0

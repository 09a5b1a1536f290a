"""What will arrive after the time that new replicas take: what arrives now, and how wrong that has been.

The rates of a mix are smoothed already, over a minute. On recorded traffic nothing that was tried beyond them was
better throughout: not exponential smoothing, not Holt's trend, damped or not (``docs/mix.md`` has the figures). So the
forecast is the present, and its interval comes from the past: quantiles of ``rate(t + h)/rate(t)`` over the last hour.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

STEP_S = 15.0
"""One sample is kept for each such span."""

KEPT = 240
"""Samples: an hour."""

LEAST_RATIOS = 20
"""Fewer past ratios give no interval."""

LOW, HIGH = 0.05, 0.95
"""Levels of the interval."""

MOST_RATIO = 4.0
"""Times by which a rate is taken to rise or fall at most."""

MOST_GROWTH = 1.5
"""A plan allows for so many times what arrives at most: a budget is not spent on bursts."""

_TORN_S = 8.0 * STEP_S
"""A longer silence begins the past anew."""


@dataclass(frozen=True, slots=True)
class Band:
    """A rate to come: where it is expected, and the bounds that it is within nine times of ten."""

    low: float
    mid: float
    high: float


def growth_of(bands: Iterable[Band]) -> float:
    """Times by which what arrives may grow, the most that a plan allows for; 1 where nothing is known of it."""
    return min(max((band.high / band.mid for band in bands if band.mid > 0.0), default=1.0), MOST_GROWTH)


class RateHistory:
    """The past of some rates, told of at any instants; memory does not grow."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, tuple[float, ...]]] = deque(maxlen=KEPT)

    def note(self, rates: Sequence[float], *, at_s: float) -> None:
        """Keeps the first rates of each span; after a silence, or a clock that jumped back, the past begins anew."""
        if self._samples:
            since_s = at_s - self._samples[-1][0]
            if 0.0 <= since_s < STEP_S:
                return
            if not 0.0 <= since_s <= _TORN_S:
                self._samples.clear()
        self._samples.append((at_s, tuple(rates)))

    def bands(self, horizon_s: float) -> tuple[Band, ...] | None:
        """Each rate after so long; ``None`` until the past is long enough: the horizon, and 20 spans more."""
        pairs = self._pairs(max(horizon_s, STEP_S))
        if len(pairs) < LEAST_RATIOS:
            return None
        return tuple(
            _band(now, sorted(_ratio(before[place], after[place]) for before, after in pairs))
            for place, now in enumerate(self._samples[-1][1])
        )

    def _pairs(self, horizon_s: float) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
        """Rates, and those that came the horizon later."""
        samples = list(self._samples)
        pairs, later = [], 0
        for at_s, rates in samples:
            while later < len(samples) and samples[later][0] < at_s + horizon_s - 0.5 * STEP_S:
                later += 1
            if later == len(samples):
                break
            pairs.append((rates, samples[later][1]))
        return pairs


def _ratio(before: float, after: float) -> float:
    if before <= 0.0:
        return 1.0 if after <= 0.0 else MOST_RATIO
    return min(max(after / before, 1.0 / MOST_RATIO), MOST_RATIO)


def _band(now: float, ratios: Sequence[float]) -> Band:
    low, high = (ratios[min(round(level * (len(ratios) - 1)), len(ratios) - 1)] for level in (LOW, HIGH))
    return Band(now * min(low, 1.0), now, now * max(high, 1.0))

"""Arrival times made by a law: each function returns ``count`` times in seconds, shape (N,), not decreasing.

All take the mean rate, the count and a numpy generator. Times start at 0; the first arrival comes after the first gap.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray

_BISECTIONS = 60


def poisson(rate_rps: float, count: int, rng: Generator) -> NDArray[np.float64]:
    """Independent exponential gaps of mean ``1 / rate_rps``: CV 1."""
    _check(rate_rps, count)
    return np.asarray(np.cumsum(rng.standard_exponential(count)) / rate_rps)


def gamma(rate_rps: float, count: int, rng: Generator, *, cv: float) -> NDArray[np.float64]:
    """Independent gamma gaps of shape ``1 / cv²`` and mean ``1 / rate_rps``; ``cv`` 1 is Poisson, 0 a fixed beat.

    Raises:
        InvalidInputError: ``cv`` is not in [0, 100], or the rate or the count is out of its bounds.
    """
    _check(rate_rps, count)
    _bounded("cv", cv, 0.0, 100.0)
    if cv == 0:
        return np.arange(1, count + 1) / rate_rps
    shape = cv**-2.0
    return np.asarray(np.cumsum(rng.standard_gamma(shape, count)) / (shape * rate_rps))


def mmpp(
    rate_rps: float, count: int, rng: Generator, *, rates: Sequence[float], mean_sojourns_s: Sequence[float]
) -> NDArray[np.float64]:
    """A Markov-modulated Poisson process: Poisson at the rate of a state, which stays an exponential while.

    After a state each of the others is equally likely, so state i holds for ``s_i / Σs`` of the time, s being the
    mean sojourns. ``rates`` are relative: they are scaled so that the mean rate over time is ``rate_rps``.

    Raises:
        InvalidInputError: fewer than two states, unequal counts, a negative rate, no positive one, or a sojourn that is
            not positive.
    """
    _check(rate_rps, count)
    relative, sojourns = np.asarray(rates, np.float64), np.asarray(mean_sojourns_s, np.float64)
    if relative.shape != sojourns.shape or relative.ndim != 1 or len(relative) < 2:  # noqa: PLR2004
        raise InvalidInputError(
            f"mmpp needs as many rates as mean sojourns, at least two: {len(rates)} and {len(mean_sojourns_s)} given"
        )
    if not (np.isfinite(relative).all() and (relative >= 0).all() and relative.any()):
        raise InvalidInputError(f"mmpp rates must be finite and at least 0, one of them above, not {list(rates)}")
    if not (np.isfinite(sojourns).all() and (sojourns > 0).all()):
        raise InvalidInputError(f"mmpp mean sojourns must be finite and above 0, not {list(mean_sojourns_s)}")
    true_rates = relative * rate_rps * sojourns.sum() / (relative @ sojourns)
    return _mmpp(true_rates, sojourns, count, rng)


def _mmpp(
    rates: NDArray[np.float64], sojourns_s: NDArray[np.float64], count: int, rng: Generator
) -> NDArray[np.float64]:
    states = len(rates)
    state = int(rng.choice(states, p=sojourns_s / sojourns_s.sum()))
    parts: list[NDArray[np.float64]] = []
    made, now_s = 0, 0.0
    while made < count:
        stay_s = rng.exponential(sojourns_s[state])
        arrivals = int(rng.poisson(rates[state] * stay_s))
        parts.append(np.sort(rng.uniform(now_s, now_s + stay_s, arrivals)))
        made, now_s = made + arrivals, now_s + stay_s
        state = (state + int(rng.integers(1, states))) % states
    return np.concatenate(parts)[:count]


def on_off(rate_rps: float, count: int, rng: Generator, *, mean_on_s: float, mean_off_s: float) -> NDArray[np.float64]:
    """Poisson bursts with silence between them, both of exponential length; ``rate_rps`` is the mean over both."""
    return mmpp(rate_rps, count, rng, rates=(1.0, 0.0), mean_sojourns_s=(mean_on_s, mean_off_s))


def diurnal(
    rate_rps: float,
    count: int,
    rng: Generator,
    *,
    amplitude: float,
    period_s: float = 86_400.0,
    phase: float = 0.0,
) -> NDArray[np.float64]:
    """Poisson whose rate swings as ``rate · (1 + amplitude · sin(2π·t / period_s + phase))``.

    Made by a change of time: arrivals of unit rate, mapped through the inverse of the integrated rate.

    Raises:
        InvalidInputError: ``amplitude`` is not in [0, 1], or ``period_s`` is not positive.
    """
    _check(rate_rps, count)
    _bounded("amplitude", amplitude, 0.0, 1.0)
    _bounded("period_s", period_s, 1e-3, 1e9)
    wanted = np.cumsum(rng.standard_exponential(count)) / rate_rps
    swing_s = amplitude * period_s / (2 * math.pi)

    def integrated(at_s: NDArray[np.float64]) -> NDArray[np.float64]:
        angle = 2 * math.pi * at_s / period_s + phase
        return np.asarray(at_s + swing_s * (math.cos(phase) - np.cos(angle)))

    low, high = wanted - 2 * swing_s, wanted + 2 * swing_s
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        below = integrated(middle) < wanted
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.maximum.accumulate(np.maximum(high, 0.0))


def _check(rate_rps: float, count: int) -> None:
    _bounded("rate_rps", rate_rps, 1e-9, 1e9)
    if not 1 <= count <= 1_000_000_000:  # noqa: PLR2004
        raise InvalidInputError(f"count must be 1 to 1,000,000,000, not {count}")


def _bounded(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidInputError(f"{name} must be {low:g} to {high:g}, not {value}")

"""Paired statistics: how much a policy changes a figure on the same workloads, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy.stats import t as student_t

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIDENCE = 0.95
MIN_PAIRS = 2
"""An interval needs at least two differences."""


@dataclass(frozen=True, slots=True)
class Change:
    """A mean paired difference in percent and the half-width of its 95 % interval; ``None`` where there is none."""

    percent: float | None
    half_width: float | None


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are known; ``None`` where none is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def half_width(values: Sequence[float]) -> float | None:
    """Half-width of the Student-t 95 % interval of the mean: t(0.975, n − 1)·s/√n; ``None`` below two values."""
    count = len(values)
    if count < MIN_PAIRS:
        return None
    mean = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    quantile = float(student_t.ppf(0.5 + CONFIDENCE / 2, count - 1))
    return quantile * deviation / math.sqrt(count)


def paired_change(values: Sequence[float | None], base: Sequence[float | None]) -> Change:
    """The mean over seeds of ``100·(value / base − 1)``, where seed k of both ran the same workload.

    A percentage of nothing is none: where any base is 0 or either side does not know its figure, both are ``None``.

    Raises:
        ValueError: the two differ in length.
    """
    percents = []
    for value, reference in zip(values, base, strict=True):
        if value is None or reference is None or reference == 0:
            return Change(None, None)
        percents.append(100.0 * (value / reference - 1.0))
    return Change(mean_of(percents), half_width(percents))

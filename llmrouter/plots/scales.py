"""Scales: from figures to pixels. They clamp nothing: a mark outside its frame is the caller's choice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TINY = 1e-12
_WIDE = 1.0
"""Below this many decades a logarithmic axis has no room for its 1-2-5 ticks, and takes those of a linear one."""


class Scale(Protocol):
    """Maps a figure to a pixel and names the figures that deserve a tick."""

    @property
    def domain(self) -> tuple[float, float]:
        """Least and largest figure."""

    @property
    def pixels(self) -> tuple[float, float]:
        """Where those lie."""

    def __call__(self, value: float) -> float:
        """The pixel of a figure."""

    def ticks(self, count: int = 5) -> list[float]:
        """About ``count`` round figures within the domain."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Equal differences lie equally far apart."""

    domain: tuple[float, float]
    pixels: tuple[float, float]

    def __call__(self, value: float) -> float:
        """The pixel of a figure."""
        low, high = self.domain
        start, end = self.pixels
        return start + (value - low) / ((high - low) or 1.0) * (end - start)

    def ticks(self, count: int = 5) -> list[float]:
        """Multiples of 1, 2 or 5 times a power of ten."""
        return linear_ticks(self.domain, count)


@dataclass(frozen=True, slots=True)
class Log:
    """Equal ratios lie equally far apart; the domain is positive, and what is not lies at its low end."""

    domain: tuple[float, float]
    pixels: tuple[float, float]

    def __call__(self, value: float) -> float:
        """The pixel of a figure."""
        low, high = math.log(self.domain[0]), math.log(self.domain[1])
        start, end = self.pixels
        return start + (math.log(max(value, self.domain[0] * TINY)) - low) / ((high - low) or 1.0) * (end - start)

    def ticks(self, count: int = 5) -> list[float]:
        """Powers of ten, with their multiples by 2 and 5 where there is room."""
        low, high = self.domain
        decades = math.log10(high / low)
        if decades < _WIDE:
            return linear_ticks(self.domain, count)
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        stride = max(1, math.ceil(decades / count))
        factors = (1, 2, 5) if 3 * decades <= count + 1 else (1, 3) if 2 * decades <= count + 1 else (1,)
        every = (factor * 10.0**power for power in range(first, last + 1, stride) for factor in factors)
        return [value for value in every if low * (1 - TINY) <= value <= high * (1 + TINY)]


def linear_ticks(domain: tuple[float, float], count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, about ``count`` of them, within a domain."""
    low, high = domain
    step = nice_step((high - low) / max(count, 1))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    places = max(0, -math.floor(math.log10(step)))
    return [round(index * step, places + 1) + 0.0 for index in range(first, last + 1)]


def nice_step(rough: float) -> float:
    """The nearest, by ratio, of 1, 2, 5 times a power of ten; 1 for what is no length."""
    if rough <= 0 or not math.isfinite(rough):
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return min((factor * power for factor in (1.0, 2.0, 5.0, 10.0)), key=lambda step: abs(math.log(step / rough)))


def known(values: Iterable[float | None]) -> list[float]:
    """The figures that are known and finite."""
    return [value for value in values if value is not None and math.isfinite(value)]


def linear(
    values: Iterable[float | None], pixels: tuple[float, float], *, include: Sequence[float] = (), pad: float = 0.05
) -> Linear:
    """A linear scale over the known figures and ``include``, padded by a share of their distance.

    An end that is one of ``include`` is not padded: an axis told to begin at 0 begins at 0. (0, 1) without any figure.
    """
    found = known(values) + list(include)
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    if high == low:
        high = low + (abs(low) or 1.0)
    margin = pad * (high - low)
    return Linear((low if low in include else low - margin, high if high in include else high + margin), pixels)


def log(values: Iterable[float | None], pixels: tuple[float, float], *, pad: float = 0.04) -> Log:
    """A logarithmic scale over the known positive figures, a little wider than they are; (0.1, 10) without any."""
    found = [math.log(value) for value in known(values) if value > 0]
    if not found:
        return Log((0.1, 10.0), pixels)
    low, high = min(found), max(found)
    margin = max(pad * (high - low), 0.02)
    return Log((math.exp(low - margin), math.exp(high + margin)), pixels)


def spread(values: Iterable[float | None]) -> float:
    """Largest over least of the known positive figures, 1 without any: many decades want a logarithmic axis."""
    found = [value for value in known(values) if value > 0]
    return max(found) / min(found) if found else 1.0

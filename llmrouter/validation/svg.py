"""Small charts as SVG text: lines and points on linear or logarithmic axes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 26, 38


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """From ``low`` to ``high``; ``log`` for a logarithmic one, ``percent`` for labels in per cent."""

    label: str
    low: float
    high: float
    log: bool = False
    percent: bool = False

    def share(self, value: float) -> float:
        """Where a value stands, 0 to 1; values beyond an end stand at it."""
        if self.log:
            at = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            at = (value - self.low) / (self.high - self.low)
        return min(max(at, 0.0), 1.0)

    def ticks(self) -> list[float]:
        """Round values from end to end."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            marks = (1, 3) if last - first <= 3 else (1,)  # noqa: PLR2004 - room for three decades of two marks
            every = [mark * 10.0**power for power in range(first, last + 1) for mark in marks]
        else:
            step = _round_step((self.high - self.low) / 5)
            every = [step * number for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [tick for tick in every if self.low * (1 - 1e-9) <= tick <= self.high * (1 + 1e-9) or tick == 0]

    def text(self, value: float) -> str:
        """A tick's label."""
        return (f"{100 * value:+.0f} %" if value else "0") if self.percent else f"{value:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points (x, y) of one class; ``line`` joins them, else they are dots."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    line: bool = True
    tips: Sequence[str] = ()


def chart(title: str, x: Axis, y: Axis, series: Sequence[Series], *, band: tuple[float, float] | None = None) -> str:
    """One chart with its axes and, where there are several series, a legend; ``band`` shades a range of y."""
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<text class="title" x="{LEFT}" y="15">{escape(title)}</text>',
    ]
    if band is not None:
        top, bottom = _y(y, band[1]), _y(y, band[0])
        parts.append(
            f'<rect class="band" x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{bottom - top:.1f}"/>'
        )
    parts += [_grid_x(x, tick) for tick in x.ticks()] + [_grid_y(y, tick) for tick in y.ticks()]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.label)}</text>')
    parts += [_marks(x, y, one) for one in series]
    return "".join([*parts, "</svg>"])


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(mark * power for mark in (1.0, 2.0, 5.0, 10.0) if mark * power >= step * (1 - 1e-9))


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM)


def _grid_x(axis: Axis, tick: float) -> str:
    at = _x(axis, tick)
    return (
        f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="tick" x="{at:.1f}" y="{HEIGHT - BOTTOM + 13}" text-anchor="middle">{axis.text(tick)}</text>'
    )


def _grid_y(axis: Axis, tick: float) -> str:
    at = _y(axis, tick)
    style = "zero" if tick == 0 else "grid"
    return (
        f'<line class="{style}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text class="tick" x="{LEFT - 5}" y="{at + 3.5:.1f}" text-anchor="end">{axis.text(tick)}</text>'
    )


def _marks(x: Axis, y: Axis, series: Series) -> str:
    places = [(_x(x, at), _y(y, value)) for at, value in series.points]
    if series.line:
        path = " ".join(f"{at:.1f},{value:.1f}" for at, value in places)
        return f'<polyline class="{series.style}" points="{path}"><title>{escape(series.name)}</title></polyline>'
    tips = series.tips or [series.name] * len(places)
    return "".join(
        f'<circle class="{series.style}" cx="{at:.1f}" cy="{value:.1f}" r="3.2"><title>{escape(tip)}</title></circle>'
        for (at, value), tip in zip(places, tips, strict=True)
    )

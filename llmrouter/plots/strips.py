"""Dots with intervals in the cells of a table, one row per name: a forest plot whose figures can be read and sorted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llmrouter.plots.marks import group
from llmrouter.plots.markup import Markup, el, num, tick
from llmrouter.plots.theme import slot_class

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.plots.scales import Scale

HEIGHT = 24.0
RULER = 18.0
"""Height of the head's ticks."""

TICKS = 4
_ROOM = 19.0
"""Percent of the width that the figure of a tick takes."""

WHOLE = (3.0, 97.0)
"""Pixels of a strip's scale: percent of the width of its cell, which the strip always fills."""


def strip(
    scale: Scale,
    value: float,
    *,
    half_width: float | None,
    slot: int,
    tip: str | None = None,
    height: float = HEIGHT,
    with_grid: bool = True,
) -> Markup:
    """A dot at ``value`` with its interval ``value ± half_width``; ``scale`` maps onto ``WHOLE``.

    The dot is filled where the interval excludes 0, hollow where it does not or where there is none. What lies outside
    of the scale is drawn at its end, with an arrow for the dot. The cell's text says the figures: this is hidden from
    screen readers. Without its grid where the column's ``ruler`` draws it for all rows.
    """
    middle = height / 2
    half = half_width or 0.0
    excludes_zero = half_width is not None and abs(value) > half_width
    return el(
        "svg",
        grid(scale, height) if with_grid else None,
        group(
            el("line", x1=_at(scale, value - half), x2=_at(scale, value + half), y1=middle, y2=middle, class_="w"),
            _dot(scale, value, middle, "m" if excludes_zero else "m hollow"),
            class_=slot_class(slot),
        ),
        class_="plot strip",
        height=height,
        aria_hidden="true",
        data_t=tip,
    )


def grid(scale: Scale, height: float = HEIGHT) -> Markup:
    """The upright lines of a strip at the ticks of its scale, the one at 0 the strongest."""
    lines = [
        el("line", x1=_at(scale, value), x2=_at(scale, value), y1=0, y2=height, class_="axis" if value == 0 else "grid")
        for value in scale.ticks(TICKS)
    ]
    return el("g", *lines)


def ruler(scale: Scale, *, written: Callable[[float], str] = tick, rows: int = 0, row: float = HEIGHT) -> Markup:
    """The ticks of a column of strips, for its head, with a grid that hangs down over so many rows below it."""
    labels = [el("text", written(value), x=_at(scale, value), y=11, text_anchor="middle") for value in _named(scale)]
    hanging = el("g", grid(scale, rows * row), transform=f"translate(0 {num(RULER)})") if rows else None
    return el("svg", *labels, hanging, class_="plot strip", height=RULER, aria_hidden="true")


def _named(scale: Scale) -> list[float]:
    """The ticks that have room for their figure: all, or every second, third … counted from 0."""
    values = scale.ticks(TICKS)
    if len(values) < 2:  # noqa: PLR2004 - one tick has room
        return values
    step = values[1] - values[0]
    stride = max(1, math.ceil(_ROOM / abs(scale(values[1]) - scale(values[0]))))
    return [value for value in values if round(value / step) % stride == 0]


def _at(scale: Scale, value: float) -> str:
    return f"{min(max(scale(value), 0.5), 99.5):.1f}%"


def _dot(scale: Scale, value: float, y: float, class_: str) -> Markup:
    place = scale(value)
    if place < 0 or place > 100:  # noqa: PLR2004 - percent of the cell
        arrow = "◀" if place < 0 else "▶"
        return el("text", arrow, x="0%" if place < 0 else "100%", y=y + 4, text_anchor="start" if place < 0 else "end")
    return el("circle", cx=_at(scale, value), cy=y, r=4, class_=class_)

"""Marks: the smallest things a plot is made of, in pixels. Their colours come from the class around them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from llmrouter.plots.markup import Markup, el, num

if TYPE_CHECKING:
    from collections.abc import Sequence

    Point = tuple[float, float]

CAP = 3.0
"""Half the length of the bar at the end of an interval."""


def line(points: Sequence[Point], *, class_: str = "l") -> Markup:
    """A line through pixels."""
    return el("path", d=path(simplified(points)), class_=class_)


def simplified(points: Sequence[Point], tolerance: float = 0.35) -> list[Point]:
    """The points without those that lie within ``tolerance`` pixels of the line drawn without them.

    Douglas and Peucker, "Algorithms for the reduction of the number of points" (1973), with a stack for its recursion.
    """
    if len(points) < 3:  # noqa: PLR2004 - a line has two ends
        return list(points)
    kept = {0, len(points) - 1}
    stack = [(0, len(points) - 1)]
    while stack:
        first, last = stack.pop()
        far, index = max(
            ((_distance(points[place], points[first], points[last]), place) for place in range(first + 1, last)),
            default=(0.0, first),
        )
        if far > tolerance:
            kept.add(index)
            stack += [(first, index), (index, last)]
    return [points[index] for index in sorted(kept)]


def path(points: Sequence[Point]) -> str:
    """The ``d`` of a line through pixels, rounded to half a pixel and written as differences: short, without drift."""
    grid = [(round(2 * x), round(2 * y)) for x, y in points]
    if not grid:
        return ""
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(grid)]
    body = "".join(_pair(dx / 2, dy / 2) for dx, dy in steps if dx or dy)
    start = f"M{num(grid[0][0] / 2)} {num(grid[0][1] / 2)}"
    return f"{start}l{body.lstrip()}" if body else start


def area(upper: Sequence[Point], lower: Sequence[Point], *, class_: str = "a") -> Markup:
    """The area between two lines, both from left to right."""
    return el("path", d=path([*upper, *reversed(lower)]) + "z", class_=class_)


def staircase(points: Sequence[Point]) -> list[Point]:
    """Points of a line that first goes across, then up or down, as a front does."""
    corners = [(b[0], a[1]) for a, b in pairwise(points)]
    return [point for pair in zip(points, [*corners, points[-1]], strict=True) for point in pair][:-1] if points else []


def marker(at: Point, *, shape: str = "circle", size: float = 4.0, class_: str = "m", tip: str | None = None) -> Markup:
    """A marker of a shape of ``theme.SHAPES``; ``tip`` is what the pointer is told."""
    x, y = at
    if shape == "diamond":
        r = 1.25 * size
        outline = f"M{num(x)} {num(y - r)}l{num(r)} {num(r)} {num(-r)} {num(r)} {num(-r)} {num(-r)}z"
        return el("path", d=outline, class_=class_, data_t=tip)
    if shape == "square":
        side = 1.75 * size
        return el("rect", x=x - side / 2, y=y - side / 2, width=side, height=side, class_=class_, data_t=tip)
    return el("circle", cx=x, cy=y, r=size, class_=class_, data_t=tip)


def interval(low: Point, high: Point, *, class_: str = "w") -> Markup:
    """A line between two pixels with a bar across each end; it stands or lies."""
    (x1, y1), (x2, y2) = low, high
    across = (CAP, 0.0) if abs(y2 - y1) > abs(x2 - x1) else (0.0, CAP)
    bars = "".join(
        f"M{num(x - across[0])} {num(y - across[1])}L{num(x + across[0])} {num(y + across[1])}" for x, y in (low, high)
    )
    return el("path", d=f"M{num(x1)} {num(y1)}L{num(x2)} {num(y2)}{bars}", class_=class_)


def label(at: Point, text: str, *, anchor: str = "start", class_: str | None = None) -> Markup:
    """A word at a pixel; ``anchor`` is ``start``, ``middle`` or ``end``."""
    return el("text", text, x=at[0], y=at[1], text_anchor=None if anchor == "start" else anchor, class_=class_)


def group(*children: str | None, class_: str | None = None, tip: str | None = None) -> Markup:
    """Marks that belong together."""
    return el("g", *children, class_=class_, data_t=tip)


def _pair(dx: float, dy: float) -> str:
    first, second = num(dx), num(dy)
    lead = "" if first.startswith("-") else " "
    return f"{lead}{first}{'' if second.startswith('-') else ' '}{second}"


def _distance(point: Point, start: Point, end: Point) -> float:
    (x, y), (x1, y1), (x2, y2) = point, start, end
    length = math.hypot(x2 - x1, y2 - y1)
    if length == 0:
        return math.hypot(x - x1, y - y1)
    return abs((x2 - x1) * (y1 - y) - (x1 - x) * (y2 - y1)) / length

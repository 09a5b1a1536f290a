"""The frame of a plot: where its marks go, its axes, its grid, and what it says to those who cannot see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.plots.marks import label
from llmrouter.plots.markup import Markup, el, num, tick

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.plots.scales import Scale

TICK_GAP = 5.0
_CHARACTER = 6.2
"""Width of a digit in pixels, as far as room for labels goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Size of a plot and its margins, in pixels of its own coordinates; it is scaled to the width it is given."""

    width: float = 420.0
    height: float = 260.0
    left: float = 48.0
    right: float = 14.0
    top: float = 24.0
    bottom: float = 40.0

    @property
    def x(self) -> tuple[float, float]:
        """From the left of the marks to their right."""
        return (self.left, self.width - self.right)

    @property
    def y(self) -> tuple[float, float]:
        """From the bottom of the marks to their top."""
        return (self.height - self.bottom, self.top)


def plot(frame: Frame, *children: str | None, title: str, description: str, upward: str | None = None) -> Markup:
    """A whole plot. ``title`` is drawn above it and, with ``description``, read to those who cannot see it.

    ``upward`` is what its y axis shows, with the unit; it stands beside the title.
    """
    beside = el("tspan", f"{upward} ↑", class_="unit", dx=8) if upward else None
    return el(
        "svg",
        el("title", title),
        el("desc", description),
        el("text", title, beside, x=0, y=13, class_="name"),
        *children,
        class_="plot",
        role="img",
        viewbox=f"0 0 {num(frame.width)} {num(frame.height)}",
    )


def x_axis(scale: Scale, frame: Frame, *, name: str, written: Callable[[float], str] = tick, count: int = 6) -> Markup:
    """The axis at the bottom with its grid; labels that would touch their neighbour are left out."""
    bottom, top = frame.y
    values = scale.ticks(count)
    grid = "".join(f"M{num(scale(value))} {num(top)}V{num(bottom)}" for value in values)
    places = [(scale(value), written(value)) for value in values]
    labels = [label((x, bottom + 15), text, anchor="middle") for x, text in _apart(places)]
    middle = (frame.x[0] + frame.x[1]) / 2
    return el(
        "g",
        el("path", d=grid, class_="grid"),
        el("path", d=f"M{num(frame.x[0])} {num(bottom)}H{num(frame.x[1])}", class_="axis"),
        *labels,
        label((middle, bottom + 31), name, anchor="middle"),
    )


def y_axis(scale: Scale, frame: Frame, *, written: Callable[[float], str] = tick, count: int = 5) -> Markup:
    """The axis on the left with its grid; ``plot`` says what it shows."""
    left, right = frame.x
    values = scale.ticks(count)
    grid = "".join(f"M{num(left)} {num(scale(value))}H{num(right)}" for value in values)
    labels = [label((left - TICK_GAP, scale(value) + 3.5), written(value), anchor="end") for value in values]
    return el("g", el("path", d=grid, class_="grid"), *labels)


def reference(frame: Frame, *, x: float | None = None, y: float | None = None) -> Markup:
    """A dashed line across the frame at a pixel, upright (``x``) or level (``y``)."""
    upright = f"M{num(x)} {num(frame.y[1])}V{num(frame.y[0])}" if x is not None else ""
    level = f"M{num(frame.x[0])} {num(y)}H{num(frame.x[1])}" if y is not None else ""
    return el("path", d=upright + level, class_="ref")


def _apart(places: list[tuple[float, str]]) -> list[tuple[float, str]]:
    kept: list[tuple[float, str]] = []
    for x, text in sorted(places):
        if not kept or x - kept[-1][0] > _CHARACTER * (len(text) + len(kept[-1][1])) / 2 + 4:
            kept.append((x, text))
    return kept

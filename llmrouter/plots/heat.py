"""Timelines of many rows at once: heat maps with a shared time axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.plots.axes import Frame, plot, x_axis
from llmrouter.plots.marks import area, label, line
from llmrouter.plots.markup import Markup, el, tick
from llmrouter.plots.raster import heat_uri, ramp_uri, thinned
from llmrouter.plots.scales import Linear

if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS = 160
GAP = 22.0
_NAMED = 8
"""So many rows have their names beside them; of more, the first and the last."""


@dataclass(frozen=True, slots=True)
class Heat:
    """Figures of shape (rows, times), coloured from 0 to ``high``; ``scale_text`` says what ``high`` is."""

    name: str
    rows: Sequence[Sequence[float | None]]
    high: float
    scale_text: str = ""


@dataclass(frozen=True, slots=True)
class Strand:
    """Figures of shape (times,) under a name, drawn as an area from 0 to ``high``."""

    name: str
    values: Sequence[float | None]
    high: float
    slot: int = 0


def heat_chart(
    bands: Sequence[Heat | Strand],
    at_s: Sequence[float],
    *,
    title: str,
    description: str,
    row_names: Sequence[str],
    width: float = 420.0,
    x_name: str = "time, s",
) -> Markup:
    """Bands below one another over one time axis."""
    heights = [_height(band) for band in bands]
    top = 22.0
    total = top + sum(height + GAP for height in heights) + 34
    frame = Frame(width=width, height=total, left=34, right=8, top=top, bottom=38)
    across = Linear((at_s[0], at_s[-1] if at_s[-1] > at_s[0] else at_s[0] + 1), frame.x)
    drawn, y = [], top
    for band, height in zip(bands, heights, strict=True):
        inside = _heat(band, frame, y + 14, height, row_names) if isinstance(band, Heat) else None
        drawn.append(inside or _strand(band, frame, y + 14, height))  # type: ignore[arg-type]
        y += height + GAP
    return plot(frame, x_axis(across, frame, name=x_name), *drawn, title=title, description=description)


def legend(text_low: str, text_high: str) -> Markup:
    """The colours of a heat map with what its ends mean."""
    image = el("image", href=ramp_uri(), x=0, y=0, width=120, height=10, preserveAspectRatio="none")
    ramp = el("svg", image, class_="plot ramp", viewbox="0 0 120 10", aria_hidden="true")
    return el("span", text_low, " ", ramp, " ", text_high, class_="heat-legend")


def _height(band: Heat | Strand) -> float:
    return 34.0 if isinstance(band, Strand) else max(36.0, min(15.0 * len(band.rows), 128.0))


def _heat(band: Heat, frame: Frame, y: float, height: float, names: Sequence[str]) -> Markup:
    left, right = frame.x
    each = height / max(len(band.rows), 1)
    shown = range(len(names)) if len(names) <= _NAMED else (0, len(names) - 1)
    return el(
        "g",
        label((left, y - 4), band.name, class_="strong"),
        label((right, y - 4), band.scale_text, anchor="end"),
        el(
            "image",
            href=heat_uri(thinned(band.rows, COLUMNS), band.high),
            x=left,
            y=y,
            width=right - left,
            height=height,
            preserveAspectRatio="none",
        ),
        *(label((left - 5, y + each * (row + 0.5) + 4), names[row], anchor="end") for row in shown),
    )


def _strand(band: Strand, frame: Frame, y: float, height: float) -> Markup:
    left, right = frame.x
    values = thinned([band.values], COLUMNS)[0]
    up = Linear((0.0, band.high or 1.0), (y + height, y))
    stride = (right - left) / max(len(values), 1)
    upper = [(left + (index + 0.5) * stride, up(value or 0.0)) for index, value in enumerate(values)]
    lower = [(x, y + height) for x, _ in upper]
    return el(
        "g",
        label((left, y - 4), band.name, class_="strong"),
        label((right, y - 4), f"0–{tick(band.high)}", anchor="end"),
        el("path", d=f"M{left:.0f} {y + height:.0f}H{right:.0f}", class_="grid"),
        el("g", area(upper, lower), line(upper), class_=f"p on s{band.slot}"),
    )

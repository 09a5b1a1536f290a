"""Whole charts: lines with intervals, scatter with a front, dots with intervals by name, heat maps.

    line_chart([Series(name="A", slot=1, points=((1, 2.0), (2, 3.0)))], title="…", description="…", x=Axis("load"),
               y=Axis("s"))

Put ``theme.style()`` once in the page. Charts are told apart by slot (see ``theme``), not by the caller's colours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmrouter.plots import marks, scales, theme
from llmrouter.plots.axes import Frame, plot, reference, x_axis, y_axis
from llmrouter.plots.labels import placed
from llmrouter.plots.markup import Markup, el, figure, num, tick

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from llmrouter.plots.scales import Scale

FRAME = Frame()


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows.

    Attributes:
        name: with its unit.
        log: logarithmic; figures that are not positive are then left out.
        include: figures that must be on it.
        at: exactly these ticks, where given.
        written: how a tick is written.
    """

    name: str
    log: bool = False
    include: tuple[float, ...] = ()
    at: tuple[float, ...] | None = None
    written: Callable[[float], str] = tick


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one name. ``lows`` and ``highs``, where given, are as long as ``points``; ``None`` is no interval.

    ``on`` says whether it stands out or keeps to the background; ``markers`` whether its points are marked;
    ``tip`` what the pointer is told of the whole series, ``tips`` of each point.
    """

    name: str
    slot: int
    points: tuple[tuple[float, float], ...]
    lows: tuple[float | None, ...] | None = None
    highs: tuple[float | None, ...] | None = None
    on: bool = True
    markers: bool = True
    tip: str | None = None
    tips: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Spot:
    """A named point of a scatter; ``solid`` or hollow."""

    name: str
    slot: int
    x: float
    y: float
    on: bool = True
    tip: str | None = None
    solid: bool = True


@dataclass(frozen=True, slots=True)
class Ticked:
    """A scale with ticks of the caller's choice."""

    scale: Scale
    at: tuple[float, ...]

    @property
    def domain(self) -> tuple[float, float]:
        """Least and largest figure."""
        return self.scale.domain

    @property
    def pixels(self) -> tuple[float, float]:
        """Where those lie."""
        return self.scale.pixels

    def __call__(self, value: float) -> float:
        """The pixel of a figure."""
        return self.scale(value)

    def ticks(self, count: int = 5) -> list[float]:  # noqa: ARG002 - a scale is asked for a number of ticks
        """The chosen ticks within the domain."""
        return [value for value in self.at if self.domain[0] <= value <= self.domain[1]]


def scale_of(axis: Axis, values: Iterable[float | None], pixels: tuple[float, float]) -> Scale:
    """The scale of an axis over figures and its ``include``."""
    found = scales.known(values)
    made: Scale
    made = (
        scales.log([*found, *axis.include], pixels) if axis.log else scales.linear(found, pixels, include=axis.include)
    )
    return Ticked(made, axis.at) if axis.at is not None else made


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    description: str,
    x: Axis,
    y: Axis,
    frame: Frame = FRAME,
    limit: tuple[float, float] | None = None,
    dodge: float = 0.0,
) -> Markup:
    """Lines with markers and intervals; those that stand out are drawn last.

    ``dodge`` pixels lie between the lines that stand out, so that intervals at one x can be told apart.
    ``limit`` is what the y axis shows at most: what lies beyond is cut off at the frame.
    """
    kept = [_positive(one, x_log=x.log, y_log=y.log) for one in series]
    across = scale_of(x, [point[0] for one in kept for point in one.points], frame.x)
    shown = [figure for one in kept for figure in _figures(one)] if limit is None else list(limit)
    up = scale_of(y, shown, frame.y)
    places = [index for index, one in enumerate(kept) if one.on]
    shifts = {index: dodge * (place - (len(places) - 1) / 2) for place, index in enumerate(places)}
    order = sorted(range(len(kept)), key=lambda index: kept[index].on)
    drawn = [_series(kept[index], across, up, shift=shifts.get(index, 0.0)) for index in order]
    return plot(
        frame,
        x_axis(across, frame, name=x.name, written=x.written),
        y_axis(up, frame, written=y.written),
        reference(frame, y=up(0.0)) if not y.log and up.domain[0] < 0 < up.domain[1] else None,
        *(drawn if limit is None else [_clipped(drawn, frame)]),
        title=title,
        description=description,
        upward=y.name,
    )


def scatter_chart(
    spots: Sequence[Spot],
    *,
    title: str,
    description: str,
    x: Axis,
    y: Axis,
    frame: Frame = FRAME,
    front: Sequence[tuple[float, float]] = (),
    identity: bool = False,
    names: bool = True,
) -> Markup:
    """Named points. ``front`` is a line of stairs through figures; ``identity`` draws x = y over equal axes."""
    kept = [spot for spot in spots if (not x.log or spot.x > 0) and (not y.log or spot.y > 0)]
    shared = [figure for spot in kept for figure in (spot.x, spot.y)] if identity else []
    across = scale_of(x, shared or [spot.x for spot in kept], frame.x)
    up = scale_of(y, shared or [spot.y for spot in kept], frame.y)
    corners = marks.staircase([(across(a), up(b)) for a, b in sorted(front)])
    ends = across.domain
    return plot(
        frame,
        x_axis(across, frame, name=x.name, written=x.written),
        y_axis(up, frame, written=y.written),
        marks.line([(across(end), up(end)) for end in ends], class_="ref") if identity else None,
        marks.line(corners, class_="front") if corners else None,
        *_spots(kept, across, up, frame=frame, names=names),
        title=title,
        description=description,
        upward=y.name,
    )


def _clipped(drawn: Sequence[Markup], frame: Frame) -> Markup:
    """Marks cut off at the frame: a nested ``svg`` clips without an id."""
    (left, right), (bottom, top) = frame.x, frame.y
    box = {"x": left - 6, "y": top - 6, "width": right - left + 12, "height": bottom - top + 12}
    view = " ".join(num(value) for value in box.values())
    return el("svg", *drawn, viewbox=view, overflow="hidden", **box)


def _series(one: Series, across: Scale, up: Scale, *, shift: float) -> Markup:
    pixels = [(across(a) + shift, up(b)) for a, b in one.points]
    bars = [
        marks.interval((at[0], up(low)), (at[0], up(high)))
        for at, low, high in zip(pixels, one.lows or (), one.highs or (), strict=False)
        if low is not None and high is not None
    ]
    return marks.group(
        *bars,
        marks.line(pixels) if len(pixels) > 1 else None,
        *(_dots(one, pixels) if one.markers else ()),
        class_=theme.slot_class(one.slot, on=one.on),
        tip=one.tip,
    )


def _dots(one: Series, pixels: Sequence[tuple[float, float]]) -> list[Markup]:
    shape = theme.shape_of(one.slot)
    tips = one.tips or tuple(f"{one.name}: {figure(a)}, {figure(b)}" for a, b in one.points)
    return [marks.marker(at, shape=shape, size=3.2, tip=tip) for at, tip in zip(pixels, tips, strict=True)]


def _spots(spots: Sequence[Spot], across: Scale, up: Scale, *, frame: Frame, names: bool) -> list[Markup]:
    pixels = [(across(spot.x), up(spot.y)) for spot in spots]
    labels = placed([spot.name for spot in spots], pixels, frame, wanted=[spot.on for spot in spots])
    drawn = []
    for spot, at, written in zip(spots, pixels, labels, strict=True):
        mark = marks.marker(
            at, shape=theme.shape_of(spot.slot), size=4.4, class_="m" if spot.solid else "m hollow", tip=spot.tip
        )
        text = marks.label(written[:2], spot.name, anchor=written[2]) if names and written else None
        drawn.append((spot.on, marks.group(mark, text, class_=theme.slot_class(spot.slot, on=spot.on))))
    return [mark for _, mark in sorted(drawn, key=lambda pair: pair[0])]


def _figures(one: Series) -> list[float | None]:
    return [*(point[1] for point in one.points), *(one.lows or ()), *(one.highs or ())]


def _positive(one: Series, *, x_log: bool, y_log: bool) -> Series:
    keep = [(not x_log or a > 0) and (not y_log or b > 0) for a, b in one.points]
    if all(keep):
        return one
    return replace(
        one,
        points=tuple(point for point, kept in zip(one.points, keep, strict=True) if kept),
        lows=_where(one.lows, keep),
        highs=_where(one.highs, keep),
        tips=tuple(tip for tip, kept in zip(one.tips, keep, strict=True) if kept) if one.tips else None,
    )


def _where(values: tuple[float | None, ...] | None, keep: list[bool]) -> tuple[float | None, ...] | None:
    return tuple(value for value, kept in zip(values, keep, strict=True) if kept) if values is not None else None

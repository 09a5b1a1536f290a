"""Names beside points, where there is room for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.plots.axes import Frame

    Box = tuple[float, float, float, float]
    Placed = tuple[float, float, str]

CHARACTER = 6.0
HEIGHT = 12.0
_NEAR, _HALF, _DOT = 8.0, 4.0, 5.0


def placed(
    names: Sequence[str], points: Sequence[tuple[float, float]], frame: Frame, *, wanted: Sequence[bool]
) -> list[Placed | None]:
    """For each point the x, baseline y and anchor of its name, in pixels; ``None`` where it would cover another.

    First come, first served: earlier points take their room first, to the right, to the left, above, below. Names that
    are not ``wanted`` now (they may be shown later) are placed after those that are, and do not mind one another.
    """
    dots = [(x - _DOT, y - _DOT, x + _DOT, y + _DOT) for x, y in points]
    taken: list[Box] = []
    found: list[Placed | None] = [None] * len(names)
    for index in sorted(range(len(names)), key=lambda index: not wanted[index]):
        others = [dot for place, dot in enumerate(dots) if place != index and wanted[place]]
        for option in _options(points[index]):
            box = _box(option, names[index])
            if _inside(box, frame) and not any(_overlap(box, other) for other in (*taken, *others)):
                found[index] = option
                if wanted[index]:
                    taken.append(box)
                break
    return found


def _options(at: tuple[float, float]) -> list[Placed]:
    x, y = at
    beside = [(x + _NEAR, y + _HALF, "start"), (x - _NEAR, y + _HALF, "end")]
    corners = [(x + 5, y - 7, "start"), (x + 5, y + 15, "start"), (x - 5, y - 7, "end"), (x - 5, y + 15, "end")]
    return [*beside, *corners, (x, y - 9, "middle"), (x, y + 17, "middle")]


def _box(option: Placed, name: str) -> Box:
    x, y, anchor = option
    width = CHARACTER * len(name)
    left = {"start": x, "end": x - width, "middle": x - width / 2}[anchor]
    return (left, y - HEIGHT + 2, left + width, y + 2)


def _inside(box: Box, frame: Frame) -> bool:
    return box[0] >= frame.left and box[2] <= frame.width and box[1] >= frame.top - _NEAR and box[3] <= frame.y[0]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

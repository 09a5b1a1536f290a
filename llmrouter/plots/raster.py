"""Heat maps as tiny inline images: a pixel per figure, so that a long timeline costs hundreds of bytes."""

from __future__ import annotations

import math
import struct
import zlib
from base64 import b64encode
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LEVELS = 48
"""Steps of the colour ramp; more are not told apart."""

_ANCHORS = (
    *((68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141)),
    *((39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37)),
)
"""Viridis (van der Walt and Smith, 2015): lightness grows evenly, also for the colour-blind and on a grey print."""

_UNKNOWN = (150, 150, 150)


def heat_uri(rows: Sequence[Sequence[float | None]], high: float, *, low: float = 0.0) -> str:
    """A ``data:`` URI of a PNG with a pixel per figure: ``low`` and below is darkest, ``high`` and above brightest.

    Rows are drawn top to bottom and must be equally long; an unknown figure is grey. Raises ValueError without a pixel.
    """
    width = len(rows[0]) if rows else 0
    if width == 0 or any(len(row) != width for row in rows):
        raise ValueError("a heat map needs rows of one length, of at least one figure")
    lines = b"".join(b"\0" + bytes(_level(value, low, high) for value in row) for row in rows)
    header = struct.pack(">IIBBBBB", width, len(rows), 8, 3, 0, 0, 0)
    chunks = (_chunk(b"IHDR", header), _chunk(b"PLTE", _palette()), _chunk(b"IDAT", zlib.compress(lines, 9)))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + _chunk(b"IEND", b"")
    return "data:image/png;base64," + b64encode(png).decode()


def ramp_uri() -> str:
    """The colours from low to high, left to right, for a legend."""
    return heat_uri([[index / (LEVELS - 1) for index in range(LEVELS)]], 1.0)


def thinned(rows: Sequence[Sequence[float | None]], count: int) -> list[list[float | None]]:
    """The rows with at most ``count`` columns: each is the mean of the known figures it stands for."""
    width = len(rows[0]) if rows else 0
    if width <= count:
        return [list(row) for row in rows]
    edges = [index * width // count for index in range(count + 1)]
    pairs = list(pairwise(edges))
    return [[_mean(row[start:end]) for start, end in pairs] for row in rows]


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None and math.isfinite(value)]
    return sum(found) / len(found) if found else None


def _level(value: float | None, low: float, high: float) -> int:
    if value is None or not math.isfinite(value):
        return LEVELS
    share = (value - low) / (high - low) if high > low else 0.0
    return round(min(max(share, 0.0), 1.0) * (LEVELS - 1))


def _palette() -> bytes:
    colours = []
    for level in range(LEVELS):
        place = level / (LEVELS - 1) * (len(_ANCHORS) - 1)
        index = min(int(place), len(_ANCHORS) - 2)
        pairs = zip(_ANCHORS[index], _ANCHORS[index + 1], strict=True)
        colours.append(bytes(round(one + (other - one) * (place - index)) for one, other in pairs))
    return b"".join(colours) + bytes(_UNKNOWN)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

"""HTML and SVG as text: what is put in as plain text is escaped, what was built here is not escaped again."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

VOID = frozenset({"br", "col", "hr", "img", "input", "meta", "wbr"})
EMPTY = frozenset({"circle", "image", "line", "path", "rect"})
MISSING = "–"
"""What stands where a figure is unknown."""

_SHORT_BELOW = 1e6


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def el(name: str, /, *children: str | None, **attributes: str | float | bool | None) -> Markup:
    """An element; ``class_`` is written ``class``, ``data_t`` is written ``data-t``.

    Children that are no ``Markup`` are escaped, ``None`` is left out. An attribute that is ``None`` or ``False`` is
    left out, ``True`` stands alone, a number is written by ``num``.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{name}{written}>")
    if name in EMPTY and not children:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(parts: Iterable[str | None]) -> Markup:
    """The parts one after the other, each escaped unless it is ``Markup``; ``None`` is left out."""
    return Markup("".join(part if isinstance(part, Markup) else _text(part) for part in parts if part is not None))


def num(value: float, digits: int = 1) -> str:
    """A coordinate in as few characters as it takes: ``12``, ``3.5``, ``-.5``; 0 where it is not finite."""
    if not math.isfinite(value):
        return "0"
    text = f"{value:.{digits}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    if text in {"-0", ""}:
        return "0"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def figure(value: float | None, digits: int = 3) -> str:
    """A figure with so many digits, more only before the point: ``1,234``, ``12.3``, ``0.0123``; ``–`` if unknown."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if abs(value) >= _SHORT_BELOW:
        return f"{value:.{digits - 1}e}".replace("e+0", "e").replace("e+", "e").replace("-", "−")
    rounded = float(f"{value:.{digits - 1}e}")
    places = max(digits - 1 - math.floor(math.log10(abs(rounded))), 0)
    return f"{value:,.{places}f}".replace("-", "−")


def signed(value: float | None, digits: int = 1) -> str:
    """A difference with its sign, always: ``+3.2``, ``−0.4``, ``0.0``; ``–`` where it is unknown."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:+,.{digits}f}"
    return (text[1:] if float(text.replace(",", "")) == 0 else text).replace("-", "−")


def change(percent: float | None, half_width: float | None, digits: int = 1) -> str:
    """A change in percent with its interval: ``−9.1 ± 0.4 %``; without the interval where that is unknown."""
    if percent is None or not math.isfinite(percent):
        return MISSING
    if half_width is None or not math.isfinite(half_width):
        return f"{signed(percent, digits)} %"
    return f"{signed(percent, digits)} ± {half_width:,.{digits}f} %"


def seconds(value: float | None) -> str:
    """A time in the unit that reads best: ``850 ms``, ``12.3 s``; ``–`` where it is unknown."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{figure(1000 * value)} ms" if 0 < abs(value) < 1 else f"{figure(value)} s"


def tick(value: float) -> str:
    """A number at an axis: as short as it can be told from its neighbours."""
    if value != 0 and not 1e-4 <= abs(value) < 1e5:  # noqa: PLR2004 - outside, powers of ten are shorter
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e−").replace("e+", "e").replace("e-", "e−")
    return f"{value:g}".replace("-", "−")


def _attribute(key: str, value: str | float | bool | None) -> str:  # noqa: FBT001 - an attribute may be on or off
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    name = "viewBox" if name == "viewbox" else name
    if value is True:
        return f" {name}"
    return f' {name}="{escape(value) if isinstance(value, str) else num(value)}"'


def _text(text: str) -> str:
    return escape(text, quote=False)

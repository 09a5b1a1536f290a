"""Colours and the style sheet of every plot: told apart by the colour-blind, light and dark, on screen and on paper.

The hues are those of Okabe and Ito (Color Universal Design, 2008), darkened or lightened until each has a contrast of
at least 3:1 against its background. Slot k of a series has hue k mod 8; slots 8–15 are dashed, 16–23 dotted, with a
marker of another shape, so that no two of 24 series look alike and none is told by its colour alone.
"""

from __future__ import annotations

from llmrouter.plots.markup import Markup

LIGHT_HUES = ("#566070", "#0067b0", "#d0490a", "#00855f", "#a34e9c", "#a97a00", "#2b8fd0", "#8c1d4f")
DARK_HUES = ("#a8b2c1", "#55aef0", "#ff8f57", "#33cf9f", "#e08fd8", "#f0b83d", "#97d5fa", "#ff7fb0")
HUES = len(LIGHT_HUES)
DASHES = ("none", "6 3", "1.5 3")
SLOTS = HUES * len(DASHES)
SHAPES = ("circle", "diamond", "square")

LIGHT = {
    "page": "#fcfcfb",
    "card": "#ffffff",
    "sunk": "#f1f2f3",
    "ink": "#1b1f26",
    "soft": "#59616e",
    "muted": "#b9bfc9",
    "grid": "#e4e6ea",
    "axis": "#8a92a0",
    "accent": "#0067b0",
    "good": "#0067b0",
    "bad": "#b8400a",
    "good-wash": "#0067b0",
    "bad-wash": "#e0702a",
}
DARK = {
    "page": "#111418",
    "card": "#181c22",
    "sunk": "#20252d",
    "ink": "#e9ecf1",
    "soft": "#a2abb9",
    "muted": "#4c5563",
    "grid": "#2a303a",
    "axis": "#78818f",
    "accent": "#55aef0",
    "good": "#6bbcf7",
    "bad": "#ff9a66",
    "good-wash": "#2f86cc",
    "bad-wash": "#d0662a",
}

_PLOT = """
svg.plot{display:block;width:100%;height:auto;font-size:11.5px;line-height:1.2;
font-variant-numeric:tabular-nums;overflow:visible;font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
svg.plot text{fill:var(--soft)}svg.plot .name{fill:var(--ink);font-weight:600}svg.plot .strong{fill:var(--ink)}
svg.plot .unit{fill:var(--soft);font-weight:400}
svg.plot.ramp{display:inline-block;width:120px;vertical-align:-1px}
svg.plot .grid{stroke:var(--grid);fill:none;shape-rendering:crispEdges}
svg.plot .axis{stroke:var(--axis);fill:none;shape-rendering:crispEdges}
svg.plot .ref{stroke:var(--axis);fill:none;stroke-dasharray:4 3}
.p{--c:var(--muted)}
.p .l{fill:none;stroke:var(--c);stroke-width:1.1;stroke-linejoin:round;stroke-linecap:round;opacity:.65}
.p .m{fill:var(--c);stroke:var(--card);stroke-width:1;opacity:.75}
.p .w{stroke:var(--c);fill:none;stroke-width:1;opacity:.5}
.p .a{fill:var(--c);stroke:none;opacity:.13}.p .hollow{fill:var(--card);stroke:var(--c);stroke-width:1.6}
.p.on .l{stroke-width:1.9;opacity:1}.p.on .m{opacity:1}.p.on .w{stroke-width:1.4;opacity:.9}
.p text{display:none;
paint-order:stroke;stroke:var(--page);stroke-width:3px;stroke-linejoin:round}
svg.plot .p.on text{display:inline;fill:var(--c)}
svg.plot .front{fill:none;stroke:var(--ink);stroke-width:1.2;stroke-dasharray:2 2;opacity:.65}
svg.plot image{image-rendering:pixelated}
svg.plot [data-t]{cursor:default}
"""


def style() -> Markup:
    """The style sheet of plots: variables for light, dark and paper, a class ``s<k>`` per slot, the marks' classes."""
    light, dark = _variables(LIGHT, LIGHT_HUES), _variables(DARK, DARK_HUES)
    slots = "".join(
        f".s{slot}{{--c:var(--h{slot % HUES})}}.p.s{slot} .l{{stroke-dasharray:{DASHES[slot // HUES]}}}"
        for slot in range(SLOTS)
    )
    lit = "".join(f".p.on.s{slot}{{--c:var(--h{slot % HUES})}}" for slot in range(SLOTS))
    return Markup(
        f":root{{color-scheme:light dark;{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        f"@media print{{:root{{color-scheme:light;{light}}}}}{slots}{_PLOT}{lit}"
    )


def shape_of(slot: int) -> str:
    """The marker of a slot."""
    return SHAPES[slot // HUES % len(SHAPES)]


def series_slot(place: int) -> int:
    """The slot of the series at a place 0, 1, …: all but those of the neutral hue, which is the reference's.

    After ``SLOTS`` less those they come again.
    """
    own = [slot for slot in range(SLOTS) if slot % HUES]
    return own[place % len(own)]


def slot_class(slot: int, *, on: bool = True) -> str:
    """The classes of a series: ``p`` takes its colour, ``s<k>`` gives it, ``on`` brings it to the front."""
    return f"p s{slot % SLOTS}{' on' if on else ''}"


def _variables(colours: dict[str, str], hues: tuple[str, ...]) -> str:
    named = {**colours, **{f"h{index}": hue for index, hue in enumerate(hues)}}
    return "".join(f"--{name}:{value};" for name, value in named.items())

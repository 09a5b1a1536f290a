"""When a number of the paper counts as reproduced."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmrouter.study.statistics import Change

SECONDS_TOLERANCE = 0.05
"""Relative difference up to which a time agrees: ours are fitted to a few printed step times."""

AGREES, DIFFERS, UNKNOWN = "agrees", "differs", "–"


def of_seconds(ours_s: float, paper_s: tuple[float, float]) -> str:
    """Whether a time lies within 5 % of what is printed, or of the range that follows from it."""
    low_s, high_s = paper_s
    return AGREES if low_s * (1 - SECONDS_TOLERANCE) <= ours_s <= high_s * (1 + SECONDS_TOLERANCE) else DIFFERS


def of_change(ours: Change, paper_pct: float) -> str:
    """Whether a change lies within √2 half-widths of ours: the paper's is a mean of as many episodes as noisy."""
    if ours.percent is None or ours.half_width is None:
        return UNKNOWN
    return AGREES if abs(ours.percent - paper_pct) <= math.sqrt(2.0) * ours.half_width else DIFFERS

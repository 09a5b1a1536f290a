"""What routers said lately enough to count."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmrouter.acknowledgement import RouterAcknowledgement

STALE_AFTER_S = 30.0
"""What a router said longer ago does not count: it says something every five seconds."""

STALE_EACH_S = 0.4
"""Many routers say something in turns, 0.2 s apart: this much more time for each of them, two turns."""


def said_lately(said: Iterable[RouterAcknowledgement], at_s: float) -> list[RouterAcknowledgement]:
    """Those that are not stale at an instant (seconds since the epoch)."""
    everyone = list(said)
    stale_after_s = max(STALE_AFTER_S, STALE_EACH_S * len(everyone))
    return [one for one in everyone if at_s - one.at_s <= stale_after_s]

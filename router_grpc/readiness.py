"""Whether a part of a router is as declared, and why not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Readiness:
    """``reason`` is a CamelCase word, ``message`` a sentence."""

    ready: bool
    reason: str
    message: str = ""

"""Notices that the traffic's lengths changed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Drift:
    """What changed: a CamelCase reason and a sentence."""

    reason: str
    message: str


class DriftWatch:
    """Placeholder of the interface while it is being written."""

    drift: Drift | None = None

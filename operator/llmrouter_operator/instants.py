"""Instants as objects of the API server have them (RFC 3339), and seconds since the epoch."""

from __future__ import annotations

from datetime import UTC, datetime


def instant_of(seconds: float) -> str:
    """An instant in whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_of(instant: str) -> float:
    """Raises ValueError where the text is no instant."""
    return datetime.fromisoformat(instant).timestamp()


def instant_s(text: str | None) -> float | None:
    """Seconds of what others wrote; ``None`` where it is no instant."""
    try:
        return None if text is None else seconds_of(text)
    except ValueError:
        return None

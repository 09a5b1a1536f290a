"""Careful reading of values that may be absent, null or of another kind: what is no figure is unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def number(value: object) -> float | None:
    """A finite number, or ``None``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def numbers(value: object) -> list[float | None]:
    """A list of numbers or ``None``; empty for what is no list."""
    return [number(item) for item in items(value)]


def known_numbers(value: object) -> list[float]:
    """The numbers of a list if every item of it is one; else empty."""
    found = numbers(value)
    kept = [item for item in found if item is not None]
    return kept if len(kept) == len(found) else []


def mapping(value: object) -> Mapping[str, Any]:
    """An object; empty for anything else."""
    return value if isinstance(value, Mapping) else {}


def items(value: object) -> Sequence[Any]:
    """A list; empty for anything else, also for text."""
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else ()


def text(value: object) -> str | None:
    """Text that says something, or ``None``."""
    return value if isinstance(value, str) and value.strip() else None


def load_key(value: object) -> str | None:
    """A load as a key, whether it came as a number or as text: ``0.8``; ``None`` for what is no load."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    found = number(value)
    return None if found is None else f"{found:g}"

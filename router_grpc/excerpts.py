"""The part of a prompt that is read of one that is long."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_READ_BYTES = 64 * 1024
"""Of a longer prompt the first and the last half of so many are read."""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """What is read of a prompt: bytes, and their share of the whole."""

    content: bytes = field(repr=False)
    share: float

    @property
    def text(self) -> str:
        """As text; what is no UTF-8 is replaced."""
        return self.content.decode("utf-8", "replace")


def excerpt(prompt: bytes) -> Excerpt:
    """The part of a prompt that is read: all of it, or its two ends."""
    if len(prompt) <= MAX_READ_BYTES:
        return Excerpt(prompt, 1.0)
    half = MAX_READ_BYTES // 2
    return Excerpt(prompt[:half] + prompt[-half:], MAX_READ_BYTES / len(prompt))

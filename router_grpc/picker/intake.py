"""Bodies that are taken in and not sent on yet: how many bytes they are together, and how many they may be."""

from __future__ import annotations

from llmrouter.errors import SaturatedError

MAX_BODIES_BYTES = 256 * 1024 * 1024
RETRY_AFTER_S = 1.0


class Intake:
    """Of one router, across all of its exchanges: without it all clients could have the longest bodies open."""

    def __init__(self, max_bytes: int = MAX_BODIES_BYTES) -> None:
        self._max_bytes = max_bytes
        self.bytes = 0

    def take(self, size: int) -> None:
        """So many more bytes are kept.

        Raises:
            SaturatedError: there would be too many; nothing was taken.
        """
        if self.bytes + size > self._max_bytes:
            raise SaturatedError(
                f"bodies under way have {self.bytes} bytes, with this one's {size} more than {self._max_bytes}",
                reason="BodiesFull",
                retry_after_s=RETRY_AFTER_S,
            )
        self.bytes += size

    def hold(self, size: int) -> None:
        """So many more bytes are kept, that cannot be refused any more: what follows is, where they are too many."""
        self.bytes += size

    def give(self, size: int) -> None:
        """So many bytes are kept no longer."""
        self.bytes -= size

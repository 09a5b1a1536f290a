"""Word that something is different now, from the parts that notice it to whoever shows or uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Changes:
    """Calls every listener, in the order they came, whenever told. For one event loop."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Adds a listener."""
        self._listeners.append(listener)

    def tell(self) -> None:
        """Something that an acknowledgement shows, or that may have made room, is different now."""
        for listener in self._listeners:
            listener()

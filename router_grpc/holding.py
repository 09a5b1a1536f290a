"""Held requests: first come, first served, one line per model, released by events and never by polling."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llmrouter.errors import SaturatedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


class HoldLine:
    """One line of held requests. Only its head may try for a place; an event (``kick``) lets it try again."""

    def __init__(self) -> None:
        self._tickets: deque[asyncio.Event] = deque()
        self._events = 0

    def __len__(self) -> int:
        return len(self._tickets)

    @property
    def events(self) -> int:
        """How many events there were: compare before and after an attempt, so that none is missed."""
        return self._events

    def kick(self) -> None:
        """Something changed that may have made room."""
        self._events += 1
        if self._tickets:
            self._tickets[0].set()

    def ticket(self, *, max_depth: int, retry_after_s: float, since: int) -> AbstractContextManager[asyncio.Event]:
        """Joins the line for the length of a ``with``; raises SaturatedError where the line is full.

        Whoever joins as the head after events that followed ``since``, the ``events`` before its own attempt, may try
        again at once.
        """
        if len(self._tickets) >= max_depth:
            raise SaturatedError(
                f"{len(self._tickets)} requests are held already, the policy's queue.maxDepth is {max_depth}",
                reason="QueueFull",
                retry_after_s=retry_after_s,
            )
        return self._joined(since)

    @contextmanager
    def _joined(self, since: int) -> Iterator[asyncio.Event]:
        ticket = asyncio.Event()
        if not self._tickets and self._events != since:
            ticket.set()
        self._tickets.append(ticket)
        try:
            yield ticket
        finally:
            self._tickets.remove(ticket)
            if self._tickets:
                self._tickets[0].set()

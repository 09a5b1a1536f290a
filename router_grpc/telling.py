"""When a router says what it is: a change at once, in its turn; that all is as it was, now and then."""

from __future__ import annotations

import asyncio
import logging
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from prometheus_client import Counter

    from llmrouter.acknowledgement import RouterAcknowledgement

BETWEEN_S = 0.1
"""Between two acknowledgements, at least."""

QUIET_S = 5.0
"""How often a router says that all is as it was."""

LONGEST_PAUSE_S = 30.0
"""After a failure: it doubles with each, so that an API server that has too much to do gets less."""

QUIET_S_OF_ROUTER, QUIET_OF_WRITE = 0.2, 5.0
"""All routers together say so once in so many seconds at most, and once in so many times as long as a write takes."""

TURN_OF_WRITE, SHORTEST_TURN_S, LONGEST_TURN_S = 1.5, 0.02, 0.3
"""How long a router's turn to write is: so many times as long as its writes take, within bounds."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Turn:
    """When a router writes after a change (s), so that not all do at once, and how long it may say nothing new.

    Writes of one object that come at once make the API server try each of them again and again: fifty take it half a
    minute, and one after the other a second.
    """

    after_s: float = 0.0
    quiet_s: float = QUIET_S


def turn_of(key: str, keys: Collection[str], *, write_s: float) -> Turn:
    """A router's turn among all that write one object, in the order of their names; a write takes ``write_s``."""
    before = sum(one < key for one in keys)
    turn_s = min(max(TURN_OF_WRITE * write_s, SHORTEST_TURN_S), LONGEST_TURN_S)
    each_s = max(QUIET_S_OF_ROUTER, min(QUIET_OF_WRITE * write_s, 1.0))
    return Turn(after_s=before * turn_s, quiet_s=max(QUIET_S, each_s * len(keys)))


class Telling:
    """The loop that acknowledges.

    Args:
        acknowledge: writes an acknowledgement; may answer when it is this router's turn again.
        describe: the acknowledgement as it is now, ``None`` while there is nothing to say.
        has_news: whether a trial has counted something since ``describe`` was last called.
        news_s: how long that may wait (s).
        failures: counts what could not be written.
    """

    def __init__(
        self,
        acknowledge: Callable[[RouterAcknowledgement], Awaitable[Turn | None]],
        describe: Callable[[], RouterAcknowledgement | None],
        *,
        has_news: Callable[[], bool],
        news_s: Callable[[], float],
        failures: Counter,
    ) -> None:
        self._acknowledge, self._describe = acknowledge, describe
        self._has_news, self._news_s = has_news, news_s
        self._failures = failures
        self._changed = asyncio.Event()
        self._turn = Turn()

    def note_change(self) -> None:
        """Something that an acknowledgement shows is different now."""
        self._changed.set()

    async def run(self) -> None:
        """Never ends."""
        pause_s = BETWEEN_S
        while True:
            self._changed.clear()
            acknowledgement = self._describe()
            if acknowledgement is None or await self._told(acknowledgement):
                pause_s = BETWEEN_S
                await asyncio.sleep(BETWEEN_S)
                await self._something_to_say()
                await asyncio.sleep(self._turn.after_s)
            else:
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                await asyncio.sleep(pause_s * _part_of(acknowledgement.router_id))

    async def _told(self, acknowledgement: RouterAcknowledgement) -> bool:
        try:
            self._turn = await self._acknowledge(acknowledgement) or self._turn
        except Exception as error:  # noqa: BLE001 - whatever the API says, the router routes on; counted, retried
            self._failures.inc()
            _log.warning("acknowledgement not written", extra={"error": f"{type(error).__name__}: {error}"[:500]})
            return False
        return True

    async def _something_to_say(self) -> None:
        left_s = self._turn.quiet_s
        while left_s > 0:
            step_s = min(left_s, self._news_s())
            try:
                async with asyncio.timeout(step_s):
                    await self._changed.wait()
            except TimeoutError:
                left_s -= step_s
                if not self._has_news():
                    continue
            return


def _part_of(router_id: str) -> float:
    """Between a half and one, by the router's name: those that failed at once do not try again at once."""
    return 0.5 + 0.5 * zlib.crc32(router_id.encode()) / 2**32

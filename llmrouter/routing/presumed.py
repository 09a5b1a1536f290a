"""What is presumed of requests whose answers a router does not see: first token, tokens so far, and end.

A request is foretold seconds to its first token and to its end (``costing``). Its tokens are presumed to come evenly
between the two. It is presumed over

- when its foretold life has passed, unless its engine says that it has more requests than those whose life has not:
  then so many of the least overdue are kept;
- before that where its engine has had fewer requests than are counted there for ``WINDOW`` reports: the most overdue
  first;
- in any case after ``MOST_LIVES`` lives and ``SLACK_S``: nothing is counted for ever.

The foretold life is corrected by the mean of what observed requests took of theirs, if there are any: a mean that is
right counts the right number of requests in flight, whatever the lives of single ones (Little's law).

Pure: time is a parameter.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_LIVES = 4.0
SLACK_S = 10.0
LONGEST_LIFE_S = 3600.0
SHORTEST_LIFE_S = 0.05

STEPS = 4
"""Tokens are presumed in steps of so many parts of the answer: every one of them is written to the ledger."""

WINDOW = 3
"""Only requests that an engine lacks in so many reports one after the other are over: it hears of new ones late."""

RATE = 0.02
LEAST_RATIO, LARGEST_RATIO = 0.1, 10.0


@dataclass(frozen=True, slots=True)
class Expectation:
    """What was foretold of a dispatch: seconds from then to its first token and its end, and its tokens."""

    dispatched_at_s: float
    first_token_s: float
    life_s: float
    expected_tokens: float

    def elapsed_s(self, now_s: float) -> float:
        """Since the dispatch; a clock that went back counts as none."""
        return max(0.0, now_s - self.dispatched_at_s)

    def has_begun(self, now_s: float) -> bool:
        """Whether its first token is presumed to be there."""
        return self.elapsed_s(now_s) >= self.first_token_s

    def generated_tokens(self, now_s: float) -> int:
        """Tokens that are presumed to be there, in whole steps; never all of them before the end."""
        decode_s = max(self.life_s - self.first_token_s, SHORTEST_LIFE_S)
        share = (self.elapsed_s(now_s) - self.first_token_s) / decode_s
        step = min(max(int(share * STEPS), 0), STEPS - 1)
        return int(self.expected_tokens * step / STEPS)

    def overdue(self, now_s: float) -> float:
        """Lives that have passed."""
        return self.elapsed_s(now_s) / self.life_s

    def is_lost(self, now_s: float) -> bool:
        """Whether it is over whatever anybody says."""
        return self.elapsed_s(now_s) > MOST_LIVES * self.life_s + SLACK_S


def expectation(*, dispatched_at_s: float, first_token_s: float, life_s: float, expected_tokens: float) -> Expectation:
    """An expectation within its bounds."""
    life_s = min(max(life_s, SHORTEST_LIFE_S), LONGEST_LIFE_S)
    return Expectation(dispatched_at_s, min(max(first_token_s, 0.0), life_s), life_s, max(0.0, expected_tokens))


class LifeRatio:
    """Mean of the seconds that observed requests took, of those foretold; 1 before the first."""

    def __init__(self) -> None:
        self._mean = 1.0
        self._seen = 0

    @property
    def value(self) -> float:
        """The mean."""
        return self._mean

    def note(self, ratio: float) -> None:
        """An observed request took so many times what was foretold; one beyond the bounds counts as the bound."""
        self._seen += 1
        ratio = min(max(ratio, LEAST_RATIO), LARGEST_RATIO)
        self._mean += max(1.0 / self._seen, RATE) * (ratio - self._mean)


class Surplus:
    """How many requests more are counted on one instance than its engine has, by its last ``WINDOW`` reports."""

    def __init__(self) -> None:
        self._seen: deque[int] = deque(maxlen=WINDOW)

    def note(self, *, counted: int, in_engine: int) -> None:
        """The engine reports so many, running and waiting, while so many are counted."""
        self._seen.append(counted - in_engine)

    @property
    def requests(self) -> int:
        """So many are over; 0 until enough reports are there."""
        return max(0, min(self._seen)) if len(self._seen) == WINDOW else 0

    def ended(self, requests: int) -> None:
        """So many were taken out of the count."""
        for place, seen in enumerate(self._seen):
            self._seen[place] = seen - requests


@dataclass(frozen=True, slots=True)
class Engine:
    """What an engine says, and what is counted there by all routers: requests.

    ``held`` is what its last report had, running and waiting; ``surplus`` what it has lacked for ``WINDOW`` reports.
    """

    held: int
    surplus: int
    counted: int


def over(presumed: Iterable[tuple[str, Expectation]], *, now_s: float, engine: Engine | None) -> list[str]:
    """Requests of one instance that are presumed over.

    Args:
        presumed: ids and expectations of this router's own.
        now_s: the time.
        engine: what is known of the instance's engine; ``None`` where it says nothing.
    """
    ordered = sorted(presumed, key=lambda one: one[1].overdue(now_s), reverse=True)
    late = sum(1 for _, one in ordered if one.overdue(now_s) > 1.0)
    if engine is None:
        return [name for name, _ in ordered[:late]]
    kept = min(max(engine.held - (engine.counted - late), 0), late)
    ended = max(late - kept, _share(engine, len(ordered)))
    return [name for name, _ in ordered[:ended]] + [name for name, one in ordered[ended:] if one.is_lost(now_s)]


def _share(engine: Engine, own: int) -> int:
    """Of what an engine lacks, the part of a router that has so many requests there: each ends its own."""
    if engine.surplus <= 0:
        return 0
    return min(own, max(1, round(engine.surplus * own / max(engine.counted, own, 1))))

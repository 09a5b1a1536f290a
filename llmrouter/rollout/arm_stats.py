"""What is measured of one arm: sums that routers add to, request by request, and that add up over routers.

Times enter as logarithms. A ratio of geometric means is then a difference of means; and one request that took a
thousand times as long as another does not decide a comparison alone, as it would in a mean of seconds. Beside each time
stands the size of its request, because most of the spread of times is that of sizes: ``sequential`` takes it out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

LEAST_S, MOST_S = 1e-4, 3600.0
"""Times are clipped to these: what is shorter is a clock's grain, what is longer has no end."""


@dataclass(slots=True)
class Moments:
    """Sums over measured requests: y is the logarithm of seconds, x that of one more than the tokens beside it."""

    count: int = 0
    seconds: float = 0.0
    """Sum of the (clipped) seconds themselves, for people."""
    y: float = 0.0
    yy: float = 0.0
    x: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def add(self, seconds: float, tokens: float) -> None:
        """Counts a request that took ``seconds`` and has the size of ``tokens``."""
        clipped = min(max(seconds, LEAST_S), MOST_S)
        y, x = math.log(clipped), math.log1p(max(tokens, 0.0))
        self.count += 1
        self.seconds += clipped
        self.y += y
        self.yy += y * y
        self.x += x
        self.xx += x * x
        self.xy += x * y

    def add_all(self, other: Moments) -> None:
        """Counts what another has counted."""
        self.count += other.count
        self.seconds += other.seconds
        self.y += other.y
        self.yy += other.yy
        self.x += other.x
        self.xx += other.xx
        self.xy += other.xy

    @property
    def mean_s(self) -> float | None:
        """Mean seconds; ``None`` before the first request."""
        return self.seconds / self.count if self.count else None


@dataclass(slots=True)
class ArmStats:
    """One arm since its trial began.

    ``requests`` were decided for; of them ``finished`` ended well and ``errors`` did not (the instance failed, or no
    place was found in time: what a client ended itself is neither). The times to first token of those that still
    wait for one, or whose client went away first, are at least what they have waited so far: ``waiting``.
    """

    requests: int = 0
    finished: int = 0
    errors: int = 0
    waiting: int = 0
    ttft: Moments = field(default_factory=Moments)
    tpot: Moments = field(default_factory=Moments)
    e2e: Moments = field(default_factory=Moments)

    def began(self) -> None:
        """This arm decides for one more request."""
        self.requests += 1

    def first_token(self, ttft_s: float, *, prompt_tokens: int) -> None:
        """A request of this arm has its first token, ``ttft_s`` after it arrived."""
        self.ttft.add(ttft_s, prompt_tokens)

    def ended_well(self, *, e2e_s: float | None, tpot_s: float | None, output_tokens: int) -> None:
        """A request of this arm has its last token; times that are not known are ``None``."""
        self.finished += 1
        if e2e_s is not None:
            self.e2e.add(e2e_s, output_tokens)
        if tpot_s is not None:
            self.tpot.add(tpot_s, output_tokens)

    def failed(self) -> None:
        """A request of this arm failed, and not by its client's will."""
        self.errors += 1

    def left_waiting(self, waited_s: float, *, prompt_tokens: int) -> None:
        """A client went away before the first token, after ``waited_s``: it would have come later than that."""
        self.waiting += 1
        self.ttft.add(waited_s, prompt_tokens)

    def add_all(self, other: ArmStats) -> None:
        """Counts what another has counted of the same arm of the same trial."""
        self.requests += other.requests
        self.finished += other.finished
        self.errors += other.errors
        self.waiting += other.waiting
        self.ttft.add_all(other.ttft)
        self.tpot.add_all(other.tpot)
        self.e2e.add_all(other.e2e)


def merged(arms: Iterable[ArmStats]) -> ArmStats:
    """One arm as several routers measured it."""
    total = ArmStats()
    for one in arms:
        total.add_all(one)
    return total


def with_open(arm: ArmStats, waits: Iterable[tuple[float, int]], *, late_after_s: float) -> ArmStats:
    """The arm with its requests that still wait for their first token, as they are at this instant: a new value.

    Without them a candidate whose requests never get one would look as if it had none. Only those that have waited
    longer than ``late_after_s`` count: the others say nothing yet. It has to be the same for both arms:
    ``late_after_s(...)`` of both.

    Args:
        arm: what has been measured.
        waits: seconds since arrival and prompt tokens of each open request without a first token.
        late_after_s: a wait that is long, by what both arms measured.
    """
    total = merged([arm])
    for waited_s, prompt_tokens in waits:
        if waited_s > late_after_s:
            total.left_waiting(waited_s, prompt_tokens=prompt_tokens)
    return total


def late_after_s(arms: Iterable[ArmStats]) -> float:
    """The wait from which on open requests count: the mean time to first token of all arms, at least a second."""
    mean_s = merged(arms).ttft.mean_s
    return 1.0 if mean_s is None else max(mean_s, 1.0)

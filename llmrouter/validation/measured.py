"""What was measured on a real engine: runs of requests with their arrivals, lengths and latencies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WARM_UP_REQUESTS = 1
"""The first request of a run pays for lazy initialisation: it is replayed, and judged nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """One run; columns have shape (N,), in order of arrival. Seconds and tokens.

    Attributes:
        set_name: the stem of the file it stands in.
        name: of the run, as the file gives it.
        layout: which layout of file it comes from; see ``readers``.
        arrived_at_s: from the run's first request.
        ttft_s, e2e_s: from arrival.
        session: the user whose turns share a growing prompt; -1 throughout where unknown.
        measured: false where a request has no believable latencies: it is replayed for the load it made, no more.
    """

    set_name: str
    name: str
    layout: str
    arrived_at_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    ttft_s: NDArray[np.float64]
    e2e_s: NDArray[np.float64]
    session: NDArray[np.int64]
    measured: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.arrived_at_s)

    @property
    def judged(self) -> NDArray[np.bool_]:
        """Which requests count: the measured ones but the warm-up."""
        return self.measured & (np.arange(len(self)) >= (WARM_UP_REQUESTS if len(self) > WARM_UP_REQUESTS else 0))

    def half(self, *, second: bool) -> MeasuredRun:
        """The same run of which only the first or the second half of the requests is measured."""
        late = np.arange(len(self)) >= len(self) // 2
        return replace(self, measured=self.measured & (late if second else ~late))

    @property
    def rate_rps(self) -> float:
        """Arrivals per second; NaN where all arrive at once."""
        duration_s = float(self.arrived_at_s[-1])
        return (len(self) - 1) / duration_s if duration_s > 0 else float("nan")

    @property
    def tpot_s(self) -> NDArray[np.float64]:
        """Mean time between tokens; NaN where the answer is one token."""
        return time_per_output_token(self.ttft_s, self.e2e_s, self.output_tokens)


def time_per_output_token(
    ttft_s: NDArray[np.float64], e2e_s: NDArray[np.float64], output_tokens: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(e2e − ttft)/(output − 1), in the shape of the first two; NaN below two tokens."""
    gaps = np.where(output_tokens > 1, output_tokens - 1, np.nan)
    return np.asarray((e2e_s - ttft_s) / gaps)


BACKLOG_FACTOR = 2.0
BACKLOG_S = 0.5
TAIL_REQUESTS = 6


def below_saturation(run: MeasuredRun) -> bool:
    """Whether the run's queue did not grow, from the measured times alone.

    The last third of the requests is held against the first third. The run is saturated where the median wait for the
    first token more than doubled (``BACKLOG_FACTOR``) and grew by ``BACKLOG_S``, or the median time per token after it
    more than doubled; also where the median wait of the whole run is longer than half its median E2E, so that a run
    full from its start is not below. Runs of fewer than ``TAIL_REQUESTS`` requests say nothing and count as below.
    """
    judged = run.judged
    ttft_s, e2e_s, tpot_s = run.ttft_s[judged], run.e2e_s[judged], run.tpot_s[judged]
    if len(ttft_s) < TAIL_REQUESTS:
        return True
    third = len(ttft_s) // 3
    first_s, last_s = float(np.median(ttft_s[:third])), float(np.median(ttft_s[-third:]))
    if last_s > BACKLOG_FACTOR * first_s and last_s > first_s + BACKLOG_S:
        return False
    first_gap_s, last_gap_s = _median(tpot_s[:third]), _median(tpot_s[-third:])
    if last_gap_s > BACKLOG_FACTOR * first_gap_s:
        return False
    return float(np.median(ttft_s)) <= float(np.median(e2e_s)) / 2


def _median(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")

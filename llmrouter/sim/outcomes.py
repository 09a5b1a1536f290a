"""What came of a run, as columns: every figure is computed from these."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrouter.sim.workload import Workload


class Status(IntEnum):
    """How a request ended.

    ``REFUSED``: no instance serves it, or the one that was chosen can never hold it. ``SHED``: held too long, or too
    many held. ``UNFINISHED``: still held when nothing more was to come. ``LOST``: an instance went with it.
    """

    UNFINISHED = 0
    FINISHED = 1
    SHED = 2
    REFUSED = 3
    CANCELLED = 4
    LOST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Samples of every instance: ``at_s`` has shape (T,), the others (T, I), ``held`` (T,)."""

    at_s: NDArray[np.float64]
    running: NDArray[np.int64]
    waiting: NDArray[np.int64]
    kv_usage_fraction: NDArray[np.float64]
    held: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Columns of shape (N,) in the workload's order; times are NaN and ``instance`` -1 where it never came to that.

    Attributes:
        arrived_at_s: when the request reached its router (a later turn: after the answer before it).
        dispatched_at_s: when it was committed to its instance.
        first_token_at_s, finished_at_s: at the engine.
        preemptions: how often it lost its KV.
        recomputed_tokens: KV tokens it lost by that.
        cached_tokens: prompt tokens it did not compute when it was first admitted, thanks to the prefix cache.
        decode_instance: where it decoded, if prefill and decode are disaggregated; else ``instance``.
        engine_busy_s: shape (I,): seconds each engine spent in steps.
    """

    workload: Workload
    status: NDArray[np.int64]
    instance: NDArray[np.int64]
    decode_instance: NDArray[np.int64]
    arrived_at_s: NDArray[np.float64]
    dispatched_at_s: NDArray[np.float64]
    first_token_at_s: NDArray[np.float64]
    finished_at_s: NDArray[np.float64]
    preemptions: NDArray[np.int64]
    recomputed_tokens: NDArray[np.int64]
    cached_tokens: NDArray[np.int64]
    engine_busy_s: NDArray[np.float64]
    timeline: Timeline | None = None

    @property
    def finished(self) -> NDArray[np.bool_]:
        """Which requests were answered in full."""
        return np.equal(self.status, Status.FINISHED)

    @property
    def wait_s(self) -> NDArray[np.float64]:
        """Arrival to dispatch: the time held at the router."""
        return self.dispatched_at_s - self.arrived_at_s

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        """Arrival to first token."""
        return self.first_token_at_s - self.arrived_at_s

    @property
    def e2e_s(self) -> NDArray[np.float64]:
        """Arrival to last token."""
        return self.finished_at_s - self.arrived_at_s

    @property
    def tpot_s(self) -> NDArray[np.float64]:
        """Mean time between tokens; NaN where there is only one."""
        tokens = self.workload.output_tokens.astype(np.float64)
        gaps = np.where(tokens > 1, tokens - 1, np.nan)
        return (self.finished_at_s - self.first_token_at_s) / gaps

    @property
    def makespan_s(self) -> float:
        """First arrival to last finish; NaN where nothing was finished."""
        if not self.finished.any():
            return float("nan")
        return float(np.nanmax(self.finished_at_s) - np.nanmin(self.arrived_at_s))

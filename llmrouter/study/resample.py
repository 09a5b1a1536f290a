"""Many runs from one recorded trace: each seed draws its own sequence of the trace's minutes, or its own window."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.arrivals import transform

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrouter.sim.workload import Workload

BLOCK_S = 60.0
"""Length of a resampled block on the trace's own clock: bursts within it stay as they were recorded."""


def resampled(trace: Workload, rate_rps: float, count: int, seed: int) -> Workload:
    """``count`` requests of the trace at a mean rate, different for every seed.

    A moving-block bootstrap (Künsch 1989): blocks of ``BLOCK_S`` recorded seconds that begin anywhere, the trace taken
    as a ring, one after the other until there are enough requests. Unlike overlapping windows of one trace, such runs
    are independent given the trace, which is what an interval over seeds assumes. Where requests depend on each other
    (sessions, shared prefixes) their order must stay: then it is one window of the trace that begins anywhere, whole
    sessions, or all of it where ``count`` is not less. Times are scaled so that N requests take N / rate seconds;
    sessions that each have a clock of their own start as a Poisson process.
    """
    rng = np.random.default_rng((seed, 0x7265))
    if not depends_on_order(trace):
        chosen = _blocks(trace, count, rng)
    elif count < len(trace):
        chosen = transform.take(trace, _window_rows(trace, count, rng))
    else:
        chosen = trace
    return at_rate(chosen, rate_rps, rng)


def depends_on_order(trace: Workload) -> bool:
    """Whether requests follow one another or share prefixes, so that they cannot be shuffled."""
    return bool((trace.after >= 0).any()) or trace.prefix_block_tokens > 0


def at_rate(workload: Workload, rate_rps: float, rng: np.random.Generator) -> Workload:
    """Moved to begin at 0, all gaps then stretched alike so that N requests take N / rate seconds.

    Sessions that all begin at one instant, each with a clock of its own, start as a Poisson process instead.
    """
    firsts_N = workload.after < 0
    begins_s = float(workload.arrived_at_s[firsts_N].min())
    last_s = float(workload.arrived_at_s[firsts_N].max()) - begins_s
    if last_s > 0:
        factor = len(workload) / rate_rps / last_s
        return replace(workload, arrived_at_s=np.maximum(workload.arrived_at_s - begins_s, 0.0) * factor)
    return transform.with_starts(workload, rate_rps * int(firsts_N.sum()) / len(workload), rng)


def _blocks(trace: Workload, count: int, rng: np.random.Generator) -> Workload:
    at_s = trace.arrived_at_s - trace.arrived_at_s[0]
    ring_s = float(at_s[-1]) * (1.0 + 1.0 / max(len(trace) - 1, 1)) or 1.0
    block_s = min(BLOCK_S, ring_s)
    rows: list[NDArray[np.int64]] = []
    times: list[NDArray[np.float64]] = []
    found, begun_s = 0, 0.0
    while found < count:
        offset_N = (at_s - rng.uniform(0.0, ring_s)) % ring_s
        inside = np.flatnonzero(offset_N < block_s)
        inside = inside[np.argsort(offset_N[inside], kind="stable")]
        rows.append(inside)
        times.append(begun_s + offset_N[inside])
        found += len(inside)
        begun_s += block_s
    timeless = replace(trace, arrived_at_s=np.zeros(len(trace)))
    chosen = transform.take(timeless, np.concatenate(rows)[:count])
    return replace(chosen, arrived_at_s=np.concatenate(times)[:count])


def _window_rows(trace: Workload, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of sessions that begin one after the other, whole, until there are at least ``count``."""
    root_N = transform.first_turns(trace)
    roots, sizes = np.unique(root_N, return_counts=True)
    starts = int((np.cumsum(sizes[::-1])[::-1] >= count).sum())
    start = int(rng.integers(0, starts))
    stop = start + int(np.searchsorted(np.cumsum(sizes[start:]), count))
    return np.flatnonzero((root_N >= roots[start]) & (root_N <= roots[stop]))

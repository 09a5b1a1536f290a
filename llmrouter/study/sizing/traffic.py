"""What a recorded trace asks for: its busiest minutes, as a plan takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.arrivals.transform import scaled_to, take, window
from llmrouter.errors import InvalidInputError
from llmrouter.planning.demand import demand_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrouter.planning.demand import ModelDemand
    from llmrouter.sim.workload import Workload

BUSIEST_S = 300.0
"""What is planned for: the five minutes with the most tokens."""

LEAST_REQUESTS = 20
LEAST_SECONDS = 10
_DECODE_WEIGHT = 4.0
"""Of an output token, as of so many prompt tokens, where the busiest minutes are looked for."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The requests that are planned for, and the demand that they make, by model."""

    requests: Workload
    demands: tuple[ModelDemand, ...]

    @property
    def rate_rps(self) -> float:
        """Requests a second."""
        return sum(one.requests_per_s for one in self.demands)


def asked_of(trace: Workload, *, rate_rps: float | None, cached_fraction: float, longest_tokens: int) -> Asked:
    """The busiest minutes of a trace, at a rate of one's own where that is given.

    ``longest_tokens`` is the most that any engine can hold: longer requests are left out, as an engine refuses them.

    Raises:
        InvalidInputError: too few requests.
    """
    fits = np.nonzero(trace.prompt_tokens + trace.output_tokens <= longest_tokens)[0]
    if len(fits) < LEAST_REQUESTS:
        raise InvalidInputError(f"the trace has {len(fits)} requests that fit an engine: {LEAST_REQUESTS} are needed")
    requests = _busiest(trace if len(fits) == len(trace) else take(_apart(trace), fits))
    if rate_rps is not None:
        requests = scaled_to(requests, rate_rps)
    demands = [
        _demand(requests, place, name, cached_fraction=cached_fraction) for place, name in enumerate(requests.models)
    ]
    return Asked(requests, tuple(one for one in demands if one is not None))


def _apart(trace: Workload) -> Workload:
    """The trace with the turns of its sessions as requests of their own; those that follow at think times cannot."""
    if (trace.after >= 0).any():
        raise InvalidInputError("the trace has sessions with requests that no engine can hold: choose larger engines")
    return trace


def _busiest(requests: Workload) -> Workload:
    """The window of ``BUSIEST_S`` with the most tokens; all of a shorter trace."""
    at_N = requests.arrived_at_s
    if requests.duration_s <= BUSIEST_S:
        return requests
    work_N = requests.prompt_tokens + _DECODE_WEIGHT * requests.output_tokens
    sums_N = np.concatenate(([0.0], np.cumsum(work_N)))
    starts_S = np.arange(0.0, max(requests.duration_s - BUSIEST_S, 0.0) + 1.0, BUSIEST_S / 10)
    first_S, last_S = np.searchsorted(at_N, starts_S), np.searchsorted(at_N, starts_S + BUSIEST_S)
    best = int(np.argmax(sums_N[last_S] - sums_N[first_S]))
    return window(requests, float(starts_S[best]), BUSIEST_S)


def _demand(requests: Workload, place: int, name: str, *, cached_fraction: float) -> ModelDemand | None:
    rows_N = requests.model == place
    if rows_N.sum() < 2:  # noqa: PLR2004 - no gap, no rate
        return None
    at_N, prompt_N = requests.arrived_at_s[rows_N], requests.prompt_tokens[rows_N].astype(float)
    span_s = float(requests.arrived_at_s[-1] - requests.arrived_at_s[0])
    if span_s <= 0.0:
        raise InvalidInputError("the requests of the trace all arrive at once: say how many a second with --rate")
    return demand_of(
        name,
        prompt_N,
        requests.output_tokens[rows_N],
        requests_per_s=len(at_N) / span_s,
        cached_tokens=np.floor(cached_fraction * prompt_N),
        dispersion=_dispersion(at_N, first_s=float(requests.arrived_at_s[0]), span_s=span_s),
    )


def _dispersion(at_N: NDArray[np.float64], *, first_s: float, span_s: float) -> float:
    """Variance over mean of the arrivals in whole seconds, as routers measure it; Poisson's where there are few."""
    seconds = int(span_s)
    if seconds < LEAST_SECONDS:
        return 1.0
    counts_S = np.bincount((at_N - first_s).astype(np.int64), minlength=seconds)[:seconds]
    return float(counts_S.var() / max(counts_S.mean(), 1e-12))

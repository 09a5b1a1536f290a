"""C of any engines under any traffic: what studies publish beside their results and scale their loads to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmrouter.arrivals.transform import take
from llmrouter.errors import InvalidInputError
from llmrouter.sim.capacity import capacity_rps

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.sim.setup import Setup
    from llmrouter.sim.workload import Workload

CAPACITY_REQUESTS = 40_000
"""Length of the run by which C is found."""

CAPACITY_SEED = 0
"""Capacity is of the traffic, not of one run: it is found on the same requests for every seed."""

CAPACITY_TOLERANCE = 0.005


def capacity_of(setup: Setup, long_run_at: Callable[[float], Workload]) -> float:
    """The highest rate at which round-robin keeps its mean TTFT below 1 s to the end of a long run.

    Requests that no engine can ever hold are left out of the runs; the rate counts them, for they arrive.

    Raises:
        InvalidInputError: no engine can hold any request, or nothing is sustained.
    """
    try:
        return capacity_rps(
            setup, lambda rate_rps: servable(setup, long_run_at(rate_rps)), tolerance=CAPACITY_TOLERANCE
        )
    except InvalidInputError as error:
        raise InvalidInputError(
            f"these engines have no capacity C under this traffic: {error}. C asks for a mean TTFT below 1 s; where "
            "prompts take longer than that alone, loads have no meaning (llmrouter simulate takes a --rate)"
        ) from error


def servable(setup: Setup, workload: Workload) -> Workload:
    """The requests that some engine can hold; of a session those before the first that none can.

    Raises:
        InvalidInputError: there is none.
    """
    most_tokens = max(engine.max_request_tokens for engine in setup.engines)
    fits_N = workload.prompt_tokens + workload.output_tokens <= most_tokens
    if fits_N.all():
        return workload
    for row in np.flatnonzero(workload.after >= 0).tolist():
        fits_N[row] &= fits_N[workload.after[row]]
    if not fits_N.any():
        raise InvalidInputError(f"no engine can hold any request: the largest has room for {most_tokens} tokens")
    return take(workload, np.flatnonzero(fits_N))

"""The requests of one simulated run: a recorded file as it is, a cell's, or Poisson arrivals of given lengths."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.arrivals import cells as arrivals_cells
from llmrouter.arrivals.laws import LengthClass, SyntheticLaw
from llmrouter.arrivals.transform import take
from llmrouter.errors import InvalidInputError
from llmrouter.study.capacity import CAPACITY_SEED
from llmrouter.study.cells import KINDS, bucket_accuracies
from llmrouter.study.predictors import Predictor, usual_predictor
from llmrouter.study.resample import at_rate, resampled
from llmrouter.study.traces import load_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmrouter.sim.workload import Workload

MAX_REQUESTS = 20_000_000
MAX_LENGTH = 10_000_000
HISTORY_REQUESTS = 20_000
POISSON_REQUESTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests that can be sent at any rate.

    Attributes:
        name: for people.
        at: a rate to the run's requests at it.
        long_at: a rate and a count to a long run of the same kind, by which capacity is found.
        history: what predictors may learn from.
        predictor: who predicts where nobody else is asked for.
        bucket_accuracy: of the paper's classifier, by application, where it is known.
        own_rate_rps: the rate it was recorded at; ``None`` where it has none.
        notes: what a reader should know.
    """

    name: str
    at: Callable[[float], Workload]
    long_at: Callable[[float, int], Workload]
    history: Workload
    predictor: Predictor = Predictor.TASK_MEAN
    bucket_accuracy: Mapping[str, float] = field(default_factory=dict)
    own_rate_rps: float | None = None
    notes: tuple[str, ...] = ()


def of_cell(name: str, *, requests: int | None, seed: int, cv: float) -> Traffic:
    """The traffic of a cell of the protocol; raises InvalidInputError if there is none of this name."""
    cell = arrivals_cells.cell(name)
    count = _checked(requests) or cell.requests
    if not cell.classes:
        trace = cell.history()
        if cv != 1.0:
            raise InvalidInputError(f"--cv changes generated arrivals; those of {name} are recorded")
        return Traffic(
            name=name,
            at=lambda rate_rps: resampled(trace, rate_rps, count, seed),
            long_at=lambda rate_rps, many: resampled(trace, rate_rps, many, CAPACITY_SEED),
            history=trace,
        )
    return Traffic(
        name=name,
        at=lambda rate_rps: cell.workload(rate_rps, count, seed, cv=cv),
        long_at=lambda rate_rps, many: cell.workload(rate_rps, many, CAPACITY_SEED, cv=cv),
        history=cell.history(),
        predictor=KINDS[name].predictor,
        bucket_accuracy=bucket_accuracies(cell),
    )


def of_trace(path: str, trace_format: str, *, skip_bad: bool, requests: int | None, seed: int) -> Traffic:
    """The requests of a file, in the order and with the gaps as recorded; the first ``requests`` of them."""
    trace, skipped = load_trace(path, trace_format, skip_bad=skip_bad)
    count = _checked(requests)
    if count is not None and count < len(trace):
        trace = take(trace, np.arange(count))
    own_rps = trace.rate_rps if trace.arrived_at_s.any() else None
    rng = np.random.default_rng(seed)
    return Traffic(
        name=trace.name,
        at=lambda rate_rps: trace if rate_rps == own_rps else at_rate(trace, rate_rps, rng),
        long_at=lambda rate_rps, many: resampled(trace, rate_rps, many, CAPACITY_SEED),
        history=trace,
        predictor=usual_predictor(trace),
        own_rate_rps=own_rps,
        notes=(f"lines of the trace left out: {skipped}",) if skipped.total else (),
    )


def of_poisson(prompt: str, output: str, *, requests: int | None, seed: int, cv: float) -> Traffic:
    """Generated arrivals; lengths are log-normal, ``MEAN`` or ``MEAN:SIGMA`` (0: all alike), σ of the logarithm."""
    count = _checked(requests) or POISSON_REQUESTS
    prompt_mu, prompt_sigma = _log_normal("--prompt-tokens", prompt)
    output_mu, output_sigma = _log_normal("--output-tokens", output)
    one = LengthClass(
        name="",
        weight=1.0,
        prompt_mu=prompt_mu,
        prompt_sigma=prompt_sigma,
        output_mu=output_mu,
        output_sigma=output_sigma,
    )
    law = SyntheticLaw(classes=(one,), prompt_clip=(1, MAX_LENGTH), output_clip=(1, MAX_LENGTH))
    return Traffic(
        name=f"poisson {prompt}/{output}",
        at=lambda rate_rps: law.workload(rate_rps, count, seed, cv=cv),
        long_at=lambda rate_rps, many: law.workload(rate_rps, many, CAPACITY_SEED, cv=cv),
        history=law.workload(1.0, HISTORY_REQUESTS, arrivals_cells.HISTORY_SEED),
    )


def as_model(workload: Workload, model: str) -> Workload:
    """The same requests, all for one model."""
    return replace(workload, model=np.zeros(len(workload), np.int64), models=(model,))


def _checked(requests: int | None) -> int | None:
    if requests is not None and not 1 <= requests <= MAX_REQUESTS:
        raise InvalidInputError(f"--requests must be 1 to {MAX_REQUESTS}, not {requests}")
    return requests


def _log_normal(option: str, text: str) -> tuple[float, float]:
    """μ and σ of the logarithm, from a mean and σ."""
    mean_text, _, sigma_text = text.partition(":")
    try:
        mean, sigma = float(mean_text), float(sigma_text or 0.0)
    except ValueError:
        mean, sigma = math.nan, math.nan
    if not (1 <= mean <= MAX_LENGTH and 0 <= sigma <= 5):  # noqa: PLR2004 - said here
        raise InvalidInputError(f"{option} must be MEAN or MEAN:SIGMA, 1 to {MAX_LENGTH} and 0 to 5, not {text!r}")
    return math.log(mean) - sigma**2 / 2, sigma

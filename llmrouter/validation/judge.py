"""A replay against its measurement: signed errors as fractions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.validation.measured import below_saturation, time_per_output_token

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrouter.validation.engines import MeasuredEngine
    from llmrouter.validation.measured import MeasuredRun
    from llmrouter.validation.replay import Replay

FIGURES = ("ttft_p50", "ttft_mean", "ttft_p99", "tpot_mean", "e2e_mean", "e2e_p99", "makespan")
"""What is compared; an error carries the figure's name and ``_err``."""


SECOND_HALF = "the only run of its engine: fitted on the first half of its requests, judged on the second"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One run, judged. ``errors``: simulated/measured − 1 by figure, ``None`` where not measurable or not judged."""

    run: MeasuredRun
    engine: MeasuredEngine | None
    below_saturation: bool
    errors: dict[str, float | None]
    replay: Replay | None = None
    note: str | None = None

    @property
    def seen(self) -> bool:
        """Whether the engine was fitted on this very run."""
        return self.engine is not None and self.run.name in self.engine.fitted_on


def figures(
    ttft_s: NDArray[np.float64],
    e2e_s: NDArray[np.float64],
    output_tokens: NDArray[np.int64],
    arrived_at_s: NDArray[np.float64],
) -> dict[str, float]:
    """The compared figures of requests, pooled over draws: times of shape (S, N), the rest (N,); NaN where unknown."""
    tpot_s = time_per_output_token(ttft_s, e2e_s, output_tokens)
    makespan_s = (e2e_s + arrived_at_s).max(axis=1).mean()
    return {
        "ttft_p50": float(np.median(ttft_s)),
        "ttft_mean": float(ttft_s.mean()),
        "ttft_p99": float(np.quantile(ttft_s, 0.99)),
        "tpot_mean": float(np.nanmean(tpot_s)) if (output_tokens > 1).any() else math.nan,
        "e2e_mean": float(e2e_s.mean()),
        "e2e_p99": float(np.quantile(e2e_s, 0.99)),
        "makespan": float(makespan_s),
    }


def compare(run: MeasuredRun, replayed: Replay) -> dict[str, float | None]:
    """Errors of a replay by figure."""
    keep = run.judged
    output, arrived = run.output_tokens[keep], run.arrived_at_s[keep]
    measured = figures(run.ttft_s[None, keep], run.e2e_s[None, keep], output, arrived)
    simulated = figures(replayed.ttft_s[:, keep], replayed.e2e_s[:, keep], output, arrived)
    return {name: _relative(simulated[name], measured[name]) for name in FIGURES}


def judge(run: MeasuredRun, engine: MeasuredEngine, replayed: Replay, *, second_half: bool = False) -> Verdict:
    """The verdict over one run, or over its second half where the engine was fitted on the first."""
    errors = compare(run.half(second=True) if second_half else run, replayed)
    below = below_saturation(run)
    note = SECOND_HALF if second_half else None
    if engine.unjudged is not None and not below:
        note = engine.unjudged
        errors.update({name: None for name in FIGURES if name.startswith(("ttft", "e2e"))})
    return Verdict(run=run, engine=engine, below_saturation=below, errors=errors, replay=replayed, note=note)


def cannot_judge(run: MeasuredRun) -> str | None:
    """Why nothing can be said of a run at all, if so."""
    return None if run.judged.any() else "no request of this run has measured latencies"


def unjudged(run: MeasuredRun, reason: str, engine: MeasuredEngine | None = None) -> Verdict:
    """A run that could not be judged, and why."""
    nothing: dict[str, float | None] = dict.fromkeys(FIGURES)
    return Verdict(run=run, engine=engine, below_saturation=below_saturation(run), errors=nothing, note=reason)


def _relative(simulated: float, measured: float) -> float | None:
    if not (math.isfinite(simulated) and math.isfinite(measured) and measured > 0):
        return None
    return simulated / measured - 1

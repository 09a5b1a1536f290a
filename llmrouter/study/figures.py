"""Every figure of a run, computed from its outcomes: always together, so that no gain hides a loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.sim.outcomes import Status

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrouter.sim.outcomes import Outcomes

WARM_UP_FRACTION = 0.2
"""Share of the requests, first by arrival, that are not measured in a run below capacity."""

METRICS = (
    *("e2e_mean_s", "e2e_p50_s", "e2e_p95_s", "e2e_p99_s"),
    *("ttft_mean_s", "ttft_p50_s", "ttft_p99_s", "tpot_mean_s", "tpot_p95_s"),
    *("slowdown_mean", "makespan_s", "preemptions", "recomputed_tokens", "router_wait_mean_s", "largest_share"),
    *("slo_attainment", "goodput_rps", "shed_rate"),
)
"""Names of the figures, in the order of every table."""

HIGHER_IS_BETTER = frozenset({"slo_attainment", "goodput_rps", "slo_capacity_rps"})

SAMPLED = ("e2e_s", "ttft_s", "tpot_s")
QUANTILES_Q = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, slots=True)
class Slo:
    """A request meets it with its first token and its mean time between tokens both in time."""

    ttft_s: float = 1.0
    tpot_s: float = 0.05


def change_name(metric: str) -> str:
    """``e2e_mean_s`` → ``e2e_mean_pct``: the name of a metric's change in percent."""
    return f"{metric.removesuffix('_s')}_pct"


def measured(outcomes: Outcomes, warm_up_fraction: float) -> NDArray[np.bool_]:
    """Which requests count: all but the first ``warm_up_fraction`` by arrival, and none that its client gave up."""
    count = len(outcomes.status)
    place_N = np.empty(count, dtype=np.int64)
    place_N[np.argsort(outcomes.arrived_at_s, kind="stable")] = np.arange(count)
    counts_N: NDArray[np.bool_] = (place_N >= int(warm_up_fraction * count)) & (outcomes.status != Status.CANCELLED)
    return counts_N


def figures(
    outcomes: Outcomes, *, lone_s: NDArray[np.float64], warm_up_fraction: float, slo: Slo
) -> dict[str, float | None]:
    """All of ``METRICS``; ``None`` where a figure has no request to speak of.

    Latencies are over measured requests that finished; the makespan is of the whole run. Slowdown is E2E over
    ``lone_s``, shape (N,): the time the request would take alone. The largest share is that of the measured prompt and
    output tokens which the busiest instance got. SLO attainment counts a request that was shed or refused as missed;
    goodput is the requests within their SLO per second of arrivals.
    """
    counts_N = measured(outcomes, warm_up_fraction)
    done_N = counts_N & outcomes.finished
    e2e_s, ttft_s, tpot_s = outcomes.e2e_s[done_N], outcomes.ttft_s[done_N], outcomes.tpot_s[done_N]
    tpot_s = tpot_s[np.isfinite(tpot_s)]
    good = int(meets(outcomes, slo)[done_N].sum())
    total = int(counts_N.sum())
    shed_N = np.isin(outcomes.status, (Status.SHED, Status.REFUSED))
    return {
        "e2e_mean_s": _mean(e2e_s),
        "e2e_p50_s": _percentile(e2e_s, 50),
        "e2e_p95_s": _percentile(e2e_s, 95),
        "e2e_p99_s": _percentile(e2e_s, 99),
        "ttft_mean_s": _mean(ttft_s),
        "ttft_p50_s": _percentile(ttft_s, 50),
        "ttft_p99_s": _percentile(ttft_s, 99),
        "tpot_mean_s": _mean(tpot_s),
        "tpot_p95_s": _percentile(tpot_s, 95),
        "slowdown_mean": _mean(e2e_s / lone_s[done_N]),
        "makespan_s": outcomes.makespan_s if outcomes.finished.any() else None,
        "preemptions": float(outcomes.preemptions[counts_N].sum()),
        "recomputed_tokens": float(outcomes.recomputed_tokens[counts_N].sum()),
        "router_wait_mean_s": _mean(outcomes.wait_s[done_N]),
        "largest_share": _largest_share(outcomes, counts_N),
        "slo_attainment": good / total if total else None,
        "goodput_rps": _per_second(good, outcomes.arrived_at_s[counts_N]),
        "shed_rate": float((shed_N & counts_N).sum()) / total if total else None,
    }


def samples(outcomes: Outcomes, warm_up_fraction: float) -> dict[str, list[float] | None]:
    """For each of ``SAMPLED`` its quantiles 0, 1, … 100 % over measured requests that finished."""
    done_N = measured(outcomes, warm_up_fraction) & outcomes.finished
    found: dict[str, list[float] | None] = {}
    for name in SAMPLED:
        values = getattr(outcomes, name)[done_N]
        values = values[np.isfinite(values)]
        found[name] = np.quantile(values, QUANTILES_Q).tolist() if len(values) else None
    return found


def counts(outcomes: Outcomes) -> dict[str, int]:
    """How many requests of the whole run ended in each way, by the name of the status in lower case."""
    return {status.name.lower(): int((outcomes.status == status).sum()) for status in Status}


def meets(outcomes: Outcomes, slo: Slo) -> NDArray[np.bool_]:
    """Which requests meet the SLO; shape (N,). What got no token does not."""
    tpot_s = outcomes.tpot_s
    meets_N: NDArray[np.bool_] = (outcomes.ttft_s <= slo.ttft_s) & (np.isnan(tpot_s) | (tpot_s <= slo.tpot_s))
    return meets_N


def _largest_share(outcomes: Outcomes, counts_N: NDArray[np.bool_]) -> float | None:
    placed_N = counts_N & (outcomes.instance >= 0)
    if not placed_N.any():
        return None
    tokens_N = (outcomes.workload.prompt_tokens + outcomes.workload.output_tokens)[placed_N]
    tokens_I = np.bincount(outcomes.instance[placed_N], weights=tokens_N)
    return float(tokens_I.max() / tokens_I.sum())


def _per_second(count: int, arrived_at_s: NDArray[np.float64]) -> float | None:
    if len(arrived_at_s) == 0:
        return None
    span_s = float(arrived_at_s.max() - arrived_at_s.min())
    return count / span_s if span_s > 0 else None


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def _percentile(values: NDArray[np.float64], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if len(values) else None

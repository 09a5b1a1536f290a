"""What every figure is called, in which unit it is written, which way is better, and what it means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from llmrouter.plots.markup import MISSING, figure


class Unit(Enum):
    """How a figure is written."""

    SECONDS = "s"
    MILLISECONDS = "ms"
    SHARE = "%"
    RATE = "/s"
    RATIO = "×"
    COUNT = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of a row. ``meaning`` is one line for those who meet it for the first time."""

    key: str
    label: str
    unit: Unit
    meaning: str
    higher_is_better: bool = False

    @property
    def change_key(self) -> str:
        """The key of its change in percent; with ``_ci95`` that of the half-width."""
        return f"{self.key.removesuffix('_s')}_pct"

    @property
    def axis(self) -> str:
        """Its label with its unit, for an axis."""
        return f"{self.label}, {self.unit.value}" if self.unit.value else self.label

    def scaled(self, value: float) -> float:
        """The figure in its unit, for an axis: milliseconds and percent count a thousand and a hundred."""
        return value * {Unit.MILLISECONDS: 1000.0, Unit.SHARE: 100.0}.get(self.unit, 1.0)

    def written(self, value: float | None) -> str:
        """The figure with its unit; a dash where it is unknown."""
        if value is None or not math.isfinite(value):
            return MISSING
        if self.unit is Unit.SHARE:
            return f"{100 * value:.1f} %"
        if self.unit is Unit.COUNT:
            return figure(value)
        text = figure(self.scaled(value))
        return f"{text}{'' if self.unit in (Unit.RATE, Unit.RATIO) else ' '}{self.unit.value}"

    def better(self, change: float) -> bool:
        """Whether a change of that sign is one for the better."""
        return (change > 0) == self.higher_is_better


E2E_MEAN = Metric("e2e_mean_s", "E2E mean", Unit.SECONDS, "arrival to last token")
E2E_P99 = Metric("e2e_p99_s", "E2E p99", Unit.SECONDS, "arrival to last token, the slowest 1 %")
TTFT_P99 = Metric("ttft_p99_s", "TTFT p99", Unit.SECONDS, "arrival to first token, the slowest 1 %")
TPOT_P95 = Metric("tpot_p95_s", "TPOT p95", Unit.MILLISECONDS, "mean time between tokens of a request, the slowest 5 %")
SLO_ATTAINMENT = Metric("slo_attainment", "SLO attainment", Unit.SHARE, "share of requests that meet their SLO", True)  # noqa: FBT003
GOODPUT = Metric("goodput_rps", "goodput", Unit.RATE, "requests within their SLO, per second", True)  # noqa: FBT003
PREEMPTIONS = Metric("preemptions", "preemptions", Unit.COUNT, "times a request lost its KV and began again")

METRICS = (
    E2E_MEAN,
    Metric("e2e_p50_s", "E2E p50", Unit.SECONDS, "arrival to last token, the median"),
    Metric("e2e_p95_s", "E2E p95", Unit.SECONDS, "arrival to last token, the slowest 5 %"),
    E2E_P99,
    Metric("ttft_mean_s", "TTFT mean", Unit.SECONDS, "arrival to first token"),
    Metric("ttft_p50_s", "TTFT p50", Unit.SECONDS, "arrival to first token, the median"),
    TTFT_P99,
    Metric("tpot_mean_s", "TPOT mean", Unit.MILLISECONDS, "mean time between tokens"),
    TPOT_P95,
    Metric("slowdown_mean", "slowdown", Unit.RATIO, "E2E over the E2E of the same request alone"),
    Metric("makespan_s", "makespan", Unit.SECONDS, "first arrival to last finish"),
    PREEMPTIONS,
    Metric("recomputed_tokens", "recomputed tokens", Unit.COUNT, "KV tokens lost by preemption"),
    Metric("router_wait_mean_s", "router wait", Unit.SECONDS, "arrival to dispatch: the time held at the router"),
    Metric("largest_share", "largest share", Unit.SHARE, "share of the tokens that the busiest instance got"),
    SLO_ATTAINMENT,
    GOODPUT,
    Metric("shed_rate", "shed", Unit.SHARE, "share of requests that were turned away"),
    Metric("slo_capacity_rps", "SLO capacity", Unit.RATE, "highest rate at which the SLOs are met", True),  # noqa: FBT003
)

HEADLINES = (E2E_MEAN, E2E_P99, TTFT_P99, TPOT_P95)
"""The figures that are shown side by side: what a gain in the first may cost in the others."""

DISTRIBUTIONS = (
    ("e2e_s", "E2E", "s", 1.0),
    ("ttft_s", "TTFT", "s", 1.0),
    ("tpot_s", "TPOT", "ms", 1000.0),
)
"""Keys of quantiles, their names, units and factors."""

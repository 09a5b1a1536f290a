"""What can be had together: policies by two figures, and the front of those that no other beats in both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.plots.charts import Axis, Spot, scatter_chart
from llmrouter.plots.markup import Markup, el
from llmrouter.plots.scales import spread
from llmrouter.study.report.data import BOUND
from llmrouter.study.report.metrics import E2E_MEAN, TPOT_P95, TTFT_P99

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.study.report.data import Point, Study
    from llmrouter.study.report.metrics import Metric

PAIRS = ((E2E_MEAN, TTFT_P99), (E2E_MEAN, TPOT_P95), (TTFT_P99, TPOT_P95))
_LOG_FROM = 6.0
_NAMED = 6


def fronts(point: Point, study: Study) -> Markup:
    """The three pairs of a cell and load, each with its front in words."""
    return el("div", *(_pair(point, study, across, up) for across, up in PAIRS), class_="charts")


def on_front(figures: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names that no other beats in one figure without losing in the other, by the first figure; less is better."""
    kept: list[str] = []
    last = (float("-inf"), float("inf"))
    for name, at in sorted(figures.items(), key=lambda item: (item[1], item[0])):
        if at[1] < last[1] or at == last:
            kept.append(name)
            last = at
    return kept


def _pair(point: Point, study: Study, across: Metric, up: Metric) -> Markup:
    figures = {
        name: (across.scaled(x), up.scaled(y))
        for name, row in point.rows.items()
        if (x := row.value(across)) is not None and (y := row.value(up)) is not None
    }
    if not figures:
        return el("p", f"{across.label} and {up.label}: not known.", class_="missing")
    front = on_front({name: at for name, at in figures.items() if study.kind(name) != BOUND})
    spots = [_spot(name, at, study, metrics=(across, up)) for name, at in figures.items()]
    logs = [spread(values) > _LOG_FROM for values in zip(*figures.values(), strict=True)]
    chart = scatter_chart(
        sorted(spots, key=lambda spot: (spot.name not in front, not spot.on)),
        title=f"{across.label} and {up.label}",
        description=f"{up.label} over {across.label} by policy, {point.name} of capacity; lower left is better.",
        x=Axis(across.axis, log=logs[0]),
        y=Axis(up.axis, log=logs[1]),
        front=[figures[name] for name in front],
    )
    return el("figure", chart, el("figcaption", el("b", "On the front: "), _named(front)))


def _named(front: list[str]) -> str:
    more = f" and {len(front) - _NAMED} more" if len(front) > _NAMED else ""
    return f"{', '.join(front[:_NAMED])}{more}."


def _spot(name: str, at: tuple[float, float], study: Study, *, metrics: tuple[Metric, Metric]) -> Spot:
    info = study.policies[name]
    told = ", ".join(
        f"{metric.label} {metric.written(value / metric.scaled(1.0))}"
        for metric, value in zip(metrics, at, strict=True)
    )
    return Spot(name, info.slot, *at, on=info.on, tip=f"{name}: {told}", solid=info.kind != BOUND)

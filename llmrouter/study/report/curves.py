"""Latency distributions of a cell and load, and how figures change with the load of a cell."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from llmrouter.plots.charts import Axis, Series, line_chart
from llmrouter.plots.markup import Markup, change, el, tick
from llmrouter.plots.scales import spread
from llmrouter.study.report.data import BASE
from llmrouter.study.report.metrics import (
    DISTRIBUTIONS,
    E2E_MEAN,
    GOODPUT,
    HEADLINES,
    PREEMPTIONS,
    SLO_ATTAINMENT,
    TPOT_P95,
    TTFT_P99,
    Unit,
)
from llmrouter.study.statistics import half_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.study.report.data import Point, PolicyInfo, Study
    from llmrouter.study.report.metrics import Metric

TAIL_TICKS = (0.0, 0.5, 0.75, 0.9, 0.95, 0.99)
LOWEST = 0.02
"""Share from which a distribution is drawn: its very fastest requests only stretch the axis."""

LOWEST_SHIFT = 0.1
"""Share from which quantiles are compared: below, a percentage is of next to nothing."""

_LEAST_LIMIT = 40.0
"""Percent: losses up to this are always within the plot."""

_LOG_FROM = 6.0
"""An axis whose figures spread by more than this factor is logarithmic."""


def tail(share: float) -> float:
    """Nines of a share: 0 at 0, 1 at 0.9, 2 at 0.99."""
    return -math.log10(1.0 - share)


def _percent_of(nines: float) -> str:
    return tick(round(100 * (1 - 10**-nines), 3))


_NINES = Axis(
    "share of requests, %", at=tuple(tail(share) for share in TAIL_TICKS), include=(0.0, 2.0), written=_percent_of
)


def distributions(point: Point, study: Study) -> Markup:
    """Distributions of E2E, TTFT and TPOT, the tail stretched: each nine of the share takes the same height."""
    if not point.quantiles:
        return el("p", "No latency samples are known here.", class_="missing")
    shifts = [_shift(point, study, about) for about in DISTRIBUTIONS]
    return el("div", *(_distribution(point, study, about) for about in DISTRIBUTIONS), *shifts, class_="charts")


def sweeps(cell: str, study: Study) -> Markup:
    """Figures against the load: changes with paired intervals, absolute figures with intervals of the mean."""
    points = study.of_cell(cell)
    if len(points) < 2:  # noqa: PLR2004 - a line has two ends
        return el("p", "One load only: there is no sweep.", class_="missing")
    relative = [_sweep(points, study, metric, relative=True) for metric in (E2E_MEAN, TTFT_P99, TPOT_P95)]
    absolute = [
        _sweep(points, study, metric, relative=False)
        for metric in (*HEADLINES, SLO_ATTAINMENT, GOODPUT, PREEMPTIONS)
        if metric in study.metrics and metric is not HEADLINES[1]
    ]
    return el("div", *relative, *absolute, class_="charts")


def _distribution(point: Point, study: Study, about: tuple[str, str, str, float]) -> Markup:
    key, name, unit, factor = about
    series = [
        _quantile_series(info, point.quantiles[policy][key], factor)
        for policy, info in study.policies.items()
        if key in point.quantiles.get(policy, {})
    ]
    if not series:
        return el("p", f"{name}: not known.", class_="missing")
    return line_chart(
        series,
        title=f"{name} distribution",
        description=f"Share of requests whose {name} is at most so long, by policy: {point.name} of capacity.",
        x=Axis(f"{name}, {unit}", log=True),
        y=_NINES,
    )


def _shift(point: Point, study: Study, about: tuple[str, str, str, float]) -> Markup | None:
    """Where in the distribution a policy gains or loses: each quantile against the base's."""
    key, name, _, _ = about
    base = point.quantiles.get(BASE, {}).get(key)
    if base is None:
        return None
    series = [
        _shift_series(info, found, base)
        for policy, info in study.policies.items()
        if policy != BASE
        and (found := point.quantiles.get(policy, {}).get(key)) is not None
        and len(found) == len(base)
    ]
    if not series:
        return None
    return line_chart(
        series,
        title=f"{name} by quantile",
        description=f"Change of every quantile of {name} against that of {BASE}: {point.name} of capacity.",
        x=replace(_NINES, name="quantile, %"),
        y=Axis(f"% against {BASE}", include=(0.0,)),
        limit=_limit(series),
    )


def _shift_series(info: PolicyInfo, quantiles: list[float], base: list[float]) -> Series:
    last = len(base) - 1
    points = tuple(
        (tail(index / last), 100 * (quantiles[index] / base[index] - 1))
        for index in range(last)
        if LOWEST_SHIFT <= index / last <= TAIL_TICKS[-1] and base[index] > 0
    )
    return Series(info.name, info.slot, points, on=info.on, markers=False, tip=info.name)


def _quantile_series(info: PolicyInfo, quantiles: list[float], factor: float) -> Series:
    last = len(quantiles) - 1
    points = tuple(
        (factor * value, tail(index / last))
        for index, value in enumerate(quantiles)
        if LOWEST <= index / last <= TAIL_TICKS[-1]
    )
    return Series(info.name, info.slot, points, on=info.on, markers=False, tip=info.name)


def _sweep(points: Sequence[Point], study: Study, metric: Metric, *, relative: bool) -> Markup:
    series = [
        found
        for name, info in study.policies.items()
        if not (relative and name == BASE) and (found := _sweep_series(points, info, metric, relative=relative))
    ]
    values = [value for one in series for _, value in one.points]
    loads = tuple(float(point.load) for point in points)
    log = not relative and metric.unit in (Unit.SECONDS, Unit.MILLISECONDS) and spread(values) > _LOG_FROM
    from_zero = (0.0,) if not log and not relative else ()
    kind = f"change against {BASE}" if relative else "mean over seeds"
    return line_chart(
        series,
        title=metric.label,
        description=f"{metric.label} ({metric.meaning}) of every policy by load: {kind}, with 95 % intervals.",
        x=Axis("load, fraction of capacity", at=loads),
        y=Axis(
            f"% against {BASE}" if relative else metric.unit.value or "count",
            log=log,
            include=(100.0,) if metric.unit is Unit.SHARE and not relative else from_zero,
        ),
        limit=_limit(series) if relative else None,
        dodge=2.5,
    )


def _limit(series: Sequence[Series]) -> tuple[float, float] | None:
    """Great losses of policies in the background leave the plot, so that the rest can be told apart."""
    values = sorted(value for one in series for _, value in one.points)
    if not values:
        return None
    ends = [end for one in series if one.on for end in (one.highs or ()) if end is not None]
    shown = [*ends, *(value for one in series if one.on for _, value in one.points)]
    low = min([end for one in series for end in (one.lows or ()) if end is not None] + values)
    cap = max([_LEAST_LIMIT, 2.0 * values[len(values) * 3 // 4], -1.2 * low, *shown])
    return (low, cap) if values[-1] > cap else None


def _sweep_series(points: Sequence[Point], info: PolicyInfo, metric: Metric, *, relative: bool) -> Series | None:
    found = []
    for point in points:
        value, half = _mean_and_half(point, info.name, metric, relative=relative)
        if value is not None:
            low, high = _ends(value, half, positive=not relative)
            written = change(value, half) if relative else metric.written(value / metric.scaled(1.0))
            found.append(
                (float(point.load), value, low, high, f"{info.name} at {point.load}: {metric.label} {written}")
            )
    if not found:
        return None
    loads, values, lows, highs, tips = zip(*found, strict=True)
    return Series(
        info.name,
        info.slot,
        tuple(zip(loads, values, strict=True)),
        lows=lows,
        highs=highs,
        on=info.on,
        tips=tips,
    )


def _ends(value: float, half: float | None, *, positive: bool) -> tuple[float | None, float | None]:
    if half is None:
        return None, None
    return (max(value - half, 0.0) if positive else value - half), value + half


def _mean_and_half(point: Point, policy: str, metric: Metric, *, relative: bool) -> tuple[float | None, float | None]:
    row = point.rows.get(policy)
    if row is None:
        return None, None
    if relative:
        return row.change(metric)
    value = row.value(metric)
    seeds = [one for one in point.per_seed.get(policy, {}).get(metric.key, []) if one is not None]
    half = half_width(seeds)
    return (
        None if value is None else metric.scaled(value),
        None if half is None else metric.scaled(half),
    )

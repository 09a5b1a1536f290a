"""Changes against the base with their intervals: a row for each policy, a column for each headline figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.plots.markup import Markup, change, el
from llmrouter.plots.scales import Linear, linear
from llmrouter.plots.strips import WHOLE, ruler, strip
from llmrouter.plots.theme import shape_of
from llmrouter.study.report.choice import by_metric
from llmrouter.study.report.data import BASE, BOUND, OURS
from llmrouter.study.report.metrics import E2E_MEAN, HEADLINES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmrouter.study.report.data import Point, Row, Study
    from llmrouter.study.report.metrics import Metric

_LEAST_HIGH = 15.0
"""Percent: an axis reaches at least so far to the side of the losses."""


def forest(point: Point, study: Study, best: str | None) -> Markup:
    """The table of a cell and load; policies from the least mean E2E to the largest."""
    rows = sorted(by_metric(point), key=_order)
    if all(row.change(metric)[0] is None for row in rows for metric in HEADLINES if row.policy != BASE):
        return el("p", f"No changes against {BASE} are known here.", class_="missing")
    scales = {metric.key: _scale(rows, metric, kept=_kept(rows, study, best)) for metric in HEADLINES}
    head = el(
        "tr",
        el("th", "policy", scope="col"),
        *(
            el(
                "th",
                el("span", metric.label),
                ruler(scales[metric.key], rows=len(rows)),
                scope="col",
                title=metric.meaning,
            )
            for metric in HEADLINES
        ),
    )
    body = [_row(row, point, study, scales=scales, best=best) for row in rows]
    caption = f"Change against {BASE} in %, with 95 % intervals: {point.cell} at {point.load} of capacity"
    return el(
        "div",
        el("table", el("caption", caption), el("thead", head), el("tbody", *body), class_="forest"),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def name_cell(name: str, study: Study, *, tags: Iterable[tuple[str, str]] = ()) -> Markup:
    """A policy's name with its colour and its tags, each a class and a word."""
    return el(
        "th",
        swatch(study.policies[name].slot),
        name,
        *(el("b", word, class_=f"tag {kind}") for kind, word in tags),
        scope="row",
    )


def swatch(slot: int) -> Markup:
    """The colour and the shape of a slot."""
    return el("i", class_=f"sw s{slot} {shape_of(slot)}")


def _row(row: Row, point: Point, study: Study, *, scales: dict[str, Linear], best: str | None) -> Markup:
    tags = [
        tag
        for tag, shown in (
            (("ref", "reference"), row.policy == BASE),
            (("best", "★ best"), row.policy == best),
            (("base", "best baseline"), row.policy == point.best_baseline),
            (("ours", "ours"), study.kind(row.policy) == OURS),
            (("bound", "bound"), study.kind(row.policy) == BOUND),
        )
        if shown
    ]
    slot = study.policies[row.policy].slot
    cells = [_cell(row, metric, scales[metric.key], slot=slot) for metric in HEADLINES]
    return el("tr", name_cell(row.policy, study, tags=tags), *cells, class_="winner" if row.policy == best else None)


def _cell(row: Row, metric: Metric, scale: Linear, *, slot: int) -> Markup:
    percent, half_width = row.change(metric)
    value = metric.written(row.value(metric))
    if row.policy == BASE:
        return el("td", el("span", value, class_="num soft"))
    if percent is None:
        return el("td", el("span", f"not known ({value})", class_="num soft"))
    text = change(percent, half_width)
    sure = half_width is not None and abs(percent) > half_width
    kind = ("good" if metric.better(percent) else "bad") if sure else "soft"
    return el(
        "td",
        strip(scale, percent, half_width=half_width, slot=slot, with_grid=False),
        el("span", text.removesuffix(" %"), class_=f"num {kind}"),
    )


def _kept(rows: Sequence[Row], study: Study, best: str | None) -> set[str]:
    """Policies whose figures may not leave the axis: ours and the best."""
    return {row.policy for row in rows if row.policy == best or study.kind(row.policy) == OURS}


def _scale(rows: Sequence[Row], metric: Metric, *, kept: set[str]) -> Linear:
    """As wide as the intervals, but great losses of a few others may not squeeze the rest: they become arrows."""
    pairs = [(row.policy, *row.change(metric)) for row in rows if row.policy != BASE]
    ends = {
        name: (percent - (half or 0.0), percent + (half or 0.0)) for name, percent, half in pairs if percent is not None
    }
    highs = sorted(high for _, high in ends.values())
    low = max(min([*(low for low, _ in ends.values()), 0.0]), -100.0)
    middle = highs[len(highs) // 2] if highs else 0.0
    shown = [high for name, (_, high) in ends.items() if name in kept]
    limit = max([_LEAST_HIGH, -1.5 * low, 2.0 * middle, *shown])
    high = min(max([*highs, 1.0]), limit)
    return linear([min(low, -1.0), high], WHOLE)


def _order(row: Row) -> tuple[int, float]:
    percent = row.change(E2E_MEAN)[0]
    if row.policy == BASE:
        return (0, 0.0)
    return (1, 0.0) if percent is None else (0, percent)

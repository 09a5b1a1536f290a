"""The full table: every figure of every policy in every setting, to be sorted and searched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.plots.markup import MISSING, Markup, change, el
from llmrouter.study.report.choice import Contrast, Verdict
from llmrouter.study.report.data import BASE
from llmrouter.study.report.forest import name_cell

if TYPE_CHECKING:
    from llmrouter.study.report.data import Row, Study
    from llmrouter.study.report.metrics import Metric


_SCROLL = {"tabindex": "0", "role": "region", "aria_label": "every figure"}


def full_table(study: Study) -> Markup:
    """All rows and all figures; below each figure its change against the base with its interval."""
    if not study.points:
        return el("p", "There are no rows.", class_="missing")
    metrics = study.metrics
    head = el(
        "tr",
        *(_head(name, name, key=name) for name in ("policy", "cell", "load")),
        *(_head(metric.label, metric.meaning, key=metric.key) for metric in metrics),
    )
    rows = [_row(row, study, metrics) for point in study.points for row in point.rows.values()]
    search = el("input", type="search", placeholder="filter: words of policy, cell, load", aria_label="filter rows")
    switch = el("label", el("input", type="checkbox", class_="with-changes", checked=True), f" changes against {BASE}")
    save = el("button", "save as CSV", type="button", class_="save")
    return el(
        "div",
        el("div", search, switch, save, el("span", class_="count soft", aria_live="polite"), class_="tools"),
        el("div", el("table", el("thead", head), el("tbody", *rows), class_="full"), class_="scroll", **_SCROLL),
        class_="sortable",
    )


def _head(name: str, meaning: str, *, key: str) -> Markup:
    return el("th", el("button", name, type="button"), scope="col", title=meaning, data_key=key)


def _row(row: Row, study: Study, metrics: tuple[Metric, ...]) -> Markup:
    return el(
        "tr",
        name_cell(row.policy, study),
        el("td", row.cell),
        el("td", row.load),
        *(_figure(row, metric) for metric in metrics),
    )


def _figure(row: Row, metric: Metric) -> Markup:
    value = row.value(metric)
    if value is None:
        return el("td", MISSING)
    percent, half_width = row.change(metric)
    below = None
    if percent is not None and row.policy != BASE:
        verdict = Contrast(percent, half_width).verdict(metric)
        kind = {Verdict.BETTER: "good", Verdict.WORSE: "bad"}.get(verdict)
        below = el("small", change(percent, half_width).removesuffix(" %"), class_=kind)
    return el("td", metric.written(value), below, data_v=f"{value:.6g}")

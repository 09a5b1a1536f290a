"""Everything at a glance: each policy in each setting, coloured by its change against the base; and who leads where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.plots.markup import MISSING, Markup, change, el, signed
from llmrouter.study.report.choice import Contrast, Verdict, best_row
from llmrouter.study.report.data import BASE
from llmrouter.study.report.forest import name_cell
from llmrouter.study.report.metrics import E2E_MEAN, HEADLINES
from llmrouter.study.report.words import of_point

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.study.report.data import Point, Study
    from llmrouter.study.report.metrics import Metric
    from llmrouter.study.report.words import Judged

_FULL = 30.0
"""Percent: a change so large has the full colour."""

_WORDS = {
    Verdict.BETTER: "default better",
    Verdict.WORSE: "baseline better",
    Verdict.UNDECIDED: "no clear difference",
    Verdict.UNKNOWN: "not known",
}


def leaders(all_judged: Sequence[Judged], study: Study) -> Markup:
    """A row for each cell and load: who leads, and the default against the best baseline in every headline figure."""
    head = el(
        "tr",
        *(el("th", name, scope="col") for name in ("cell", "load", "least mean E2E", f"against {BASE}")),
        el("th", "best baseline", scope="col"),
        *(el("th", metric.label, scope="col", title=metric.meaning) for metric in HEADLINES),
        el("th", "by mean E2E", scope="col"),
    )
    above = el(
        "tr",
        el("td", colspan=5),
        el("th", f"{study.default or 'the default'} against the best baseline, %", colspan=5, scope="colgroup"),
        class_="over",
    )
    rows = [_leader(one, study) for one in all_judged]
    table = el("table", el("thead", above, head), el("tbody", *rows), class_="grid-table leaders")
    note = "The best baseline is chosen by the same seeds, which flatters it a little. Colour: the interval excludes 0."
    return el(
        "div",
        table,
        el("p", note, class_="soft small"),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label="Who leads where",
    )


def matrix(study: Study) -> Markup:
    """Policies by settings, one figure at a time; every figure is in the page, the buttons choose which is seen."""
    buttons = [
        el(
            "button",
            metric.label,
            type="button",
            data_metric=metric.key,
            aria_pressed="true" if index == 0 else "false",
        )
        for index, metric in enumerate(HEADLINES)
    ]
    tables = [_matrix(study, metric, first=index == 0) for index, metric in enumerate(HEADLINES)]
    return el(
        "div",
        el("div", *buttons, class_="segmented", role="group", aria_label="figure"),
        *tables,
        class_="matrix",
    )


def _leader(one: Judged, study: Study) -> Markup:
    point, best = one.point, one.best
    changes = [_contrast(one.default_vs_baseline.get(metric.key), metric) for metric in HEADLINES]
    gained = change(*best.change(E2E_MEAN)) if best is not None and best.policy != BASE else MISSING
    return el(
        "tr",
        el("th", point.cell, scope="row"),
        el("td", point.load, class_="num"),
        el("td", best.policy if best else MISSING, title=of_point(one, study)),
        el("td", gained, class_="num"),
        el("td", point.best_baseline or MISSING),
        *changes,
        el("td", el("span", _WORDS[one.verdict], class_=f"verdict {one.verdict.name.lower()}")),
    )


def _contrast(found: Contrast | None, metric: Metric) -> Markup:
    if found is None or found.percent is None:
        return el("td", MISSING, class_="num soft")
    kind = {Verdict.BETTER: "good", Verdict.WORSE: "bad"}.get(found.verdict(metric), "soft")
    return el("td", change(found.percent, found.half_width).removesuffix(" %"), class_=f"num {kind}")


def _matrix(study: Study, metric: Metric, *, first: bool) -> Markup:
    points = [point for cell in study.cell_names for point in study.of_cell(cell)]
    cells = [(cell, len(study.of_cell(cell))) for cell in study.cell_names if study.of_cell(cell)]
    best = {id(point): row.policy for point in points if (row := best_row(point, study, metric)) is not None}
    head = (
        el("tr", el("td"), *(el("th", cell, colspan=count, scope="colgroup") for cell, count in cells), class_="over"),
        el("tr", el("th", "policy", scope="col"), *(el("th", point.load, scope="col") for point in points)),
    )
    rows = [
        el(
            "tr",
            name_cell(name, study),
            *(_square(point, name, metric, best=best.get(id(point)) == name) for point in points),
        )
        for name in sorted(study.policies, key=lambda name: _mean_change(points, name, metric))
    ]
    caption = f"{metric.label}: change against {BASE} in %. Grey: the 95 % interval includes 0. Underlined: the best."
    table = el("table", el("caption", caption), el("thead", *head), el("tbody", *rows), class_="grid-table heat")
    return el(
        "div",
        table,
        class_=f"scroll metric{' shown' if first else ''}",
        data_metric=metric.key,
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def _square(point: Point, name: str, metric: Metric, *, best: bool) -> Markup:
    row = point.rows.get(name)
    if row is None:
        return el("td", MISSING, class_="num soft")
    value, mark = metric.written(row.value(metric)), "best" if best else ""
    if name == BASE:
        return el("td", value, class_=f"num soft {mark}".rstrip())
    percent, half_width = row.change(metric)
    if percent is None:
        return el("td", MISSING, class_=f"num soft {mark}".rstrip(), data_t=f"{name}: {value}")
    verdict = Contrast(percent, half_width).verdict(metric)
    tip = f"{name} in {point.name}: {metric.label} {value}, {change(percent, half_width)}"
    if verdict not in (Verdict.BETTER, Verdict.WORSE):
        return el("td", signed(percent), class_=f"num soft {mark}".rstrip(), data_t=tip)
    strength = round(100 * min(abs(percent) / _FULL, 1.0) ** 0.7)
    kind = "up" if verdict is Verdict.BETTER else "down"
    return el("td", signed(percent), class_=f"num {kind} {mark}".rstrip(), style=f"--v:{strength}%", data_t=tip)


def _mean_change(points: Sequence[Point], name: str, metric: Metric) -> tuple[float, str]:
    if name == BASE:
        return (0.0, name)
    found = [percent for point in points if name in point.rows for percent in [point.rows[name].change(metric)[0]]]
    known = [percent for percent in found if percent is not None]
    sign = -1.0 if metric.higher_is_better else 1.0
    return (sign * sum(known) / len(known) if known else float("inf"), name)

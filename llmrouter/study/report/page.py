"""Puts the page together."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from llmrouter.plots import theme
from llmrouter.plots.markup import Markup, el, figure, join, seconds
from llmrouter.plots.theme import slot_class
from llmrouter.study.report.curves import distributions, sweeps
from llmrouter.study.report.data import BASE
from llmrouter.study.report.forest import forest, swatch
from llmrouter.study.report.fronts import fronts
from llmrouter.study.report.metrics import GOODPUT, METRICS, SLO_ATTAINMENT
from llmrouter.study.report.overview import leaders, matrix
from llmrouter.study.report.reading import read_study
from llmrouter.study.report.table import full_table
from llmrouter.study.report.timelines import timelines
from llmrouter.study.report.values import mapping, number, text
from llmrouter.study.report.words import headline, judged, of_point, outlook, standing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.study.report.data import Study
    from llmrouter.study.report.words import Judged

_OF_SLO = (SLO_ATTAINMENT, GOODPUT)
_FAVOURITE = ("0.95", "0.9", "0.8")
"""Loads that are shown first, where they were run."""


def render(result: Mapping[str, Any]) -> str:
    """One self-contained HTML page for the result of ``llmrouter bench``; same input, same bytes.

    Any part of the result may be absent or null: the page leaves out what follows from it, and says so.
    """
    study = read_study(result)
    all_judged = judged(study)
    body = el(
        "body",
        _header(study),
        _bar(study),
        el("main", _summary(study, all_judged), *_cells(study, all_judged), _full(study), _legend(study)),
        el("div", id="tip", aria_hidden="true", hidden=True),
        el("script", Markup(_asset("page.js"))),
    )
    return "<!doctype html>\n" + el("html", _head(), body, lang="en") + "\n"


def _head() -> Markup:
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", "LLMRouter bench: routing policies compared"),
        el("style", Markup(theme.style() + _asset("page.css"))),
    )


def _header(study: Study) -> Markup:
    about = [f"LLMRouter {study.version}" if study.version else "LLMRouter"]
    return el(
        "header",
        el("p", *about, class_="eyebrow"),
        el("h1", "Routing policies, compared"),
        el("p", headline(study), class_="lead"),
        el("pre", el("code", study.command), class_="command") if study.command else None,
    )


def _bar(study: Study) -> Markup | None:
    if not study.points:
        return None
    links = [("summary", "Summary"), *((_anchor(study, cell), cell) for cell in study.cell_names), ("table", "Table")]
    shown = _first_load(study)
    loads = [
        el("button", load, type="button", data_load=load, aria_pressed="true" if load == shown else "false")
        for load in study.loads
    ]
    chips = [
        el(
            "button",
            swatch(info.slot),
            info.name,
            type="button",
            data_slot=str(info.slot),
            title=info.description,
            aria_pressed="true" if info.on else "false",
        )
        for info in sorted(study.policies.values(), key=lambda info: info.slot)
    ]
    return el(
        "nav",
        el("div", *(el("a", name, href=f"#{anchor}") for anchor, name in links), class_="links"),
        el("div", el("span", "load"), *loads, class_="segmented loads", role="group", aria_label="load"),
        el(
            "details",
            el("summary", "policies in colour"),
            el("div", *chips, el("button", "all", type="button", class_="all"), class_="chips"),
            open=True,
        ),
        aria_label="page",
    )


def _summary(study: Study, all_judged: list[Judged]) -> Markup:
    sentences = [*standing(study, all_judged), *outlook(study)] if study.points else []
    parts: list[str | None] = [
        el("h2", "Summary"),
        el("ul", *(el("li", said) for said in sentences), class_="findings") if sentences else None,
        _missing(study),
    ]
    if study.points:
        parts += [
            el("h3", "Who leads where"),
            leaders(all_judged, study),
            el("h3", f"Every policy in every setting, against {BASE}"),
            matrix(study),
        ]
    if study.notes:
        notes = el("ul", *(el("li", note) for note in study.notes))
        parts.append(el("details", el("summary", "Notes on the method"), notes, open=True, class_="notes"))
    return el("section", *parts, id="summary")


def _missing(study: Study) -> Markup | None:
    if not study.missing:
        return None
    return el("ul", *(el("li", said) for said in study.missing), class_="missing", aria_label="what is missing")


def _cells(study: Study, all_judged: list[Judged]) -> list[Markup]:
    return [_cell(cell, study, all_judged) for cell in study.cell_names]


def _cell(cell: str, study: Study, all_judged: list[Judged]) -> Markup:
    points = [one for point in study.of_cell(cell) for one in all_judged if one.point is point]
    loads = {one.point.load for one in points}
    absent = [
        el("div", el("p", f"{cell} was not run at {load}.", class_="missing"), class_="load", data_load=load)
        for load in study.loads
        if load not in loads
    ]
    return el(
        "section",
        el("h2", cell),
        _about(study.cells.get(cell, {})),
        *(_point(one, study) for one in points),
        *absent,
        el("h3", "Over the load") if points else el("p", "No rows for this cell.", class_="missing"),
        _key(study) if points else None,
        sweeps(cell, study) if points else None,
        id=_anchor(study, cell),
        class_="cell",
    )


def _about(about: Mapping[str, Any]) -> Markup | None:
    facts = (
        ("capacity C", _capacity(about)),
        ("engines", text(about.get("engine"))),
        ("instances", _whole(about.get("instances"))),
        ("requests per run", _whole(about.get("requests"))),
        ("routers", _routers(mapping(about.get("routers")))),
    )
    shown = [el("div", el("dt", name), el("dd", value)) for name, value in facts if value]
    described = text(about.get("description"))
    return join([el("p", described, class_="soft") if described else None, el("dl", *shown) if shown else None])


def _capacity(about: Mapping[str, Any]) -> str | None:
    measured, published = number(about.get("capacity_rps")), number(about.get("published_capacity_rps"))
    if measured is None:
        return None
    return f"{figure(measured)} req/s" + (f" (published: {figure(published)})" if published is not None else "")


def _routers(about: Mapping[str, Any]) -> str | None:
    count = _whole(about.get("routers"))
    if count is None:
        return None
    times = ((key, number(about.get(f"{key}_s"))) for key in ("refresh", "dispatch"))
    told = [f"{key} {seconds(value)}" for key, value in times if value]
    shared = ["shared state" if about.get("shared") else "state of their own"] if count != "1" else []
    return ", ".join([count, *shared, *told])


def _slo(study: Study) -> str:
    limits = [(name.upper(), number(study.slo.get(f"{name}_s"))) for name in ("ttft", "tpot")]
    told = [f"{name} ≤ {seconds(value)}" for name, value in limits if value is not None]
    return f" ({', '.join(told)})" if told else ""


def _point(one: Judged, study: Study) -> Markup:
    point = one.point
    rate = f" · {figure(point.rate_rps)} req/s" if point.rate_rps is not None else ""
    return el(
        "div",
        el("h3", f"{point.cell} at {point.load} of capacity{rate}"),
        el("p", of_point(one, study), class_="verdict-line"),
        forest(point, study, one.best.policy if one.best else None),
        el("h4", "Latency distributions"),
        _key(study),
        distributions(point, study),
        el("h4", "What can be had together"),
        fronts(point, study),
        el("h4", "Instances over time"),
        timelines(point, study),
        class_=f"load{' shown' if point.load == _first_load(study) else ''}",
        data_load=point.load,
    )


def _key(study: Study) -> Markup:
    """Names of the policies in colour; the others' are there for when they are chosen."""
    infos = sorted(study.policies.values(), key=lambda info: info.slot)
    names = [el("span", swatch(info.slot), info.name, class_=slot_class(info.slot, on=info.on)) for info in infos]
    return el("p", *names, class_="key", aria_hidden="true")


def _full(study: Study) -> Markup:
    return el("section", el("h2", "Every figure"), full_table(study), id="table")


def _legend(study: Study) -> Markup:
    present = [metric for metric in METRICS if metric in study.metrics]
    words = [
        el("div", el("dt", metric.label), el("dd", metric.meaning, _slo(study) if metric in _OF_SLO else None))
        for metric in present
    ]
    policies = [
        el("div", el("dt", info.name), el("dd", ". ".join(part for part in (info.kind, info.description) if part)))
        for info in study.policies.values()
    ]
    return el(
        "section",
        el("h2", "Words"),
        el("dl", *words, class_="words"),
        el("h3", "Policies") if policies else None,
        el("dl", *policies, class_="words") if policies else None,
        id="words",
    )


def _first_load(study: Study) -> str | None:
    known = study.loads
    return next((load for load in _FAVOURITE if load in known), known[-1] if known else None)


def _anchor(study: Study, cell: str) -> str:
    return f"cell-{study.cell_names.index(cell)}"


def _whole(value: object) -> str | None:
    found = number(value)
    return None if found is None else f"{found:,.0f}"


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")

from __future__ import annotations

import copy
import json
import math
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from support.bench_results import CELLS, LOADS, METRICS, POLICIES, bench_result

from llmrouter.study.figures import HIGHER_IS_BETTER, change_name
from llmrouter.study.figures import METRICS as FIGURES
from llmrouter.study.report import render
from llmrouter.study.report.choice import Contrast, Verdict, best_row, contrast
from llmrouter.study.report.fronts import on_front
from llmrouter.study.report.metrics import E2E_MEAN, GOODPUT
from llmrouter.study.report.metrics import METRICS as SHOWN
from llmrouter.study.report.reading import read_study
from llmrouter.study.report.words import headline, judged, standing

if TYPE_CHECKING:
    from llmrouter.study.report.data import Study

VOID = {"meta", "input"}
FEW = ("RoundRobin", "LeastInFlight", "LMetric", "MarginalCost", "MarginalCost-oracle")


class Page(HTMLParser):
    """The page as a browser meets it; every tag must be closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str, class_: str | None = None) -> list[dict[str, str | None]]:
        found = [attributes for name, attributes in self.tags if name == tag]
        return [one for one in found if class_ is None or class_ in (one.get("class") or "").split()]


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return bench_result(cells=("h100-mix", "paper-v100"), loads=(0.8, 0.95), policies=FEW, seeds=5)


@pytest.fixture(scope="module")
def little() -> dict[str, Any]:
    """One cell, two loads, three policies: enough for every part of the page."""
    return bench_result(
        cells=("h100-mix",), loads=(0.8, 0.95), policies=("RoundRobin", "LMetric", "MarginalCost"), seeds=3
    )


@pytest.fixture(scope="module")
def html(result: dict[str, Any]) -> str:
    return render(result)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def changed(result: dict[str, Any], **parts: object) -> dict[str, Any]:
    return {**copy.deepcopy(result), **parts}


def test_the_page_has_every_cell_load_and_policy(page: Page) -> None:
    assert len(page.all("table", "forest")) == 4
    for word in ("h100-mix at 0.8 of capacity", "paper-v100 at 0.95 of capacity", *FEW):
        assert word in page.text


def test_the_page_is_self_contained(html: str, page: Page) -> None:
    assert re.findall(r"https?:|//[a-z]|@import", re.sub(r"data:[^\"]*", "", html)) == []
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img")
        for name in ("src", "href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:"))
    assert "url(" not in html
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(", html)


def test_links_lead_somewhere(page: Page) -> None:
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = {(attributes.get("href") or "").removeprefix("#") for attributes in page.all("a")}
    assert links
    assert links <= ids


def test_ids_are_unique(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_plots_say_what_they_show(html: str, page: Page) -> None:
    plots = [one for one in page.all("svg", "plot") if one.get("role") == "img"]
    assert len(plots) > 40
    assert html.count("<desc>") == html.count('role="img"') == len(plots)
    hidden = [one for one in page.all("svg", "plot") if one.get("role") != "img"]
    assert all(one.get("aria-hidden") == "true" for one in hidden)


def test_the_same_result_gives_the_same_bytes(result: dict[str, Any], html: str) -> None:
    assert render(copy.deepcopy(result)) == html
    assert render(json.loads(json.dumps(result))) == html


def test_the_full_table_has_a_row_for_each_row_and_a_column_for_each_figure(result: dict[str, Any], html: str) -> None:
    table = html[html.index('<table class="full">') :]
    table = table[: table.index("</table>")]
    assert table.count("<tr>") == len(result["rows"]) + 1
    assert table.split("</thead>")[0].count("<th ") == 3 + len(METRICS)


def test_everything_that_is_given_is_escaped(little: dict[str, Any]) -> None:
    evil = '<img src=x onerror="alert(1)">&'
    given = json.dumps(changed(little, command=evil, version=evil, notes=[evil]))
    given = given.replace('"LMetric"', json.dumps(evil)).replace('"h100-mix"', json.dumps(f"{evil}2"))
    found = Page(render(json.loads(given)))
    assert found.all("img") == []
    assert all("onerror" not in attributes for _, attributes in found.tags)
    assert evil in found.text


@pytest.mark.parametrize(
    "part", ["command", "version", "seeds", "notes", "cells", "best", "samples", "timelines", "policies", "rows"]
)
@pytest.mark.parametrize("value", ["absent", None, [], {}, "text", 3])
def test_any_part_may_be_missing(little: dict[str, Any], part: str, value: object) -> None:
    given = {**little, part: value}
    if value == "absent":
        del given[part]
    Page(render(given))


def test_an_empty_result_says_so() -> None:
    assert "nothing to compare" in Page(render({})).text


def test_what_is_missing_is_said(little: dict[str, Any]) -> None:
    text = Page(render(changed(little, samples=None, timelines=None, seeds=None))).text
    for said in ("no latency distributions", "no timelines", "does not say its seeds", "No latency samples"):
        assert said in text


def test_a_null_figure_is_a_dash_and_breaks_nothing(little: dict[str, Any]) -> None:
    given = copy.deepcopy(little)
    for row in given["rows"]:
        if row["policy"] == "LMetric":
            row.update({key: None for key, value in row.items() if isinstance(value, float) and key != "load"})
    page = Page(render(given))
    assert "not known" in page.text
    assert "nan" not in page.text.lower().split()


@pytest.mark.parametrize("figure", [math.nan, math.inf, "fast", True, [1.0]])
def test_what_is_no_figure_is_unknown(little: dict[str, Any], figure: object) -> None:
    given = copy.deepcopy(little)
    for row in given["rows"]:
        row.update(e2e_mean_s=figure, ttft_p99_pct=figure)
    html = render(given)
    Page(html)
    assert not re.search(r"[ \"]nan|[ \"]inf[ \"]", html)


def test_rows_without_a_name_are_counted(little: dict[str, Any]) -> None:
    assert "2 rows lack" in Page(render(changed(little, rows=[*little["rows"], {}, "row"]))).text


def test_timelines_of_one_load_by_policy_are_read_too(little: dict[str, Any]) -> None:
    flat = {cell: {"load": 0.8, "seed": 1000, "policies": loads["0.8"]} for cell, loads in little["timelines"].items()}
    text = Page(render(changed(little, timelines=flat))).text
    assert "there is one at 0.8 of capacity" in text
    assert "KV usage" in text


def test_the_best_may_come_as_a_list(result: dict[str, Any]) -> None:
    listed = [
        {
            "cell": cell,
            "load": float(load),
            "policy": entry["baseline"],
            "default": "MarginalCost",
            "vs_best_e2e_mean_pct": -50.0,
            "vs_best_e2e_mean_pct_ci95": 1.0,
        }
        for cell, loads in result["best"].items()
        for load, entry in loads.items()
    ]
    text = Page(render(changed(result, best=listed))).text
    assert "better in 4, no clear difference in 0, worse in 0" in text
    assert "−50.0 ± 1.0" in text


def test_a_timeline_of_broken_shape_is_left_out(little: dict[str, Any]) -> None:
    broken = {"at_s": [0.0, 1.0], "running": [[1.0]], "waiting": None, "kv_usage_fraction": "x", "held": [1.0]}
    timelines = {cell: {"0.8": {"RoundRobin": broken}} for cell in little["timelines"]}
    assert "No timeline was recorded here" in Page(render(changed(little, timelines=timelines))).text


def test_the_page_is_bounded() -> None:
    full = render(bench_result(cells=tuple(CELLS), loads=LOADS, policies=tuple(POLICIES)))
    assert len(full.encode()) < 3_000_000


def test_one_load_has_no_sweep_and_one_policy_no_front() -> None:
    text = Page(render(bench_result(cells=("h100-mix",), loads=(0.95,), policies=("RoundRobin",), seeds=2))).text
    assert "One load only" in text
    assert "default policy is not among those compared" in text


def small(means: dict[str, list[float]]) -> Study:
    """A study of one setting from mean E2E by seed."""
    base = means["RoundRobin"]
    rows = []
    for name, values in means.items():
        percents = [100 * (value / reference - 1) for value, reference in zip(values, base, strict=True)]
        row = {"cell": "c", "load": 0.8, "policy": name, "e2e_mean_s": sum(values) / len(values)}
        rows.append({**row, "e2e_mean_pct": sum(percents) / len(percents), "e2e_mean_pct_ci95": 0.5})
    per_seed = {name: {"per_seed": {"e2e_mean_s": values}} for name, values in means.items()}
    return read_study({"rows": rows, "samples": {"c": {"0.8": per_seed}}, "default": "MarginalCost"})


def test_a_simple_rule_that_beats_the_default_is_named() -> None:
    study = small({"RoundRobin": [10.0, 12.0, 11.0], "LMetric": [8.0, 9.6, 8.8], "MarginalCost": [9.0, 10.9, 9.9]})
    said = " ".join(standing(study, judged(study)))
    assert "worse in 1" in said
    assert "A simple rule does better than MarginalCost: LMetric in c at 0.8 (MarginalCost +12.8 ± 1.5 %)" in said


def test_a_difference_within_its_interval_is_no_difference() -> None:
    study = small({"RoundRobin": [10.0, 12.0, 11.0], "LMetric": [8.0, 9.6, 8.8], "MarginalCost": [8.2, 9.2, 9.0]})
    assert judged(study)[0].verdict is Verdict.UNDECIDED
    said = " ".join(standing(study, judged(study)))
    assert "no clear difference in 1" in said
    assert "No baseline beats MarginalCost" in said


def test_without_the_figures_of_each_seed_nothing_is_claimed() -> None:
    study = small({"RoundRobin": [10.0], "LMetric": [8.0], "MarginalCost": [9.0]})
    assert judged(study)[0].verdict is Verdict.UNKNOWN
    assert "cannot be set against" in " ".join(standing(study, judged(study)))


def test_a_policy_that_turns_requests_away_does_not_lead() -> None:
    rows = [
        {"cell": "c", "load": 1.1, "policy": "RoundRobin", "e2e_mean_s": 10.0, "shed_rate": 0.0},
        {"cell": "c", "load": 1.1, "policy": "Shedding", "e2e_mean_s": 1.0, "shed_rate": 0.5},
        {"cell": "c", "load": 1.1, "policy": "X-oracle", "e2e_mean_s": 2.0, "shed_rate": 0.0},
    ]
    study = read_study({"rows": rows})
    best = best_row(study.points[0], study)
    assert best is not None
    assert best.policy == "RoundRobin"


def test_contrasts_are_paired() -> None:
    study = small({"RoundRobin": [10.0, 20.0], "LMetric": [9.0, 18.0], "MarginalCost": [8.1, 16.2]})
    found = contrast(study.points[0], "MarginalCost", "LMetric", E2E_MEAN)
    assert found.percent == pytest.approx(-10.0)
    assert found.half_width == pytest.approx(0.0, abs=1e-9)


def test_verdicts_know_which_way_is_better() -> None:
    assert Contrast(-5.0, 1.0).verdict(E2E_MEAN) is Verdict.BETTER
    assert Contrast(-5.0, 1.0).verdict(GOODPUT) is Verdict.WORSE
    assert Contrast(-5.0, 6.0).verdict(GOODPUT) is Verdict.UNDECIDED
    assert Contrast(-5.0, None).verdict(E2E_MEAN) is Verdict.UNKNOWN


def test_the_front_is_what_no_other_beats() -> None:
    figures = {"a": (1.0, 3.0), "b": (2.0, 1.0), "c": (2.0, 2.0), "d": (3.0, 1.0), "same as b": (2.0, 1.0)}
    assert on_front(figures) == ["a", "b", "same as b"]


@pytest.mark.parametrize(
    ("parts", "default"),
    [
        ({"default": "LMetric"}, "LMetric"),
        ({"default": "Other"}, "MarginalCost"),
        ({"default": None, "best": [{"cell": "h100-mix", "load": 0.8, "default": "LMetric"}]}, "LMetric"),
        ({"default": None, "policies": {}, "best": []}, None),
    ],
)
def test_the_default_is_the_one_the_result_names(little: dict[str, Any], parts: dict[str, Any], default: str) -> None:
    study = read_study({**little, **parts})
    assert study.default == default


def test_another_base_is_said(little: dict[str, Any]) -> None:
    assert "Changes are against Random" in Page(render({**little, "base": "Random"})).text


def test_the_headline_counts() -> None:
    study = read_study(bench_result(cells=("h100-mix",), loads=(0.8, 0.95), policies=FEW, seeds=5))
    assert headline(study) == (
        "5 policies on 1 cell at 0.8 and 0.95 of capacity, 5 paired seeds of the selection block, from 1000."
    )


def test_every_figure_of_the_protocol_is_shown_and_named_alike() -> None:
    shown = {metric.key: metric for metric in SHOWN}
    assert set(FIGURES) <= set(shown)
    assert all(metric.change_key == change_name(metric.key) for metric in SHOWN)
    assert {key for key, metric in shown.items() if metric.higher_is_better} == set(HIGHER_IS_BETTER)


def test_the_base_has_the_neutral_colour_and_no_two_policies_share_one() -> None:
    study = read_study(bench_result(cells=("h100-mix",), loads=(0.95,), seeds=2))
    slots = [info.slot for info in study.policies.values()]
    assert study.policies["RoundRobin"].slot == 0
    assert study.policies["MarginalCost"].slot == 1
    assert len(set(slots)) == len(slots) == len(POLICIES)
    assert sum(info.on for info in study.policies.values()) <= 7


def test_more_policies_than_colours_share_them() -> None:
    rows = [{"cell": "c", "load": 0.8, "policy": f"p{index}", "e2e_mean_s": 1.0 + index} for index in range(60)]
    page = Page(render({"rows": rows}))
    assert {int(one.get("data-slot") or "-1") for one in page.all("button") if "data-slot" in one} < set(range(24))

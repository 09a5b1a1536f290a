"""Alerts and dashboards ask for series that exist, by labels that they have, in PromQL; each alert has its runbook."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from support.operator_process import CHART, render_chart

from llmrouter.metrics import RouterMetrics
from llmrouter_operator.metrics import OperatorMetrics

if TYPE_CHECKING:
    from collections.abc import Iterator

SUFFIXES = {
    "counter": {"_total"},
    "gauge": {""},
    "histogram": {"_bucket", "_sum", "_count"},
    "summary": {"_sum", "_count"},
}
OF_EVERY_TARGET = {"namespace", "pod"}
ALERTS = yaml.safe_load((CHART / "alerts/llmrouter.yaml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
DASHBOARDS = {path.name: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))}
RUNBOOKS = {path.stem: path.read_text() for path in (CHART / "runbooks").glob("*.md")}
EVERYTHING = (
    "monitoring.podMonitors.enabled=true",
    "monitoring.alerts.enabled=true",
    "monitoring.dashboards.enabled=true",
)


def known_series() -> dict[str, set[str]]:
    """Labels by the name of every series that routers and the operator may show."""
    registries = CollectorRegistry(), CollectorRegistry()
    RouterMetrics(registries[0])
    OperatorMetrics(registries[1])
    return {
        f"{family.name}{suffix}": {*metric._labelnames, *(["le"] if suffix == "_bucket" else [])}
        for registry in registries
        for metric in registry._collector_to_names
        if isinstance(metric, MetricWrapperBase)
        for family in metric.describe()
        for suffix in SUFFIXES[family.type]
    }


SERIES = known_series()


def selectors(node: object) -> Iterator[Any]:
    """All selectors of series in a parsed expression, and the labels that are grouped by beside them."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "args", "param"):
        child = getattr(node, name, None)
        for one in child if isinstance(child, list) else [child]:
            if one is not None and not isinstance(one, str):
                yield from selectors(one)


def groupings(node: object) -> Iterator[tuple[set[str], Any]]:
    """Labels that an aggregation groups by, with what it aggregates."""
    if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
        yield set(node.modifier.labels), node.expr
    for name in ("expr", "lhs", "rhs", "args"):
        child = getattr(node, name, None)
        for one in child if isinstance(child, list) else [child]:
            if one is not None:
                yield from groupings(one)


def check(expression: str) -> None:
    plain = expression.replace("$__rate_interval", "5m").replace("$namespace", "llm").replace("$pod", ".*")
    parsed = promql_parser.parse(plain)
    found = list(selectors(parsed))
    assert found, expression
    for one in found:
        assert one.name in SERIES, f"{one.name} of {expression}"
        unknown = {matcher.name for matcher in one.matchers.matchers} - SERIES[one.name] - OF_EVERY_TARGET
        assert unknown == set(), expression
    for labels, inner in groupings(parsed):
        has = set.union(*(SERIES[one.name] for one in selectors(inner))) | OF_EVERY_TARGET
        assert labels <= has, expression


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_can_fire_and_says_what_to_do(rule: dict[str, Any]) -> None:
    check(rule["expr"])
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(rule["annotations"]) == {"summary", "description"}
    runbook = RUNBOOKS[rule["alert"]]
    assert runbook.startswith(f"# {rule['alert']}\n")
    assert all(part in runbook for part in ("**What.**", "**Effect.**", "**What to do**"))


def test_a_check_of_a_series_that_is_not_there_fails() -> None:
    for wrong in (
        "llmrouter_nothing",
        'llmrouter_held_requests{outcome="a"}',
        "sum by (reason) (llmrouter_held_requests)",
    ):
        with pytest.raises(AssertionError):
            check(wrong)


def test_every_runbook_is_of_an_alert() -> None:
    assert set(RUNBOOKS) == {rule["alert"] for rule in RULES}
    for text in RUNBOOKS.values():
        for name in re.findall(r"`(llmrouter_[a-z_]+)`", text):
            assert name in SERIES or f"{name}_count" in SERIES, name
        for name in re.findall(r"see `(\w+)`", text):
            assert name in RUNBOOKS


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_asks_for_what_there_is(name: str) -> None:
    board = DASHBOARDS[name]
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert name == f"{board['uid']}.json"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    variables = {f"${one['name']}" for one in board["templating"]["list"]}
    for panel in panels:
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for target in panel["targets"]:
            check(target["expr"])
            assert set(re.findall(r"\$[a-z]+", target["expr"])) <= variables, panel["title"]
    places = [(p["gridPos"]["x"], p["gridPos"]["y"], p["gridPos"]["w"], p["gridPos"]["h"]) for p in board["panels"]]
    for index, (x, y, w, h) in enumerate(places):
        assert x + w <= 24
        for left, top, wide, high in places[:index]:
            assert x >= left + wide or left >= x + w or y >= top + high or top >= y + h, board["panels"][index]["title"]


def test_nothing_watches_unless_it_is_asked_for() -> None:
    kinds = {value["kind"] for value in render_chart()}
    assert not kinds & {"PodMonitor", "PrometheusRule"}


def test_the_chart_brings_all_of_it() -> None:
    objects = render_chart(*EVERYTHING, "monitoring.alerts.disabled={LLMRouterLengthDrift}")
    (rule,) = (value for value in objects if value["kind"] == "PrometheusRule")
    alerts = {one["alert"]: one for group in rule["spec"]["groups"] for one in group["rules"]}
    assert set(alerts) == set(RUNBOOKS) - {"LLMRouterLengthDrift"}
    assert alerts["LLMRouterFails"]["annotations"]["runbook_url"].endswith("-runbooks/LLMRouterFails.md")
    assert "{{ $labels.namespace }}" in alerts["LLMRouterFails"]["annotations"]["summary"]
    maps = {value["metadata"]["name"]: value for value in objects if value["kind"] == "ConfigMap"}
    assert set(maps["llmrouter-runbooks"]["data"]) == {f"{name}.md" for name in RUNBOOKS}
    for name, board in DASHBOARDS.items():
        value = maps[f"{board['uid']}-dashboard"]
        assert value["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert json.loads(value["data"][name]) == board
    monitors = [value for value in objects if value["kind"] == "PodMonitor"]
    selected = [value["spec"]["selector"]["matchLabels"] for value in monitors]
    assert {"app.kubernetes.io/name": "llmrouter", "app.kubernetes.io/component": "router"} in selected
    pods = [value["spec"]["template"]["metadata"]["labels"] for value in objects if value["kind"] == "Deployment"]
    assert any(one.items() <= labels.items() for one in selected for labels in pods), "the operator's"


def test_runbooks_may_be_served_elsewhere() -> None:
    objects = render_chart(*EVERYTHING, "monitoring.alerts.runbookBaseUrl=https://books.example/")
    (rule,) = (value for value in objects if value["kind"] == "PrometheusRule")
    urls = {one["annotations"]["runbook_url"] for group in rule["spec"]["groups"] for one in group["rules"]}
    assert "https://books.example/LLMRouterFails.md" in urls

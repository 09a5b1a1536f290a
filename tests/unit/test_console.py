"""What a person sees of an LLMRouter: nothing that matters is left out, nothing that is not known is made up."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console, RenderableType

from llmrouter.console.command import main
from llmrouter.console.routers import Sight, instance_loads, quantile, rate, read_sight
from llmrouter.console.status_view import age_of, detail, overview
from llmrouter.console.top_view import Looked, top
from llmrouter.metrics import RouterMetrics

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


def shown(view: RenderableType) -> str:
    console = Console(width=180)
    with console.capture() as capture:
        console.print(view)
    return capture.get()


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    when = "2026-05-04T11:00:00Z"
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": when}


def router(status: dict[str, Any] | None = None, **spec: object) -> dict[str, Any]:
    return {
        "metadata": {"name": "chat", "namespace": "llm", "creationTimestamp": "2026-05-01T12:00:00Z"},
        "spec": {
            "policyRef": {"name": "balanced"},
            "pools": [
                {"name": "big", "selector": {"matchLabels": {"app": "vllm"}}, "profile": {"name": "h100"}},
                {"name": "pre", "role": "Prefill", "endpoints": ["a:1", "b:1"], "profile": {"inline": {}}},
            ],
            **spec,
        },
        "status": status or {},
    }


ACTIVE = {
    "name": "balanced",
    "type": "WorkloadImpact",
    "digest": "sha256:0123",
    "acknowledged": "2/2",
    "lastKnownGood": False,
}


@pytest.mark.parametrize(
    ("then", "age"),
    [
        ("2026-05-04T11:59:41Z", "19s"),
        ("2026-05-04T11:50:00Z", "10m"),
        ("2026-05-04T10:30:00Z", "1h30m"),
        ("2026-05-01T12:00:00Z", "3d"),
        ("2026-05-05T12:00:00Z", "0s"),
        (None, "–"),
    ],
)
def test_ages_have_two_units(then: str | None, age: str) -> None:
    assert age_of(then, NOW) == age


def test_one_without_a_status_is_shown_as_one() -> None:
    text = shown(detail(router(), NOW, held=None, events=[]))
    assert "is the operator running?" in text
    assert "none in force" in text
    assert "the routers could not be asked" in text
    assert "–" in shown(overview([router()], NOW))


def test_what_does_not_hold_is_said_twice_with_what_to_do() -> None:
    status = {
        "conditions": [
            condition("Ready", "False", "Unreachable", "no Redis"),
            condition("StateBackendReady", "False", "Unreachable", "redis:6379 does not answer"),
            condition("LengthDrift", "False", "None", "not said"),
        ],
        "activePolicy": ACTIVE | {"name": "old", "lastKnownGood": True},
    }
    text = shown(detail(router(status), NOW, held=4, events=[]))
    assert text.count("redis:6379 does not answer") == 2
    assert "yours: StateBackendReady" in text
    assert "yours: LengthDrift" not in text
    assert "the last good one" in text
    assert "4 requests" in text


def test_a_trial_shows_its_arms_and_what_is_known_of_the_difference() -> None:
    candidate = {
        "name": "bold",
        "mode": "Canary",
        "percent": 10,
        "phase": "Running",
        "since": "2026-05-04T11:40:00Z",
        "reason": "NoVerdictYet",
        "message": "1204 of 2000 requests",
        "arms": [{"arm": "current", "requests": 10840, "errors": 2, "ttftMeanSeconds": 0.311}],
        "comparisons": [
            {"metric": "TTFT", "ratio": 1.12, "low": 0.98, "high": 1.3},
            {"metric": "E2E", "ratio": 0.9},
        ],
    }
    text = shown(detail(router({"candidate": candidate, "activePolicy": ACTIVE}), NOW, held=0, events=[]))
    for part in ("canary of 10 %", "since 20m", "10,840", "311 ms", "[0.98, 1.3]", "no interval yet"):
        assert part in text, part
    assert "bold: Running 10%" in shown(overview([router({"candidate": candidate})], NOW))


@pytest.mark.parametrize(
    ("phase", "advice"), [("Promoted", "set spec.policyRef.name to bold"), ("RolledBack", "remove")]
)
def test_what_is_left_to_a_person_after_a_trial(phase: str, advice: str) -> None:
    status = {"candidate": {"name": "bold", "mode": "Canary", "phase": phase}}
    assert advice in shown(detail(router(status, candidate={"policyRef": {"name": "bold"}}), NOW, held=0, events=[]))


def test_pools_show_what_they_have_and_what_they_are_to_have() -> None:
    status = {
        "rebalance": {
            "mode": "Auto",
            "applied": [{"pool": "big", "replicas": 3}, {"pool": "pre", "replicas": 5}],
            "proposed": [{"pool": "big", "replicas": 4}, {"pool": "pre", "replicas": 4}],
            "reason": "decode is the bottleneck",
        },
        "calibration": {"pools": [{"pool": "big", "slowInstances": [{"instance": "vllm-3", "slowness": 1.8}]}]},
        "mix": {
            "requestsPerSecond": 12.34,
            "prefillTokensPerSecond": 10412.0,
            "decodeTokensPerSecond": 3120.0,
            "summary": "31% prefill",
            "forecast": {"horizonSeconds": 300, "requestsPerSecond": {"low": 10, "mid": 13, "high": 16}},
        },
    }
    text = shown(detail(router(status), NOW, held=0, events=[]))
    for part in ("vllm-3 ×1.8", "decode is the bottleneck", "12.3 requests/s", "10,400", "13 [10, 16]", "2 endpoints"):
        assert part in text, part


def sight(metrics: RouterMetrics, registry: CollectorRegistry, at_s: float) -> Sight:
    metrics.held_requests.set(2)
    return read_sight("r-0", generate_latest(registry).decode(), at_s)


def test_rates_and_quantiles_are_of_what_came_between_two_looks() -> None:
    registry = CollectorRegistry()
    metrics = RouterMetrics(registry)
    metrics.requests.labels("Routed").inc(100)
    metrics.decision_seconds.observe(0.09)
    before = sight(metrics, registry, 10.0)
    metrics.requests.labels("Routed").inc(30)
    metrics.requests.labels("NoRoom").inc(10)
    for _ in range(100):
        metrics.decision_seconds.observe(0.00015)
    now = sight(metrics, registry, 20.0)

    assert rate(before, now, "requests_total", outcome="Routed") == 3.0
    assert rate(before, now, "requests_total") == 4.0
    assert rate(None, now, "requests_total") is None
    assert rate(now, before, "requests_total") is None
    median = quantile(before, now, "decision_seconds", 0.5)
    assert median is not None
    assert 0.0001 < median < 0.0002
    assert quantile(before, before, "decision_seconds", 0.5) is None
    assert quantile(None, before, "decision_seconds", 0.99) == pytest.approx(0.0995)


def test_a_router_that_began_anew_has_no_rate() -> None:
    before = Sight("r-0", 1.0, {("requests_total", ()): 50.0})
    assert rate(before, Sight("r-0", 2.0, {("requests_total", ()): 3.0}), "requests_total") is None


def test_loads_are_not_added_up_over_routers_that_count_the_same() -> None:
    registry = CollectorRegistry()
    metrics = RouterMetrics(registry)
    metrics.in_flight_requests.labels("big", "vllm-0").set(3)
    metrics.in_flight_tokens.labels("big", "vllm-0").set(900)
    metrics.calibration.slowness.labels("big", "vllm-0").set(1.5)
    one = sight(metrics, registry, 1.0)
    (load,) = instance_loads([one, Sight("r-1", 1.0, one.values)])
    assert (load.requests, load.tokens, load.slowness) == (3, 900, 1.5)

    text = shown(top("chat", Looked({}, [one], {"r-9": "no answer"})))
    for part in ("r-0", "vllm-0", "900", "1.50", "r-9: no answer"):
        assert part in text, part


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["top", "chat", "--interval", "0"], "--interval: must be within 0.5 and 3600 seconds"),
        (["top", "chat", "--interval", "nan"], "--interval"),
        (["status", "chat", "-A"], "--all-namespaces: goes without a name"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_without_kubectl_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["status"]) == 1
    assert capsys.readouterr().err == "kubectl llmrouter status: kubectl: No such file or directory\n"

"""Conditions as series: they follow the status, and go with their LLMRouter."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from llmrouter_operator.metrics import OperatorMetrics
from llmrouter_operator.models import ObjectKey

CHAT = ObjectKey("llm", "chat")


def shown(metrics: OperatorMetrics) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["name"], sample.labels["type"]): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "llmrouter_operator_condition"
    }


def test_conditions_follow_the_status() -> None:
    metrics = OperatorMetrics(CollectorRegistry())
    other = ObjectKey("llm", "embed")

    metrics.show_conditions(
        CHAT, [{"type": "Ready", "status": "True"}, {"type": "CertificateReady", "status": "False"}]
    )
    metrics.show_conditions(other, [{"type": "Ready", "status": "Unknown"}])
    assert shown(metrics) == {("chat", "Ready"): 1, ("chat", "CertificateReady"): 0, ("embed", "Ready"): -1}

    metrics.show_conditions(CHAT, [{"type": "Ready", "status": "False"}])
    assert shown(metrics) == {("chat", "Ready"): 0, ("embed", "Ready"): -1}

    metrics.show_conditions(CHAT, ())
    metrics.show_conditions(CHAT, ())
    assert shown(metrics) == {("embed", "Ready"): -1}

"""Counts how true the predictions of finished requests were."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmrouter.lengths.distribution import LengthDistribution
    from llmrouter.lengths.drift import DriftWatch
    from llmrouter.lengths.predictor import LengthRequest, UsageRefusal
    from llmrouter.metrics import LengthMetrics


class LengthWatch:
    """Placeholder of the interface while it is being written."""

    def __init__(self, metrics: LengthMetrics, drift: DriftWatch) -> None:
        self.metrics = metrics
        self.drift = drift

    def finished(
        self, request: LengthRequest, law: LengthDistribution, output_tokens: float, refused: UsageRefusal | None
    ) -> None:
        del request, law
        if refused is not None:
            self.metrics.usage_refused.labels(refused.value).inc()
        del output_tokens

"""Prometheus metrics of the operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

from llmrouter_operator.demand_metrics import DemandMetrics
from llmrouter_operator.rebalance_metrics import RebalanceMetrics
from llmrouter_operator.series import Series

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client import CollectorRegistry

    from llmrouter_operator.models import ObjectKey

_VALUES = {"True": 1, "False": 0, "Unknown": -1}
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class OperatorMetrics:
    """All metrics of one operator, on a registry of the caller's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.reconcile_seconds = Histogram(
            "llmrouter_operator_reconcile_seconds", "Time one reconcile took.", buckets=_BUCKETS, registry=registry
        )
        self.reconciles = Counter(
            "llmrouter_operator_reconciles_total",
            "Reconciles by outcome: done, gone, conflict, forbidden, refused, failed.",
            ["outcome"],
            registry=registry,
        )
        self.malformed_acknowledgements = Counter(
            "llmrouter_operator_malformed_acknowledgements_total",
            "Acknowledgements of live routers that could not be read, each time they were.",
            registry=registry,
        )
        self.leading = Gauge("llmrouter_operator_leading", "1 while this replica leads.", registry=registry)
        self.routers = Gauge("llmrouter_operator_llmrouters", "LLMRouters looked after.", registry=registry)
        self._conditions = Gauge(
            "llmrouter_operator_condition",
            "Conditions of LLMRouters: 1 true, 0 false, -1 not known yet.",
            ["namespace", "name", "type"],
            registry=registry,
        )
        self._series = Series()
        self.demand = DemandMetrics(registry)
        self.rebalance = RebalanceMetrics(registry)

    def show_conditions(self, key: ObjectKey, conditions: Iterable[Mapping[str, str]]) -> None:
        """Shows the conditions of one LLMRouter in place of those shown before; none of them when it is gone."""
        values: dict[tuple[str, ...], float] = {(one["type"],): _VALUES[one["status"]] for one in conditions}
        self._series.show(self._conditions, key, values)

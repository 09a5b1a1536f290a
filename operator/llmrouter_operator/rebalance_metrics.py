"""Prometheus metrics of rebalancing: what is proposed, declared and there, for whoever scales on the same estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

from llmrouter_operator.series import Series

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client import CollectorRegistry

    from llmrouter.planning.steps import PoolState
    from llmrouter_operator.models import ObjectKey

_POOL = ("namespace", "name", "pool")


class RebalanceMetrics:
    """Series by LLMRouter and pool; those of an LLMRouter that is gone, or rebalances no more, are removed."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._proposed = Gauge(
            "llmrouter_rebalance_proposed_replicas", "Replicas that the plan asks for.", _POOL, registry=registry
        )
        self._declared = Gauge(
            "llmrouter_rebalance_declared_replicas",
            "Replicas that the scale target declares.",
            _POOL,
            registry=registry,
        )
        self._ready = Gauge("llmrouter_rebalance_ready_replicas", "Replicas that serve.", _POOL, registry=registry)
        self._blocked = Gauge(
            "llmrouter_rebalance_blocked", "1 while a pool is left alone, else 0.", _POOL, registry=registry
        )
        self._taken = Gauge(
            "llmrouter_rebalance_taken_gpus",
            "GPUs of replicas that are declared, starting, serving or terminating.",
            _POOL[:2],
            registry=registry,
        )
        self._budget = Gauge(
            "llmrouter_rebalance_budget_gpus", "GPUs that all pools may take together.", _POOL[:2], registry=registry
        )
        self.changes = Counter(
            "llmrouter_rebalance_changes_total",
            "Changes of a scale by direction: up, down, back (a growth that failed is undone).",
            [*_POOL, "direction"],
            registry=registry,
        )
        self.failures = Counter(
            "llmrouter_rebalance_failures_total",
            "Looks that failed by reason, and changes that were refused.",
            ["namespace", "name", "reason"],
            registry=registry,
        )
        self._series = Series()

    def show(
        self,
        key: ObjectKey,
        states: Iterable[PoolState],
        wanted: Mapping[str, int],
        *,
        taken: int,
        budget: int,
    ) -> None:
        """Shows the pools of one LLMRouter in place of those shown before."""
        known = {(state.pool,): state for state in states}
        shown = self._series.show
        shown(self._declared, key, {pool: state.declared for pool, state in known.items()})
        shown(self._ready, key, {pool: state.ready for pool, state in known.items()})
        shown(self._proposed, key, {pool: wanted.get(state.pool, state.declared) for pool, state in known.items()})
        shown(self._blocked, key, {pool: state.is_held for pool, state in known.items()})
        shown(self._taken, key, {(): taken})
        shown(self._budget, key, {(): budget})

    def forget(self, key: ObjectKey) -> None:
        """Nothing is rebalanced there any more."""
        for gauge in (self._declared, self._ready, self._proposed, self._blocked, self._taken, self._budget):
            self._series.show(gauge, key, {})

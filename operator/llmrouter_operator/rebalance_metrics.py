"""Prometheus metrics of rebalancing: what is proposed, declared and there, for whoever scales on the same estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

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
        self._shown: dict[ObjectKey, set[str]] = {}

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
        known = {state.pool: state for state in states}
        self._drop(key, self._shown.get(key, set()) - known.keys())
        for pool, state in known.items():
            self._declared.labels(*key, pool).set(state.declared)
            self._ready.labels(*key, pool).set(state.ready)
            self._proposed.labels(*key, pool).set(wanted.get(pool, state.declared))
            self._blocked.labels(*key, pool).set(state.is_held)
        self._taken.labels(*key).set(taken)
        self._budget.labels(*key).set(budget)
        self._shown[key] = set(known)

    def forget(self, key: ObjectKey) -> None:
        """Nothing is rebalanced there any more."""
        if key in self._shown:
            self._drop(key, self._shown.pop(key))
            self._taken.remove(*key)
            self._budget.remove(*key)

    def _drop(self, key: ObjectKey, pools: Iterable[str]) -> None:
        for pool in pools:
            for gauge in (self._declared, self._ready, self._proposed, self._blocked):
                gauge.remove(*key, pool)

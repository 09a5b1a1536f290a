"""Looks after the replicas of one LLMRouter's pools: observes, plans, takes one step, and says what it did and why.

Level-triggered: what it has to know of the past is in the status and in the objects. Whatever goes wrong here becomes
the condition ``RebalanceActive``; nothing else of the LLMRouter depends on it.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from llmrouter_operator.cluster import ClusterError
from llmrouter_operator.instants import instant_of
from llmrouter_operator.models import Note, metadata_of
from llmrouter_operator.permissions import missing_rebalance_permissions
from llmrouter_operator.rebalance_decide import Situation
from llmrouter_operator.rebalance_look import RESTING_AGAIN_S, Look
from llmrouter_operator.rebalance_memory import past_of
from llmrouter_operator.rebalance_status import Report, kept, notes_of, rebalance_status
from llmrouter_operator.scaling import Scaling
from llmrouter_operator.status import false

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.resources import LLMRouterSpec
    from llmrouter_operator.cluster import Cluster
    from llmrouter_operator.models import Object, ObjectKey
    from llmrouter_operator.rebalance_metrics import RebalanceMetrics
    from llmrouter_operator.status import Facts

    InferencePools = Mapping[str, Object | None]

logger = logging.getLogger(__name__)


class Rebalancer:
    """One operator's; keeps nothing between looks."""

    def __init__(self, cluster: Cluster, metrics: RebalanceMetrics) -> None:
        self._cluster = cluster
        self._metrics = metrics

    async def look(self, router: Object, facts: Facts, inference_pools: InferencePools, now_s: float) -> Report:
        """Looks once, and takes at most one step; never raises for what the API server says."""
        key, spec = facts.plan.key, facts.plan.spec
        old: Object | None = (router.get("status") or {}).get("rebalance")
        if spec is None or facts.plan.problem is not None:
            return Report(old)
        rebalance = spec.rebalance
        try:
            if rebalance is None or rebalance.mode == "Off":
                self._metrics.forget(key)
                if old is not None:
                    await self._end(spec, key, inference_pools)
                return Report()
            return await self._look(router, facts, spec, inference_pools=inference_pools, now_s=now_s)
        except ClusterError as error:
            return await self._failed(key, old, "Off" if rebalance is None else rebalance.mode, error, now_s)

    def forget(self, key: ObjectKey) -> None:
        """An LLMRouter is gone."""
        self._metrics.forget(key)

    async def _end(self, spec: LLMRouterSpec, key: ObjectKey, inference_pools: InferencePools) -> None:
        """Rebalancing is off: whatever was told to drain serves again."""
        scaling = Scaling(self._cluster, key.namespace)
        for view in await scaling.observe(spec.pools, inference_pools):
            await scaling.drain(view, 0, 0.0)

    async def _look(
        self, router: Object, facts: Facts, spec: LLMRouterSpec, *, inference_pools: InferencePools, now_s: float
    ) -> Report:
        rebalance, old = spec.rebalance, (router.get("status") or {}).get("rebalance")
        assert rebalance is not None  # noqa: S101 - look saw to it
        scaling = Scaling(self._cluster, facts.plan.key.namespace)
        views, fixed = await asyncio.gather(
            scaling.observe(spec.pools, inference_pools), scaling.count_fixed(spec.pools, inference_pools)
        )
        said = facts.said.by_router.values()
        loads = {name: count for one in said for name, count in one.quietest.items()}
        situation = Situation(
            pools={pool.name: pool for pool in spec.pools if pool.scale_target_ref is not None},
            views=[replace(view, in_flight=loads) for view in views],
            in_flight=[one.draining for one in said],
            generation=metadata_of(router)["generation"],
            now_s=now_s,
        )
        look = Look(
            scaling,
            self._metrics,
            facts=facts,
            spec=spec,
            rebalance=rebalance,
            situation=situation,
            past=past_of(old),
            fixed=fixed,
        )
        await look.run()
        told = look.told()
        notes = notes_of(old, told, plan=look.plan_reason, done=look.notes)
        return Report(rebalance_status(old, told, instant_of(now_s)), told.verdict, notes, look.again_s)

    async def _failed(self, key: ObjectKey, old: Object | None, mode: str, error: ClusterError, now_s: float) -> Report:
        """The API server refused or did not answer: what was known stays, and it is tried again."""
        self._metrics.failures.labels(*key, error.reason).inc()
        message = str(error)
        if error.reason == "Forbidden":
            message = await self._what_lacks(key.namespace, message)
        logger.warning("%s/%s: rebalancing: %s", *key, message)
        verdict = false(error.reason, message)
        status = kept(old, verdict, mode=mode, phase="Unknown", now=instant_of(now_s))
        notes = (Note("RebalanceBlocked", f"{error.reason}: {message}", warning=True),)
        is_news = (old or {}).get("reason") != error.reason
        return Report(status, verdict, notes if is_news else (), RESTING_AGAIN_S)

    async def _what_lacks(self, namespace: str, message: str) -> str:
        try:
            missing = await missing_rebalance_permissions(self._cluster, namespace)
        except ClusterError:
            return message  # the API server went away meanwhile: its first refusal says enough
        if not missing:
            return message
        return f"missing permissions: {', '.join(missing)}; install the chart with rebalance.enabled=true"

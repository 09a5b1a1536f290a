"""Reads scale targets with their pods, and changes what rebalancing may change: annotations of pods, and replicas."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidConfigError
from llmrouter.inference_pool import read_inference_pool
from llmrouter_operator.instants import instant_of
from llmrouter_operator.models import POD
from llmrouter_operator.scaling_view import (
    AUTOSCALER,
    DELETION_COST,
    DELETION_COST_ANNOTATION,
    DRAINING_ANNOTATION,
    SCALED_KINDS,
    is_ready,
    selector_of,
    view_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmrouter.rebalance_specs import ScaleTargetRef
    from llmrouter.resources import PoolSpec
    from llmrouter_operator.cluster import Cluster
    from llmrouter_operator.models import Object
    from llmrouter_operator.scaling_view import Replica, TargetView

logger = logging.getLogger(__name__)


class Scaling:
    """The scale targets of one namespace. Every method raises ClusterError where the API server refuses."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace

    async def observe(
        self, pools: Sequence[PoolSpec], inference_pools: Mapping[str, Object | None]
    ) -> list[TargetView]:
        """The targets of all pools that have one. Each object is read before its pods: no pod is counted too few."""
        autoscalers = await self._cluster.find(AUTOSCALER, self._namespace)
        scaled = [(pool, pool.scale_target_ref) for pool in pools if pool.scale_target_ref is not None]
        return await asyncio.gather(
            *(self._observe(pool, target, autoscalers, inference_pools) for pool, target in scaled)
        )

    async def _observe(
        self,
        pool: PoolSpec,
        target: ScaleTargetRef,
        autoscalers: Sequence[Object],
        inference_pools: Mapping[str, Object | None],
    ) -> TargetView:
        value = await self._cluster.get(SCALED_KINDS[target.kind], self._namespace, target.name)
        labels = None if value is None else selector_of(target, value)
        pods = await self._cluster.find(POD, self._namespace, labels=labels) if labels else []
        return view_of(
            pool.name,
            target,
            value,
            pods=pods,
            pool_labels=_labels_of(pool, inference_pools),
            autoscalers=autoscalers,
        )

    async def count_fixed(
        self, pools: Sequence[PoolSpec], inference_pools: Mapping[str, Object | None]
    ) -> dict[str, int]:
        """Instances of the pools without a scale target: endpoints, or pods that are ready."""
        fixed = [pool for pool in pools if pool.scale_target_ref is None]
        counts = await asyncio.gather(*(self._count(pool, inference_pools) for pool in fixed))
        return {pool.name: count for pool, count in zip(fixed, counts, strict=True)}

    async def _count(self, pool: PoolSpec, inference_pools: Mapping[str, Object | None]) -> int:
        if pool.endpoints is not None:
            return len(pool.endpoints)
        labels = _labels_of(pool, inference_pools)
        pods = await self._cluster.find(POD, self._namespace, labels=labels) if labels else []
        return sum(is_ready(pod) for pod in pods)

    async def drain(self, view: TargetView, count: int, now_s: float) -> list[str]:
        """Tells the ``count`` replicas that go first to drain, and all others to serve; returns those newly told."""
        going = view.going()[:count]
        new = [one for one in going if not one.is_draining]
        back = [one for one in view.live if one.is_draining and one not in going]
        since = {DRAINING_ANNOTATION: instant_of(now_s), DELETION_COST_ANNOTATION: DELETION_COST}
        await self._annotate(new, since)
        await self._annotate(back, dict.fromkeys(since))
        return [one.instance for one in new]

    async def set_replicas(self, view: TargetView, replicas: int) -> None:
        """Through the scale subresource, if nothing changed the target since it was read."""
        kind = SCALED_KINDS[view.target.kind]
        scale = {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {
                "name": view.target.name,
                "namespace": self._namespace,
                "resourceVersion": view.resource_version,
            },
            "spec": {"replicas": replicas},
        }
        await self._cluster.replace_scale(kind, self._namespace, scale)
        logger.info("%s/%s: %s has %d replicas now", self._namespace, view.pool, view.target, replicas)

    async def _annotate(self, replicas: Sequence[Replica], annotations: Mapping[str, str | None]) -> None:
        body = {"metadata": {"annotations": dict(annotations)}}
        names = [name for replica in replicas for name in replica.pods]
        await asyncio.gather(*(self._cluster.merge(POD, self._namespace, name, body) for name in names))


def _labels_of(pool: PoolSpec, inference_pools: Mapping[str, Object | None]) -> Mapping[str, str] | None:
    """Labels that select a pool's pods; ``None`` where they are not known."""
    if pool.selector is not None:
        return pool.selector.match_labels
    found = None if pool.inference_pool_ref is None else inference_pools.get(pool.inference_pool_ref.name)
    if found is None or pool.inference_pool_ref is None:
        return None
    try:
        return read_inference_pool(found, pool.inference_pool_ref.name).match_labels
    except InvalidConfigError:
        return None  # the condition InferencePoolsResolved says so

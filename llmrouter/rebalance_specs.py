"""How pools are rebalanced, as it is declared: ``spec.rebalance``, and of each pool what may be scaled and how far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from llmrouter.resource_types import ObjectName, Resource

if TYPE_CHECKING:
    from collections.abc import Sequence

ScaleKind = Literal["Deployment", "StatefulSet", "LeaderWorkerSet"]
API_VERSIONS = {
    "Deployment": "apps/v1",
    "StatefulSet": "apps/v1",
    "LeaderWorkerSet": "leaderworkerset.x-k8s.io/v1",
}
"""Kinds whose scale may be changed, and the API version of each."""


class ScaleTargetRef(Resource):
    """What makes a pool's pods, in the namespace of the LLMRouter."""

    api_version: Literal["apps/v1", "leaderworkerset.x-k8s.io/v1"] = "apps/v1"
    kind: ScaleKind
    name: ObjectName

    @model_validator(mode="after")
    def _of_its_group(self) -> Self:
        if self.api_version != API_VERSIONS[self.kind]:
            raise ValueError(f"apiVersion of a {self.kind} must be {API_VERSIONS[self.kind]}")
        return self

    def __str__(self) -> str:
        """For people."""
        return f"{self.kind} {self.name}"


class PoolScaleSpec(Resource):
    """What of a pool may be scaled, and how far. A replica of a LeaderWorkerSet is one group of pods."""

    scale_target_ref: ScaleTargetRef | None = None
    min_replicas: int = Field(default=1, ge=0, le=10_000)
    max_replicas: int | None = Field(default=None, ge=1, le=10_000)
    gpus_per_replica: int | None = Field(default=None, ge=1, le=1024)

    @model_validator(mode="after")
    def _can_scale(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError("maxReplicas must be at least minReplicas")
        if self.scale_target_ref is not None and self.gpus_per_replica is None:
            raise ValueError("scaleTargetRef needs gpusPerReplica, which the budget counts")
        return self


class RebalanceSloSpec(Resource):
    """What requests are to get: the share ``attainment`` of them within both times."""

    ttft_seconds: float = Field(ge=0.001, le=3600)
    tpot_seconds: float = Field(ge=0.0001, le=60)
    attainment: float = Field(default=0.9, ge=0.5, le=0.999)


class RebalanceSpec(Resource):
    """Whether replicas move between pools, within which budget, and how fast."""

    mode: Literal["Off", "Recommend", "Auto"] = "Off"
    gpu_budget: int = Field(ge=1, le=1_000_000)
    slo: RebalanceSloSpec
    stabilization_seconds: float = Field(default=120.0, ge=0, le=86_400)
    cooldown_seconds: float = Field(default=60.0, ge=0, le=86_400)
    max_step: int = Field(default=1, ge=1, le=1000)
    drain_seconds: float = Field(default=120.0, ge=0, le=86_400)
    progress_deadline_seconds: float = Field(default=600.0, ge=1, le=86_400)


def check_rebalance(rebalance: RebalanceSpec | None, pools: Sequence[PoolScaleSpec]) -> None:
    """Raises ValueError where nothing may be moved though it is asked for, or one target is named by two pools."""
    targets = [str(pool.scale_target_ref) for pool in pools if pool.scale_target_ref is not None]
    twice = sorted({name for name in targets if targets.count(name) > 1})
    if twice:
        raise ValueError(f"pools[].scaleTargetRef names {twice[0]} twice")
    if rebalance is not None and rebalance.mode != "Off" and not targets:
        raise ValueError(f"rebalance.mode: {rebalance.mode} needs scaleTargetRef of the pools that it may move")

"""What a plan is made of, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.domain import Role
from llmrouter.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.domain import EngineProfile
    from llmrouter.planning.demand import ModelDemand


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What a request has to meet to count: seconds, and the share of requests that should."""

    ttft_s: float
    tpot_s: float
    attainment: float = 0.95

    def __post_init__(self) -> None:
        if not (self.ttft_s > 0.0 and self.tpot_s > 0.0 and 0.0 < self.attainment < 1.0):
            raise InvalidInputError("slo: ttft_s and tpot_s must be above 0, attainment between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOption:
    """A pool whose replicas may change. No ``models`` are all. ``current`` is how many it has or is told to have."""

    name: str
    profile: EngineProfile
    role: Role = Role.MIXED
    models: frozenset[str] = frozenset()
    gpus_per_replica: int = 1
    min_replicas: int = 0
    max_replicas: int = 64
    current: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas:
            raise InvalidInputError(f"pool {self.name}: minReplicas must be 0 to maxReplicas, {self.max_replicas}")
        if self.gpus_per_replica < 0 or self.current < 0:
            raise InvalidInputError(f"pool {self.name}: gpusPerReplica and replicas must be at least 0")

    def serves(self, model: str) -> bool:
        """Whether requests of a model may go there."""
        return not self.models or model in self.models


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInputs:
    """All that a plan is made of.

    Attributes:
        demands: one a model: what is to be served, as a rule the forecast's.
        pools: with their bounds and what they have.
        slo: what is to be met.
        gpu_budget: GPUs of all pools together at most; ``None`` where only ``max_replicas`` bound them.
        keep_within: a split is kept that is worse by at most this share.
    """

    demands: tuple[ModelDemand, ...]
    pools: tuple[PoolOption, ...]
    slo: Slo
    gpu_budget: int | None = None
    keep_within: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """The replicas each pool should have, and why.

    Attributes:
        replicas: by pool, every pool of the inputs.
        reason: in words, for a status and an Event.
        gpus: that they need together.
        goodput_rps: requests a second that meet the SLO then, of ``offered_rps``.
        offered_rps: requests a second that were planned for.
        current_goodput_rps: the same with what there is.
        bottleneck: what limits what there is: ``prefill``, ``decode``, ``memory``, ``instances`` or empty.
    """

    replicas: Mapping[str, int]
    reason: str
    gpus: int
    goodput_rps: float
    offered_rps: float
    current_goodput_rps: float
    bottleneck: str = ""

    @property
    def attainment(self) -> float:
        """Share of the requests that meet the SLO."""
        return self.goodput_rps / self.offered_rps if self.offered_rps > 0.0 else 1.0

"""What a plan is made of, from an LLMRouter, what arrives at it, and what its pools have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.config import engine_profile_of
from llmrouter.domain import Role
from llmrouter.planning.demand import demand_of_mix
from llmrouter.planning.inputs import PlanInputs, PoolOption, Slo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.planning.mix import TrafficMix
    from llmrouter.resources import LLMRouterSpec, PoolSpec


def plan_inputs(
    spec: LLMRouterSpec, mixes: Mapping[str, TrafficMix], replicas: Mapping[str, int], *, growth: float = 1.0
) -> PlanInputs | None:
    """``None`` where there is no ``spec.rebalance``, or where it is not known what arrives.

    ``replicas`` are what pools have, by name: as declared for those that may be scaled, else as they are. Pools that
    are not named have as many as they have endpoints. What may not be scaled stays as it is, and takes none of the
    budget. ``growth`` is how many times as much is planned for as arrives.
    """
    if spec.rebalance is None:
        return None
    known = {model.name for model in spec.models}
    demands = [demand_of_mix(model, mix, times=growth) for model, mix in mixes.items() if model in known]
    if not any(demands):
        return None
    slo = spec.rebalance.slo
    return PlanInputs(
        demands=tuple(one for one in demands if one is not None),
        pools=tuple(_option(pool, replicas, spec.rebalance.gpu_budget) for pool in spec.pools),
        slo=Slo(ttft_s=slo.ttft_seconds, tpot_s=slo.tpot_seconds, attainment=slo.attainment),
        gpu_budget=spec.rebalance.gpu_budget,
    )


def _option(pool: PoolSpec, replicas: Mapping[str, int], budget: int) -> PoolOption:
    current = replicas.get(pool.name, len(pool.endpoints or ()))
    gpus = pool.gpus_per_replica or 0
    if pool.scale_target_ref is None:
        low, high, gpus = current, current, 0
    else:
        low = pool.min_replicas
        high = max(low, budget // max(gpus, 1) if pool.max_replicas is None else pool.max_replicas)
    return PoolOption(
        name=pool.name,
        profile=engine_profile_of(pool),
        role=Role(pool.role),
        models=frozenset(pool.models or ()),
        gpus_per_replica=gpus,
        min_replicas=low,
        max_replicas=high,
        current=current,
    )

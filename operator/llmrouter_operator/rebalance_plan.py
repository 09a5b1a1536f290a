"""What the plan of replicas is made of: what arrives, and what each pool has and may have. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.config import engine_profile_of
from llmrouter.domain import Role
from llmrouter.planning.demand import demand_of_mix
from llmrouter.planning.inputs import PlanInputs, PoolOption, Slo

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from llmrouter.planning.mix import TrafficMix
    from llmrouter.rebalance_specs import RebalanceSpec
    from llmrouter.resources import LLMRouterSpec, PoolSpec


def plan_inputs(
    spec: LLMRouterSpec,
    rebalance: RebalanceSpec,
    mixes: Mapping[str, TrafficMix],
    *,
    growth: float,
    declared: Mapping[str, int],
    fixed: Mapping[str, int],
    held: Collection[str],
) -> PlanInputs | None:
    """All that a plan is made of; ``None`` where too little is known of what arrives.

    ``growth`` is how many times as much is planned for, ``declared`` the replicas of pools with a scale target,
    ``fixed`` the instances of the others, ``held`` the pools that stay as they are.
    """
    found = [demand_of_mix(model, mix, times=growth) for model, mix in mixes.items()]
    demands = tuple(one for one in found if one is not None)
    if not demands:
        return None
    pools = [_movable(pool, rebalance, declared[pool.name], held) for pool in spec.pools if pool.name in declared]
    pools += [_fixed(pool, fixed[pool.name]) for pool in spec.pools if pool.name in fixed]
    slo = rebalance.slo
    return PlanInputs(
        demands=demands,
        pools=tuple(pools),
        slo=Slo(ttft_s=slo.ttft_seconds, tpot_s=slo.tpot_seconds, attainment=slo.attainment),
        gpu_budget=rebalance.gpu_budget,
    )


def _movable(pool: PoolSpec, rebalance: RebalanceSpec, current: int, held: Collection[str]) -> PoolOption:
    gpus = pool.gpus_per_replica or 1
    affordable = rebalance.gpu_budget // gpus
    least, most = pool.min_replicas, min(pool.max_replicas or affordable, affordable)
    if pool.name in held or most < least:
        least = most = current
    return _option(pool, current, gpus=gpus, least=least, most=most)


def _fixed(pool: PoolSpec, current: int) -> PoolOption:
    """A pool that nobody scales here; its GPUs are not of the budget."""
    return _option(pool, current, gpus=0, least=current, most=current)


def _option(pool: PoolSpec, current: int, *, gpus: int, least: int, most: int) -> PoolOption:
    return PoolOption(
        name=pool.name,
        profile=engine_profile_of(pool),
        role=Role(pool.role),
        models=frozenset(pool.models or ()),
        gpus_per_replica=gpus,
        min_replicas=least,
        max_replicas=most,
        current=current,
    )

"""What the plan of replicas is made of: what arrives, and what each pool has and may have. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.planning.declared import option_of, slo_of
from llmrouter.planning.demand import demand_of_mix
from llmrouter.planning.inputs import PlanInputs

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from llmrouter.planning.inputs import PoolOption
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
    return PlanInputs(
        demands=demands,
        pools=tuple(pools),
        slo=slo_of(rebalance),
        gpu_budget=rebalance.gpu_budget,
    )


def _movable(pool: PoolSpec, rebalance: RebalanceSpec, current: int, held: Collection[str]) -> PoolOption:
    gpus = pool.gpus_per_replica or 1
    affordable = rebalance.gpu_budget // gpus
    least, most = pool.min_replicas, min(pool.max_replicas or affordable, affordable)
    if pool.name in held or most < least:
        least = most = current
    return option_of(pool, current=current, gpus=gpus, least=least, most=most)


def _fixed(pool: PoolSpec, current: int) -> PoolOption:
    """A pool that nobody scales here; its GPUs are not of the budget."""
    return option_of(pool, current=current, gpus=0, least=current, most=current)

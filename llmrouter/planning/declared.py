"""What a plan is made of, as resources declare it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.config import engine_profile_of
from llmrouter.domain import Role
from llmrouter.planning.inputs import PoolOption, Slo

if TYPE_CHECKING:
    from llmrouter.rebalance_specs import RebalanceSpec
    from llmrouter.resources import PoolSpec


def option_of(pool: PoolSpec, *, current: int, gpus: int, least: int, most: int) -> PoolOption:
    """A declared pool with ``current`` replicas of so many ``gpus`` each, which may have from ``least`` to ``most``.

    Raises InvalidConfigError where there is no profile of its name.
    """
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


def slo_of(rebalance: RebalanceSpec) -> Slo:
    """``spec.rebalance.slo``."""
    slo = rebalance.slo
    return Slo(ttft_s=slo.ttft_seconds, tpot_s=slo.tpot_seconds, attainment=slo.attainment)

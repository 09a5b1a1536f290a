"""The answer of a plan, simulated with the very requests that it was made for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.routing.rules import Rule
from llmrouter.sim.model import EngineModel
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy, Setup
from llmrouter.study.figures import Slo, meets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmrouter.planning import inputs
    from llmrouter.sim.workload import Workload

WARM_UP_FRACTION = 0.25
COOL_DOWN_FRACTION = 0.1
"""Of the last requests the load is less than what is asked about."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of it: share of the requests within the SLO, TTFT that nine of ten had, mean time between tokens."""

    attainment: float
    ttft_p90_s: float
    tpot_s: float


def simulated(
    requests: Workload, pools: Sequence[inputs.PoolOption], replicas: Mapping[str, int], slo: inputs.Slo
) -> Simulated:
    """Requests placed by ``WorkloadImpact``, which foretells each model's mean; no prefix caches.

    Requests that have an instance for each stage go there in the way of ``sim``; what handing KV over takes is
    ``EngineModel``'s.
    """
    engines: list[EngineModel] = []
    serves: list[frozenset[str]] = []
    for pool in pools:
        engines += [EngineModel(pool.profile, role=pool.role)] * replicas[pool.name]
        serves += [pool.models or frozenset(requests.models)] * replicas[pool.name]
    setup = Setup(engines=tuple(engines), serves=tuple(serves))
    outcomes = simulate(setup, _foretold(requests), CompiledPolicy(rule=Rule.MARGINAL_COST, kv_fraction=1.0))
    order_N = np.argsort(outcomes.arrived_at_s, kind="stable")
    rows_N = order_N[int(len(order_N) * WARM_UP_FRACTION) : int(len(order_N) * (1.0 - COOL_DOWN_FRACTION))]
    good_N = meets(outcomes, Slo(slo.ttft_s, slo.tpot_s))[rows_N]
    gaps_N = outcomes.workload.output_tokens[rows_N] - 1
    spans_N = (outcomes.finished_at_s - outcomes.first_token_at_s)[rows_N]
    return Simulated(
        attainment=float(good_N.mean()),
        ttft_p90_s=float(np.nanquantile(outcomes.ttft_s[rows_N], 0.9)),
        tpot_s=float(np.nansum(spans_N) / max(int(gaps_N.sum()), 1)),
    )


def _foretold(requests: Workload) -> Workload:
    """Every answer is expected to have its model's mean length."""
    means = [
        requests.output_tokens[requests.model == place].mean() if (requests.model == place).any() else 1.0
        for place in range(len(requests.models))
    ]
    return replace(requests, predicted_output_tokens=np.array(means)[requests.model])

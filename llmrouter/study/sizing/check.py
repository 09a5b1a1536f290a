"""The answer of a plan, simulated with the very requests that it was made for."""

from __future__ import annotations

from dataclasses import replace
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

WARM_UP_FRACTION = 0.1
COOL_DOWN_FRACTION = 0.1
"""Of the last requests the load is less than what is asked about."""


def simulated_attainment(
    requests: Workload, pools: Sequence[inputs.PoolOption], replicas: Mapping[str, int], slo: inputs.Slo
) -> float:
    """Share of the requests that meet the SLO when ``WorkloadImpact`` places them and foretells each model's mean."""
    engines: list[EngineModel] = []
    serves: list[frozenset[str]] = []
    for pool in pools:
        engines += [EngineModel(pool.profile, role=pool.role)] * replicas[pool.name]
        serves += [pool.models or frozenset(requests.models)] * replicas[pool.name]
    means = np.array(
        [
            requests.output_tokens[requests.model == place].mean() if (requests.model == place).any() else 1.0
            for place in range(len(requests.models))
        ]
    )
    told = replace(requests, predicted_output_tokens=means[requests.model])
    setup = Setup(engines=tuple(engines), serves=tuple(serves))
    outcomes = simulate(setup, told, CompiledPolicy(rule=Rule.MARGINAL_COST, kv_fraction=1.0))
    order_N = np.argsort(outcomes.arrived_at_s, kind="stable")
    count = len(order_N)
    counted_N = np.zeros(count, bool)
    counted_N[order_N[int(count * WARM_UP_FRACTION) : int(count * (1.0 - COOL_DOWN_FRACTION))]] = True
    return float(meets(outcomes, Slo(slo.ttft_s, slo.tpot_s))[counted_N].mean())

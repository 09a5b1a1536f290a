"""How good an agent is: figures of episodes, against round-robin on the same requests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.routing.rules import Rule
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy
from llmrouter.training.agents.environment import TICK_S, Decider, Environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.sim.outcomes import Outcomes

LAST = 40
"""Requests whose mean finish time stands for the makespan while learning: the last one's alone is mostly noise."""

ROUND_ROBIN = CompiledPolicy(rule=Rule.ROUND_ROBIN, max_requests=1_000_000_000)


@dataclass(frozen=True, slots=True)
class Judged:
    """Of a few episodes: mean changes against round-robin in percent, and totals per episode."""

    makespan_pct: float
    e2e_pct: float
    preemptions: float
    unfinished: float


def late_finish_s(outcomes: Outcomes) -> float:
    """Mean finish time of the last ``LAST`` requests; the last finish where fewer finished."""
    finished_s = np.sort(outcomes.finished_at_s[outcomes.finished])
    return float(finished_s[-LAST:].mean()) if len(finished_s) else float("inf")


def cost_of(outcomes: Outcomes, base: Outcomes) -> float:
    """``½·ln(late finish) + ½·ln(mean E2E)``, both against ``base``: what evolution strategies minimise.

    Requests that did not finish count as if they had when the episode was cut.
    """
    ratio = late_finish_s(outcomes) / late_finish_s(base)
    return 0.5 * float(np.log(ratio)) + 0.5 * float(np.log(mean_e2e_s(outcomes) / base.e2e_s.mean()))


def mean_e2e_s(outcomes: Outcomes) -> float:
    """Mean E2E; a request that did not finish counts up to the last finish and 300 s more."""
    if not outcomes.finished.any():
        return float("inf")
    end_s = np.nanmax(outcomes.finished_at_s) + 300.0
    finished_s = np.where(outcomes.finished, outcomes.finished_at_s, end_s)
    return float((finished_s - outcomes.arrived_at_s).mean())


@lru_cache(maxsize=1_024)
def round_robin(environment: Environment, seed: int) -> Outcomes:
    """Round-robin on the requests of a seed, acting every 20 ms as the paper's does."""
    paced = replace(environment, tick_s=TICK_S)
    return simulate(paced.setup, paced.workload(seed), ROUND_ROBIN, seed=seed)


def judge(environment: Environment, decider: Decider, seeds: Sequence[int]) -> Judged:
    """An agent on a few seeds."""
    rows = []
    for seed in seeds:
        outcomes, base = environment.play(decider, seed).outcomes, round_robin(environment, seed)
        makespan_s = outcomes.makespan_s if outcomes.finished.any() else float("inf")
        rows.append(
            (
                100.0 * (makespan_s / base.makespan_s - 1.0),
                100.0 * (mean_e2e_s(outcomes) / float(base.e2e_s.mean()) - 1.0),
                float(outcomes.preemptions.sum()),
                float((~outcomes.finished).sum()),
            )
        )
    return Judged(*(float(value) for value in np.mean(rows, axis=0)))

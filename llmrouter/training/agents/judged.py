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

    from numpy.typing import NDArray

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

    @property
    def score(self) -> float:
        """Checkpoints are chosen by it, the lowest: the mean of both changes, and 100 for each unfinished request."""
        return 0.5 * (self.makespan_pct + self.e2e_pct) + 100.0 * self.unfinished

    @property
    def said(self) -> str:
        """In a sentence."""
        return (
            f"on the validation seeds against round-robin: makespan {self.makespan_pct:+.2f} %, mean E2E "
            f"{self.e2e_pct:+.2f} %, {self.preemptions:.0f} preemptions, {self.unfinished:g} unfinished"
        )

    @property
    def short(self) -> str:
        """In a word."""
        return f"E2E {self.e2e_pct:+.1f} %"


@dataclass(frozen=True, slots=True)
class Front:
    """Of the product's network on its validation tasks: mean changes against the default rule, 100·ln of the ratio.

    ``worth_pct`` is what the tasks' preferences make of them; checkpoints are chosen by it, the lowest.
    """

    ttft_pct: float
    tpot_pct: float
    e2e_pct: float
    fairness_pct: float
    worth_pct: float

    @property
    def score(self) -> float:
        """``worth_pct``."""
        return self.worth_pct

    @property
    def said(self) -> str:
        """In a sentence."""
        return (
            f"on the validation tasks against the default rule, by their preferences: {self.worth_pct:+.2f} % (TTFT "
            f"tail {self.ttft_pct:+.1f}, TPOT tail {self.tpot_pct:+.1f}, mean E2E {self.e2e_pct:+.1f}, slowdown tail "
            f"{self.fairness_pct:+.1f})"
        )

    @property
    def short(self) -> str:
        """In a word."""
        return f"worth {self.worth_pct:+.2f} %"


def ends_s(outcomes: Outcomes, cut_s: float = 300.0) -> NDArray[np.float64]:
    """When each request finished; one that did not: ``cut_s`` after the last arrival, or the last finish if later."""
    finished_s = np.where(outcomes.finished, outcomes.finished_at_s, 0.0)
    cut_at_s = max(float(outcomes.workload.arrived_at_s.max()) + cut_s, float(finished_s.max()))
    return np.where(outcomes.finished, finished_s, cut_at_s)


def makespan_s(outcomes: Outcomes) -> float:
    """First arrival to last end; see ``ends_s``."""
    return float(ends_s(outcomes).max() - outcomes.workload.arrived_at_s.min())


def mean_e2e_s(outcomes: Outcomes) -> float:
    """Mean time from arrival to end; see ``ends_s``."""
    return float((ends_s(outcomes) - outcomes.workload.arrived_at_s).mean())


def cost_of(outcomes: Outcomes, base: Outcomes) -> float:
    """``½·ln(late finish) + ½·ln(mean E2E)``, both against ``base``: what evolution strategies minimise.

    The late finish is the mean end of the last ``LAST`` requests to end.
    """
    late_s, late_base_s = (float(np.sort(ends_s(one))[-LAST:].mean()) for one in (outcomes, base))
    return 0.5 * float(np.log(late_s / late_base_s)) + 0.5 * float(np.log(mean_e2e_s(outcomes) / mean_e2e_s(base)))


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
        rows.append(
            (
                100.0 * (makespan_s(outcomes) / makespan_s(base) - 1.0),
                100.0 * (mean_e2e_s(outcomes) / mean_e2e_s(base) - 1.0),
                float(outcomes.preemptions.sum()),
                float((~outcomes.finished).sum()),
            )
        )
    return Judged(*(float(value) for value in np.mean(rows, axis=0)))

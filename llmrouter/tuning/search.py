"""The search: CMA-ES over a policy's numbers, then one choice among what it found, on windows it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from cmaes import CMA

from llmrouter.tuning.judgement import penalised
from llmrouter.tuning.parameters import bounds_of, policy_at, steps_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from llmrouter.resources import RoutingPolicySpec
    from llmrouter.tuning.judgement import Objective
    from llmrouter.tuning.parameters import Parameter
    from llmrouter.tuning.runs import Runs

POPULATION = 12
WINDOWS = 4
"""Windows of a generation: the same for all its policies, others for the next generation."""

CHOICE_WINDOWS = 12
"""Windows on which the policy to be judged is chosen."""

SIGMA = 0.5
"""First deviation on the scale of ``Parameter``: far above ``near`` a factor of 1.6."""

NO_DIFFERENCE = 0.0005
"""ln of the objective by which a number may matter and still go back to where the search began: 0.05 %."""

TRUST_SIGMA = 0.15
TRUST_RADIUS = 0.5
"""An update stays within so many steps of the policy it begins with: a factor of 1.6 either way."""

SEARCH_SHARE = 0.8
"""Of the budget, what the search may use; choice and verdict need the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a search goes about it.

    Attributes:
        objective: what is made small, with ``judgement.penalised``.
        generations: at most …
        budget_s: … and for so long at most, choice and verdict included, as far as they can be foretold.
        seed: of the search's own chance.
        is_update: whether steps are small and stay near the beginning.
    """

    objective: Objective
    generations: int
    budget_s: float
    seed: int
    is_update: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search came to.

    Attributes:
        policy: the best of its candidates on the windows of the choice.
        origin: what that candidate is: ``mean``, ``half way`` or the name of a preset.
        value: its penalised objective there, ln; below 0 is better than the current policy.
        curve: penalised objective of the best policy of each generation, on that generation's own windows.
        runs: simulated runs.
        is_cut: whether the budget ended the search before its last generation.
    """

    policy: RoutingPolicySpec
    origin: str
    value: float
    curve: tuple[float, ...]
    runs: int
    is_cut: bool


def search(
    runs: Runs,
    plan: Plan,
    *,
    current: RoutingPolicySpec,
    start: RoutingPolicySpec,
    searched: Sequence[Parameter],
    others: Sequence[tuple[str, RoutingPolicySpec]],
    seeds: Sequence[int],
    clock: Callable[[], float],
    on_done: Callable[[int], None],
) -> Found:
    """Looks for a better policy than the current one on training windows.

    Args:
        runs: what runs policies.
        plan: see ``Plan``.
        current: what everything is compared with, window by window.
        start: where the search begins; what is not searched is this policy's.
        searched: the numbers.
        others: named policies that are candidates besides.
        seeds: of training windows: ``WINDOWS`` for each generation and ``CHOICE_WINDOWS``, none twice.
        clock: seconds; read between generations.
        on_done: told of every run.
    """
    begun_s = clock()
    first_P = steps_of(start, searched)
    optimiser = _optimiser(first_P, searched, plan)
    curve: list[float] = []
    count, slowest_s, is_cut = 0, 0.0, False
    for generation in range(plan.generations):
        round_s = clock()
        if generation and round_s - begun_s + slowest_s > SEARCH_SHARE * plan.budget_s:
            is_cut = True
            break
        asked = [optimiser.ask() for _ in range(optimiser.population_size)]
        policies = [current, *(policy_at(start, searched, steps_P) for steps_P in asked)]
        windows = seeds[generation * WINDOWS : (generation + 1) * WINDOWS]
        base, *found = runs.figures(policies, windows, on_done=on_done)
        values = [penalised(plan.objective, one, base) for one in found]
        optimiser.tell(list(zip(asked, values, strict=True)))
        curve.append(min(values))
        count += len(policies) * len(windows)
        slowest_s = max(slowest_s, clock() - round_s)
    mean_P: NDArray[np.float64] = optimiser.mean
    tried = [("mean", mean_P), ("half way", (first_P + mean_P) / 2)]
    candidates = [*((name, policy_at(start, searched, steps_P)) for name, steps_P in tried), *others]
    choice = _Choice(runs, plan, current, seeds[plan.generations * WINDOWS :][:CHOICE_WINDOWS], on_done)
    values = choice.values([policy for _, policy in candidates])
    best = int(np.argmin(values))
    policy, value = candidates[best][1], values[best]
    if best < len(tried):
        policy, value = _plainer(choice, policy, value, first_P=first_P, searched=searched)
    return Found(
        policy=policy,
        origin=candidates[best][0],
        value=value,
        curve=tuple(curve),
        runs=count + choice.runs,
        is_cut=is_cut,
    )


class _Choice:
    """Penalised objectives on the windows of the choice, which are the same for all who are compared."""

    def __init__(
        self,
        runs: Runs,
        plan: Plan,
        current: RoutingPolicySpec,
        seeds: Sequence[int],
        on_done: Callable[[int], None],
    ) -> None:
        self._runs, self._plan, self._seeds, self._on_done = runs, plan, seeds, on_done
        (self._base,) = runs.figures([current], seeds, on_done=on_done)
        self.runs = len(seeds)

    def values(self, policies: Sequence[RoutingPolicySpec]) -> list[float]:
        found = self._runs.figures(policies, self._seeds, on_done=self._on_done)
        self.runs += len(policies) * len(self._seeds)
        return [penalised(self._plan.objective, one, self._base) for one in found]


def _plainer(
    choice: _Choice,
    policy: RoutingPolicySpec,
    value: float,
    *,
    first_P: NDArray[np.float64],
    searched: Sequence[Parameter],
) -> tuple[RoutingPolicySpec, float]:
    """The policy with those numbers back where the search began that make no difference, and its value.

    What never mattered on this traffic has moved by chance, and may matter on other traffic.
    """
    steps_P = steps_of(policy, searched)
    places = range(len(searched))
    alone = [policy_at(policy, searched, np.where(np.arange(len(searched)) == p, first_P, steps_P)) for p in places]
    idle_P = np.array(choice.values(alone)) <= value + NO_DIFFERENCE
    if not idle_P.any():
        return policy, value
    together = policy_at(policy, searched, np.where(idle_P, first_P, steps_P))
    (found,) = choice.values([together])
    return (together, found) if found <= value + NO_DIFFERENCE else (policy, value)


def runs_of(plan: Plan, others: int, searched: int) -> int:
    """How many runs a search makes at most."""
    return plan.generations * (POPULATION + 1) * WINDOWS + (4 + others + searched) * CHOICE_WINDOWS


def _optimiser(first_P: NDArray[np.float64], searched: Sequence[Parameter], plan: Plan) -> CMA:
    bounds_P2 = bounds_of(searched)
    if plan.is_update:
        bounds_P2 = np.stack(
            [
                np.maximum(bounds_P2[:, 0], first_P - TRUST_RADIUS),
                np.minimum(bounds_P2[:, 1], first_P + TRUST_RADIUS),
            ],
            axis=1,
        )
    sigma = TRUST_SIGMA if plan.is_update else SIGMA
    return CMA(mean=first_P, sigma=sigma, bounds=bounds_P2, seed=plan.seed, population_size=POPULATION)

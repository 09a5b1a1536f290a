"""Evolution strategies: one small network shared by all instances, and a head for hold, from scratch.

OpenAI's evolution strategies (Salimans et al., arXiv 1703.03864) with antithetic candidates and centred ranks. All
candidates of a generation meet the same requests, so that what differs between them is what they decided. The objective
is the mean of ln makespan (smoothed) and ln mean E2E, both against round-robin: see ``judged.cost_of``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.training.agents import rollout
from llmrouter.training.agents.environment import Decider, Environment
from llmrouter.training.agents.judged import cost_of, round_robin
from llmrouter.training.agents.learning import TRAINING_SEEDS, Learned, OnPoint, course_in, nobody
from llmrouter.training.agents.network import HOLD_SHAPE, SCORE_SHAPE

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Recipe:
    """Numbers of the learner."""

    candidates: int = 24
    seeds_per_generation: int = 2
    sigma: float = 0.1
    step: float = 0.06
    judge_every: int = 10
    """Generations between two points of the curve."""


def train(
    *,
    seed: int,
    episodes: int = 4_800,
    environment: Environment | None = None,
    recipe: Recipe | None = None,
    on_point: OnPoint = nobody,
) -> Learned:
    """Learns from ``episodes`` episodes; the same arguments give the same agent."""
    environment, recipe = environment or Environment(), recipe or Recipe()
    rng = np.random.default_rng([seed, 1])
    weights_W = np.concatenate(
        [SCORE_SHAPE.first_weights(rng, last_scale=0.5), HOLD_SHAPE.first_weights(rng, last_scale=0.5)]
    )
    adam = Adam(len(weights_W), recipe.step)
    per_generation = recipe.candidates * recipe.seeds_per_generation
    generations = max(1, episodes // per_generation)
    course = course_in(environment, _decider(weights_W))
    for generation in range(1, generations + 1):
        seeds = rng.choice(TRAINING_SEEDS, recipe.seeds_per_generation, replace=False).tolist()
        noise_CW = rng.standard_normal((recipe.candidates // 2, len(weights_W)))
        noise_CW = np.concatenate([noise_CW, -noise_CW])
        costs_C = np.array([_cost(environment, weights_W + recipe.sigma * noise_W, seeds) for noise_W in noise_CW])
        slope_W = centred_ranks(costs_C) @ noise_CW / (len(noise_CW) * recipe.sigma)
        weights_W = weights_W - adam.change(slope_W)
        point = None
        if generation % recipe.judge_every == 0 or generation == generations:
            point = course.look(generation * per_generation, _decider(weights_W))
        on_point(generation * per_generation, point, weights_W)
    return course.learned("evolution", "makespan-e2e", seed=seed, episodes=generations * per_generation)


def _decider(weights_W: NDArray[np.float64]) -> Decider:
    return Decider(rollout.SHARED, weights_W)


def _cost(environment: Environment, weights_W: NDArray[np.float64], seeds: list[int]) -> float:
    """Mean cost of a candidate; an episode is cut early where it is far worse than round-robin."""
    hurried = replace(environment, cut_s=150.0)
    return float(
        np.mean(
            [
                cost_of(hurried.play(_decider(weights_W), seed).outcomes, round_robin(environment, seed))
                for seed in seeds
            ]
        )
    )


def centred_ranks(costs_C: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from −½ (least) to ½."""
    ranks_C: NDArray[np.float64] = np.argsort(np.argsort(costs_C, kind="stable"), kind="stable") / (len(costs_C) - 1)
    return ranks_C - 0.5


class Adam:
    """Adam (Kingma and Ba, 2015)."""

    def __init__(self, count: int, step: float, momentum: float = 0.9, momentum_squared: float = 0.99) -> None:
        self._step, self._momenta = step, (momentum, momentum_squared)
        self._mean_W, self._square_W, self._steps = np.zeros(count), np.zeros(count), 0

    def change(self, slope_W: NDArray[np.float64]) -> NDArray[np.float64]:
        """What to subtract from the weights."""
        first, second = self._momenta
        self._steps += 1
        self._mean_W = first * self._mean_W + (1 - first) * slope_W
        self._square_W = second * self._square_W + (1 - second) * slope_W**2
        mean_W, square_W = self._mean_W / (1 - first**self._steps), self._square_W / (1 - second**self._steps)
        return self._step * mean_W / (np.sqrt(square_W) + 1e-8)

"""The product's learned policy: one network for any pool and any preferences, by evolution strategies.

Evolution strategies (Salimans et al., arXiv 1703.03864) with antithetic candidates: all candidates of a generation play
the same tasks, and are ranked on each by itself, so that a task of large changes weighs no more than another. It begins
as the default rule, and what it is compared with is that rule on the same requests (``product_tasks``). The
preferences are drawn with the task and told to the network: one set of weights for the whole front (the idea of GMORL).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.training.agents import product_network, product_tasks, rollout
from llmrouter.training.agents.environment import Decider
from llmrouter.training.agents.evolution import Adam, centred_ranks
from llmrouter.training.agents.judged import Front
from llmrouter.training.agents.learning import TRAINING_SEEDS, Course, Learned, OnPoint, nobody

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.training.agents.product_tasks import Task

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Numbers of the learner."""

    candidates: int = 24
    tasks_per_generation: int = 4
    sigma: float = 0.1
    step: float = 0.05
    last_step: float = 0.2
    """Share of the step that is left at the end; it falls evenly."""

    hold_bias: float = -2.0
    judge_every: int = 20
    """Generations between two points of the curve."""


class Judge:
    """Changes of networks against the default rule on tasks."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self._base = [product_tasks.figures_of(task, product_tasks.play_rule(task)) for task in tasks]

    def changes(self, weights_W: Floats) -> Floats:
        """ln(figure / the rule's) for each task, shape (tasks, 4)."""
        decider = decider_of(weights_W)
        return np.array(
            [
                np.log(product_tasks.figures_of(task, product_tasks.play_network(task, decider)) / base)
                for task, base in zip(self.tasks, self._base, strict=True)
            ]
        )

    def worths(self, weights_W: Floats) -> Floats:
        """``product_tasks.worth`` for each task; lower is better."""
        return self._worths(self.changes(weights_W))

    def front(self, decider: Decider) -> Front:
        """Means over the tasks, in percent."""
        changes = self.changes(decider.weights)
        ttft, tpot, e2e, fairness = (100.0 * changes.mean(axis=0)).tolist()
        return Front(ttft, tpot, e2e, fairness, 100.0 * float(self._worths(changes).mean()))

    def _worths(self, changes: Floats) -> Floats:
        pairs = zip(changes, self.tasks, strict=True)
        return np.array([product_tasks.worth(row, task.preferences) for row, task in pairs])


@lru_cache(maxsize=1)
def validation() -> Judge:
    """By which a checkpoint is chosen: tasks of the beginning of the selection block."""
    return Judge(product_tasks.validation_tasks())


def train(
    *,
    seed: int,
    episodes: int,
    recipe: Recipe | None = None,
    judge: Judge | None = None,
    on_point: OnPoint = nobody,
) -> Learned:
    """Learns from ``episodes`` runs; the same arguments give the same network. ``judge`` stands in for validation."""
    recipe = recipe or Recipe()
    rng = np.random.default_rng([seed, 201])
    weights_W = first_weights(rng, recipe)
    adam = Adam(len(weights_W), recipe.step)
    per_generation = recipe.candidates * recipe.tasks_per_generation
    generations = max(1, episodes // per_generation)
    course = Course((judge or validation()).front, decider_of(weights_W))
    for generation in range(1, generations + 1):
        seeds = rng.choice(TRAINING_SEEDS, recipe.tasks_per_generation, replace=False).tolist()
        drawn = Judge([product_tasks.draw(rng, one) for one in seeds])
        noise_CW = rng.standard_normal((recipe.candidates // 2, len(weights_W)))
        noise_CW = np.concatenate([noise_CW, -noise_CW])
        worths_CT = np.array([drawn.worths(weights_W + recipe.sigma * noise_W) for noise_W in noise_CW])
        ranks_C = np.mean([centred_ranks(worths_C) for worths_C in worths_CT.T], axis=0)
        share = 1.0 - (1.0 - recipe.last_step) * (generation - 1) / generations
        weights_W = weights_W - share * adam.change(ranks_C @ noise_CW / (len(noise_CW) * recipe.sigma))
        point = None
        if generation % recipe.judge_every == 0 or generation == generations:
            point = course.look(generation * per_generation, decider_of(weights_W))
        on_point(generation * per_generation, point, weights_W)
    return course.learned("learned", "preferences", seed=seed, episodes=generations * per_generation)


def decider_of(weights_W: Floats) -> Decider:
    """Who decides by such weights; the preferences are the task's."""
    return Decider(rollout.PRODUCT, weights_W)


def first_weights(rng: np.random.Generator, recipe: Recipe) -> Floats:
    """The default rule that never holds: weights of the terms as usual, a hold network of small random numbers."""
    inputs, hidden = product_network.HOLD_INPUTS, product_network.HOLD_HIDDEN
    hold_W = np.concatenate(
        [
            rng.standard_normal(inputs * hidden) / np.sqrt(inputs),
            np.zeros(hidden),
            0.3 * rng.standard_normal(hidden),
            [recipe.hold_bias],
        ]
    )
    return np.concatenate([np.zeros(product_network.HOLD_AT), hold_W])

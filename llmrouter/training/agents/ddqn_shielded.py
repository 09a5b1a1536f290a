"""Double DQN with a shield: the paper's network and state, at decision epochs, allowed only what the KV gate allows.

What the literal agent lacks: the shield; a reward in seconds whose noise is below the gap between actions; hold as an
option that lasts 100 ms. The paper's three rewards are expressed in these terms (``rewards.shielded``); ``marginal`` is
the recipe that works best.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.training.agents import rewards, rollout
from llmrouter.training.agents.double_q import Learner, Memory, Recipe
from llmrouter.training.agents.environment import Decider, Environment
from llmrouter.training.agents.learning import TRAINING_SEEDS, Learned, OnPoint, course_in, nobody
from llmrouter.training.agents.network import paper_shape
from llmrouter.training.agents.rewards import Reward

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Settings:
    """Numbers of the learner."""

    recipe: Recipe = field(default_factory=lambda: Recipe(learning_rate=5e-4, polyak=0.005))
    remembered: int = 25
    """Episodes in the memory."""
    explored: int = 20
    """Episodes over which ε falls from 1 to ``last_epsilon``."""
    last_epsilon: float = 0.03
    judge_every: int = 5


def train(
    *,
    seed: int,
    reward: Reward = Reward.MARGINAL,
    episodes: int = 60,
    environment: Environment | None = None,
    settings: Settings | None = None,
    on_point: OnPoint = nobody,
) -> Learned:
    """Learns from ``episodes`` episodes; the same arguments give the same agent."""
    environment, settings = environment or Environment(), settings or Settings()
    rng = np.random.default_rng([seed, 2])
    learner = Learner(paper_shape(environment.instances), settings.recipe, rng)
    memory = Memory(settings.remembered, environment.instances)
    course = course_in(environment, _decider(learner.weights))
    for episode in range(episodes):
        explored = min(1.0, episode / settings.explored)
        epsilon = 1.0 + explored * (settings.last_epsilon - 1.0)
        steps = environment.steps(_decider(learner.weights, epsilon), int(rng.choice(TRAINING_SEEDS)))
        memory.add(steps, rewards.shielded(steps, reward, episode))
        learner.update(memory.draw(settings.recipe, rng, permuted=True))
        point = None
        if (episode + 1) % settings.judge_every == 0 or episode + 1 == episodes:
            point = course.look(episode + 1, _decider(learner.weights))
        on_point(episode + 1, point, learner.weights)
    return course.learned("ddqn-shielded", reward.value, seed=seed, episodes=episodes)


def _decider(weights_W: NDArray[np.float64], epsilon: float = 0.0) -> Decider:
    return Decider(rollout.SHIELDED, weights_W, epsilon)

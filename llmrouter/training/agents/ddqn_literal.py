"""Double DQN as literally as the paper allows: an action every 20 ms, no shield, its three rewards.

Printed: the network 27-64-64-5 with ReLU, Double DQN, batches of 512, no exploration after episode 20, the rewards and
how the guide fades. Inferred, because it is not printed: discount 0.999 per tick (below it nothing beyond 2 s counts),
Adam with 1e-3, 400 updates an episode, a memory of 25 episodes, a target that follows by 0.005 per update, ε from 1 to
0 in a straight line over the 20 episodes, the scale of states and rewards, Huber's loss, and that the checkpoint that
does best on requests of its own is kept. An episode that does not end is cut (``Environment.cut_s``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.training.agents import rewards, rollout
from llmrouter.training.agents.double_q import Learner, Memory, Recipe
from llmrouter.training.agents.environment import TICK_S, Decider, Environment
from llmrouter.training.agents.learning import TRAINING_SEEDS, Learned, OnPoint, course_in, nobody
from llmrouter.training.agents.network import paper_shape
from llmrouter.training.agents.rewards import Reward

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Settings:
    """Numbers of the learner."""

    recipe: Recipe = field(default_factory=lambda: Recipe(learning_rate=1e-3, polyak=0.005, updates=400))
    remembered: int = 25
    """Episodes in the memory."""
    explored: int = 20
    """Episodes over which ε falls from 1 to 0."""
    judge_every: int = 5


def train(
    *,
    seed: int,
    reward: Reward = Reward.GUIDED,
    episodes: int = 60,
    environment: Environment | None = None,
    settings: Settings | None = None,
    on_point: OnPoint = nobody,
) -> Learned:
    """Learns from ``episodes`` episodes; the same arguments give the same agent."""
    environment, settings = environment or Environment(tick_s=TICK_S), settings or Settings()
    rng = np.random.default_rng([seed, 3])
    learner = Learner(paper_shape(environment.instances), settings.recipe, rng)
    memory = Memory(settings.remembered, environment.instances)
    course = course_in(environment, _decider(learner.weights))
    for episode in range(episodes):
        epsilon = max(0.0, 1.0 - episode / settings.explored)
        steps = environment.steps(_decider(learner.weights, epsilon), int(rng.choice(TRAINING_SEEDS)))
        memory.add(steps, rewards.literal(steps, reward, episode, environment.tick_s))
        learner.update(memory.draw(settings.recipe, rng, permuted=False))
        point = None
        if (episode + 1) % settings.judge_every == 0 or episode + 1 == episodes:
            point = course.look(episode + 1, _decider(learner.weights))
        on_point(episode + 1, point, learner.weights)
    return course.learned("ddqn-literal", reward.value, seed=seed, episodes=episodes)


def _decider(weights_W: NDArray[np.float64], epsilon: float = 0.0) -> Decider:
    return Decider(rollout.PER_TICK, weights_W, epsilon)

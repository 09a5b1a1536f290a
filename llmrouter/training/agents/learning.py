"""What all learners share: which seeds are for what, how they say how far they are, and what they hand back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.training.agents.judged import judge

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llmrouter.training.agents.environment import Decider, Environment
    from llmrouter.training.agents.judged import Front, Judged

TRAINING_SEEDS = range(1_000)
"""Requests to learn from: the benchmark's training block."""

VALIDATION_SEEDS = range(1_000, 1_008)
"""Requests by which a checkpoint is chosen: the beginning of its selection block."""


@dataclass(frozen=True, slots=True)
class Point:
    """Of a curve: how an agent is doing on the validation seeds after so many episodes of training."""

    episodes: int
    judged: Judged | Front


@dataclass(frozen=True, slots=True)
class Learned:
    """An agent, where it was best, and how it got there."""

    learner: str
    reward: str
    seed: int
    decider: Decider
    tick_s: float
    episodes: int
    best: Point
    curve: tuple[Point, ...]


class Course:
    """How an agent fares while it learns: its points on what it is judged by, and the agent where it was best."""

    def __init__(self, judge: Callable[[Decider], Judged | Front], decider: Decider, *, tick_s: float = 0.0) -> None:
        self._judge = judge
        self._tick_s = tick_s
        self._decider = decider
        self._best = self._point(0, decider)
        self._curve = [self._best]

    def look(self, episodes: int, decider: Decider) -> Point:
        """The agent after so many episodes; kept where it is better than all before."""
        point = self._point(episodes, decider)
        self._curve.append(point)
        if point.judged.score < self._best.judged.score:
            self._best, self._decider = point, decider
        return point

    def learned(self, learner: str, reward: str, *, seed: int, episodes: int) -> Learned:
        """What the learner hands back."""
        return Learned(
            learner=learner,
            reward=reward,
            seed=seed,
            decider=self._decider,
            tick_s=self._tick_s,
            episodes=episodes,
            best=self._best,
            curve=tuple(self._curve),
        )

    def _point(self, episodes: int, decider: Decider) -> Point:
        return Point(episodes, self._judge(decider))


def course_in(environment: Environment, decider: Decider) -> Course:
    """The course of an agent that is judged on the validation seeds of an environment."""
    return Course(lambda one: judge(environment, one, VALIDATION_SEEDS), decider, tick_s=environment.tick_s)


OnPoint = Callable[[int, "Point | None", "NDArray[np.float64]"], None]
"""Told after every episode or generation: episodes done, a point where there is a new one, the weights now."""


def nobody(_episodes: int, _point: Point | None, _weights: NDArray[np.float64]) -> None:
    """Listens to no learner."""

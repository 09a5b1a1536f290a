"""The rewards: the paper's three as it prints them, and in the terms of the shielded agent.

r_mix of an instance is minus the penalty of mixing there. Hold has none. h = r_mix(chosen) − max r_mix ≤ 0 is the guide
of heuristic-guided reinforcement learning (Cheng et al., 2021), h(hold) = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrouter.training.agents.environment import Steps

    Floats = NDArray[np.float64]

COMPLETION_REWARD = 60.0
LITERAL_SCALE = 0.01
"""The paper's rewards times this, so that values are of a size that a network fits; no optimal action changes."""

TICK_DISCOUNT = 0.999
"""Of 20 ms. Not printed: below it nothing beyond two seconds counts."""

HORIZON_S = 3.0
"""Of the shielded agent: discount exp(−dt/3 s)."""

MOST_HOLD_S = 0.12
GUIDE_DECAY = 0.5


class Reward(StrEnum):
    """The paper's three, and ``MARGINAL``, which the shielded agent alone knows: all costs, against the least."""

    BASELINE = "baseline"
    AWARE = "aware"
    GUIDED = "guided"
    MARGINAL = "marginal"


@dataclass(frozen=True, slots=True)
class Transitions:
    """Decisions with what followed each: reward (T,), discount of the next state's value (T,), 0 after the last."""

    reward: Floats
    discount: Floats


def literal(steps: Steps, reward: Reward, episode: int, tick_s: float) -> Transitions:
    """The paper's rewards over ticks.

    ``r_t = −Σ_j (1 − generated_j/predicted_j) + 60 per completion`` over all requests in the system, + r_mix(chosen) if
    aware, + λ_k·h if guided, λ_k = γ·exp(−k/2) and discount γ·(1 − exp(−k/2)) in episode k. Inferred: a request that
    generates more than predicted counts 0; ticks without a held request ask for no action, and the sum stands until
    the next that does; the discount of a span is that of a tick to the power of its ticks.
    """
    ticks_T = np.maximum(1.0, np.round(_following(steps.at_s, steps.end_s) / tick_s))
    completed_T = _following(steps.ended, steps.ended_at_end)
    reward_T = COMPLETION_REWARD * completed_T - steps.unfinished * ticks_T
    mixing_T = _chosen(steps, steps.mixing_s)
    share = 0.0
    if reward is Reward.AWARE:
        reward_T = reward_T - mixing_T
    elif reward is Reward.GUIDED:
        share = math.exp(-GUIDE_DECAY * episode)
        reward_T = reward_T - TICK_DISCOUNT * share * (mixing_T - _least(steps, steps.mixing_s))
    discount_T = (TICK_DISCOUNT * (1.0 - share)) ** ticks_T
    return _ended(LITERAL_SCALE * reward_T, discount_T)


def shielded(steps: Steps, reward: Reward, episode: int) -> Transitions:
    """The rewards of dispatching to a, and of holding, in seconds; dt is the time to the next decision.

    ::

        marginal   −(own + imposed + 2·coalesce)(a) + min over allowed of (own + imposed)
        baseline   −own(a) + min own                                        no charge for mixing
        aware      baseline − (imposed + 2·coalesce)(a)                     the charge as it is
        guided     baseline − λ_k·((imposed + 2·coalesce)(a) − min of it)   the guide, and it fades
        hold       −held · min(dt, 0.12 s)                                  in all four

    The mixing penalty is the marginal cost's: the paper's in true seconds. Discounts are exp(−dt/3 s), times
    1 − exp(−k/2) if guided.
    """
    dt_T = _following(steps.at_s, steps.end_s)
    mixing_TI = steps.imposed_s + 2.0 * steps.coalesce_s
    own_T, mixing_T = _chosen(steps, steps.own_s), _chosen(steps, mixing_TI)
    reward_T = _least(steps, steps.own_s) - own_T
    share = 0.0
    if reward is Reward.MARGINAL:
        reward_T = _least(steps, steps.own_s + steps.imposed_s) - own_T - mixing_T
    elif reward is Reward.AWARE:
        reward_T = reward_T - mixing_T
    elif reward is Reward.GUIDED:
        share = math.exp(-GUIDE_DECAY * episode)
        reward_T = reward_T - share * (mixing_T - _least(steps, mixing_TI))
    reward_T = np.where(_held(steps), -steps.held * np.minimum(dt_T, MOST_HOLD_S), reward_T)
    return _ended(reward_T, (1.0 - share) * np.exp(-dt_T / HORIZON_S))


def _following(values: Floats, end: float) -> Floats:
    """What a quantity gained until the next decision, or until the end."""
    return np.diff(values, append=end)


def _held(steps: Steps) -> NDArray[np.bool_]:
    return np.equal(steps.action, steps.own_s.shape[1])


def _chosen(steps: Steps, costs_TI: Floats) -> Floats:
    """The cost of the chosen instance; where it was hold, 0."""
    padded = np.concatenate([costs_TI, np.zeros((len(steps), 1))], axis=1)
    return np.asarray(np.take_along_axis(padded, steps.action[:, None], axis=1)[:, 0])


def _least(steps: Steps, costs_TI: Floats) -> Floats:
    """The least over the allowed instances; 0 where hold was chosen."""
    least_T = np.where(steps.allowed[:, :-1], costs_TI, np.inf).min(axis=1)
    return np.where(_held(steps), 0.0, least_T)


def _ended(reward_T: Floats, discount_T: Floats) -> Transitions:
    discount_T = discount_T.copy()
    discount_T[-1:] = 0.0
    return Transitions(reward_T, discount_T)

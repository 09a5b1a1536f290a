"""Agents inside the simulator: interpreted = compiled, the shield holds, hold lasts, and no agent stops a run."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llmrouter.arrivals.cells import cell
from llmrouter.domain import Preferences
from llmrouter.training.agents import network, product_network, rollout
from llmrouter.training.agents.environment import TICK_S, Decider, Environment

if TYPE_CHECKING:
    from llmrouter.sim.outcomes import Outcomes

pytestmark = pytest.mark.timeout(1_200)  # the first simulation of a changed kernel compiles it

CELL = cell("paper-v100")
TIGHT = replace(CELL, engine=replace(CELL.engine, profile=replace(CELL.engine.profile, kv_tokens=150 * 16)))
"""The paper's engines with an eighth of their KV: an episode of few requests is as crowded as a long one."""

SMALL = Environment(source=TIGHT, requests=120, cut_s=60.0)
SMALL_PACED = replace(SMALL, tick_s=TICK_S)


def random_paper(seed: int, hold_bias: float = 0.0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A network that nobody trained; its last weight is the bias of hold."""
    weights_W = network.paper_shape().first_weights(np.random.default_rng(seed))
    weights_W[-1] = hold_bias
    return weights_W


def random_shared(seed: int, hold_bias: float = 0.0) -> np.ndarray[Any, np.dtype[np.float64]]:
    rng = np.random.default_rng(seed)
    weights_W = np.concatenate([network.SCORE_SHAPE.first_weights(rng), network.HOLD_SHAPE.first_weights(rng)])
    weights_W[-1] = hold_bias
    return weights_W


def random_product(seed: int, hold_bias: float = 0.0) -> np.ndarray[Any, np.dtype[np.float64]]:
    weights_W = 0.3 * np.random.default_rng(seed).standard_normal(product_network.PRODUCT_WEIGHTS)
    weights_W[-1] = hold_bias
    return weights_W


def in_window(count: int) -> Decider:
    return Decider(rollout.WINDOW, np.array([1.0, 0.5, 0.1, 0.2, 0.3]), window=count)


def interpreted(world: Any, agent: Any) -> int:  # noqa: ANN401 - arrays as records
    """``rollout`` under Python: rows of structured arrays with fields as attributes."""
    pool = world.pool
    records = world._replace(
        run=world.run.view(np.recarray),
        routers=world.routers.view(np.recarray),
        pool=pool._replace(engines=pool.engines.view(np.recarray), sequences=pool.sequences.view(np.recarray)),
    )
    return rollout.rollout(records, agent._replace(it=agent.it.view(np.recarray)))


def times(outcomes: Outcomes) -> tuple[bytes, bytes, bytes]:
    return outcomes.instance.tobytes(), outcomes.dispatched_at_s.tobytes(), outcomes.finished_at_s.tobytes()


@pytest.mark.parametrize(
    ("environment", "decider"),
    [
        (SMALL_PACED, Decider(rollout.PER_TICK, random_paper(1), epsilon=0.3)),
        (SMALL, Decider(rollout.SHIELDED, random_paper(2), epsilon=0.3)),
        (SMALL_PACED, Decider(rollout.SHIELDED, random_paper(2))),
        (SMALL, Decider(rollout.SHARED, random_shared(3))),
        (SMALL, Decider(rollout.BATCH_HOLD)),
        (SMALL, Decider(rollout.PRODUCT, random_product(4), preferences=Preferences(ttft=1.0, tpot=0.0))),
        (SMALL, in_window(5)),
    ],
)
def test_interpreted_and_compiled_agents_decide_alike(environment: Environment, decider: Decider) -> None:
    compiled = environment.play(decider, 5)
    by_python = environment.play(decider, 5, drive=interpreted)
    assert times(compiled.outcomes) == times(by_python.outcomes)
    assert compiled.decisions == by_python.decisions > 0


@pytest.mark.parametrize("environment", [SMALL, SMALL_PACED])
@pytest.mark.parametrize(
    "decider",
    [
        Decider(rollout.SHIELDED, random_paper(1), epsilon=1.0),
        Decider(rollout.SHIELDED, random_paper(1, hold_bias=1e6)),
        Decider(rollout.SHARED, random_shared(1, hold_bias=1e6)),
        Decider(rollout.BATCH_HOLD),
        Decider(rollout.PRODUCT, random_product(1, hold_bias=1e6)),
        in_window(8),
    ],
    ids=["random", "always holds", "shared, always holds", "batch-hold", "product, always holds", "window"],
)
def test_no_shielded_agent_keeps_a_request_from_being_served(environment: Environment, decider: Decider) -> None:
    patient = replace(environment, cut_s=2_000.0)
    assert patient.play(decider, 2).outcomes.finished.all()


@pytest.mark.parametrize("seed", range(3))
def test_the_shield_allows_an_instance_always_and_hold_only_while_none_is_idle(seed: int) -> None:
    steps = SMALL.steps(Decider(rollout.SHIELDED, random_paper(seed), epsilon=0.5), seed)
    chose = np.take_along_axis(steps.allowed, steps.action[:, None], axis=1)
    assert chose.all()
    assert steps.allowed[:, :-1].any(axis=1).all()
    capacity_TI = steps.state[:, 4 : 6 * 4 : 6]
    idle_T = (capacity_TI == 1.0).any(axis=1)
    assert idle_T.any()
    assert not steps.allowed[idle_T, -1].any()
    assert steps.allowed[~idle_T, -1].any()


def test_hold_lasts_a_tenth_of_a_second_and_a_head_is_held_five_seconds_at_most() -> None:
    steps = SMALL.steps(Decider(rollout.SHIELDED, random_paper(1, hold_bias=1e6)), 7)
    held_T = steps.action == 4
    gap_T = np.diff(steps.at_s, append=steps.end_s)
    assert gap_T[held_T].min() == pytest.approx(0.1)
    dispatched_s = steps.at_s[~held_T]
    spans_s = [
        at_s - steps.at_s[held_T & (steps.at_s > before_s)].min(initial=at_s)
        for before_s, at_s in itertools.pairwise(dispatched_s)
    ]
    assert 4.0 < max(spans_s) <= 5.1


def test_an_unshielded_agent_that_always_holds_is_cut() -> None:
    outcomes = SMALL_PACED.play(Decider(rollout.PER_TICK, random_paper(1, hold_bias=1e6)), 2).outcomes
    assert not outcomes.finished.any()


def test_an_unshielded_agent_may_do_anything_at_every_tick() -> None:
    steps = SMALL_PACED.steps(Decider(rollout.PER_TICK, random_paper(1), epsilon=1.0), 2)
    assert steps.allowed.all()
    ticks_T = steps.at_s / TICK_S
    assert np.abs(ticks_T - np.round(ticks_T)).max() < 1e-6
    assert (np.diff(steps.at_s) > 0).all()


def test_the_papers_state_is_what_its_parts_say() -> None:
    """Capacity has two decimals, the queue's length is that of the line, and nobody is in two phases."""
    steps = SMALL.steps(Decider(rollout.SHIELDED, random_paper(3), epsilon=0.5), 1)
    assert steps.state.shape[1] == 27
    hundredths = 100.0 * steps.state[:, 4:24:6].astype(np.float64)
    assert np.abs(hundredths - np.round(hundredths)).max() < 1e-3
    assert np.allclose(steps.state[:, 24] * 100.0, np.minimum(steps.held, 512), atol=1e-3)
    blocks_TIK = steps.state[:, :24].reshape(len(steps), 4, 6)
    in_flight_T = (10.0 * blocks_TIK[..., 0] + 50.0 * blocks_TIK[..., 1:4].sum(axis=2)).sum(axis=1)
    assert (in_flight_T + steps.held + steps.ended <= 120 + 1e-3).all()
    assert ((steps.unfinished <= in_flight_T + steps.held + 1e-3) & (steps.unfinished >= steps.held - 1e-9)).all()
    buckets = np.unique(np.round(2.0 * steps.state[:, 26]))
    assert set(buckets) <= {0.0, 1.0, 2.0}


def test_equal_seeds_give_equal_episodes_and_another_seed_others() -> None:
    decider = Decider(rollout.SHIELDED, random_paper(1), epsilon=0.5)
    one, again, other = (SMALL.steps(decider, seed) for seed in (1, 1, 2))
    assert one.state.tobytes() == again.state.tobytes()
    assert one.action.tobytes() == again.action.tobytes()
    assert one.state.tobytes() != other.state.tobytes()


def test_a_window_of_one_is_the_rule_that_looks_at_the_head_alone() -> None:
    """With nothing but the cost to go by, the pair of the head is what batch-hold chooses."""
    alone = Decider(rollout.WINDOW, np.array([1.0, 0.0, 0.0, 0.0, 0.0]), window=1)
    windowed, ruled = SMALL.play(alone, 3).outcomes, SMALL.play(Decider(rollout.BATCH_HOLD), 3).outcomes
    same = np.mean(windowed.instance == ruled.instance)
    assert same > 0.5
    assert windowed.e2e_s.mean() == pytest.approx(ruled.e2e_s.mean(), rel=0.05)


def test_a_wide_window_lets_short_requests_go_first() -> None:
    shortest = Decider(rollout.WINDOW, np.array([0.0, 0.0, 1.0, 0.0, 0.0]), window=64, longest_hold_s=1e9)
    first = Decider(rollout.WINDOW, np.array([1.0, 0.0, 0.0, 0.0, 0.0]), window=1)
    waits = []
    for decider in (shortest, first):
        outcomes = SMALL.play(decider, 3).outcomes
        short = outcomes.workload.predicted_output_tokens < 100
        waits.append(outcomes.wait_s[short].mean() / outcomes.wait_s.mean())
    assert waits[0] < 0.95 * waits[1]


def test_the_product_is_told_what_the_contract_says() -> None:
    preferences = Preferences(ttft=1.0, tpot=2.0, e2e=1.0, fairness=0.0)
    steps = SMALL.steps(Decider(rollout.PRODUCT, random_product(2, hold_bias=0.5), preferences=preferences), 1)
    assert steps.raw.shape[1] == 16 * 4 + 6
    rows_TIF, line_TH = steps.raw[:, :64].reshape(len(steps), 4, 16), steps.raw[:, 64:]
    assert (rows_TIF[..., 15] == steps.allowed[:, :-1]).all()
    assert (line_TH[:, 0] >= 1).all()
    assert (line_TH[:, 1] >= 0).all()
    assert np.allclose(line_TH[:, 2:], (0.25, 0.5, 0.25, 0.0))
    assert (rows_TIF[..., 6] == TIGHT.engine.profile.kv_tokens).all()
    chosen = np.take_along_axis(steps.allowed, steps.action[:, None], axis=1)
    assert chosen.all()

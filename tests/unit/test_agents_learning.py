"""Rewards, networks, learners and exports of the learned agents, on cases small enough to count by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from llmrouter.arrivals.cells import cell
from llmrouter.errors import InvalidInputError
from llmrouter.manifest import ModelKind, check_manifest, parse_manifest
from llmrouter.study.seeds import FINAL, SELECTION, TRAINING
from llmrouter.training.agents import ddqn_literal, ddqn_shielded, distil, double_q, evolution, learning, network
from llmrouter.training.agents import rewards as rewards_of
from llmrouter.training.agents.environment import TICK_S, Environment, Steps
from llmrouter.training.agents.export import export, worst_difference
from llmrouter.training.agents.keeping import keep, read_agent
from llmrouter.training.agents.rewards import Reward
from llmrouter.training.onnx_files import ExportDisagreesError

if TYPE_CHECKING:
    from pathlib import Path

    from llmrouter.training.agents.learning import Learned

pytestmark = pytest.mark.timeout(1_200)  # the first simulation of a changed kernel compiles it

CELL = cell("paper-v100")
TIGHT = replace(CELL, engine=replace(CELL.engine, profile=replace(CELL.engine.profile, kv_tokens=150 * 16)))
SMALL = Environment(source=TIGHT, requests=120, cut_s=60.0)


def two_steps() -> Steps:
    """Two instances: a dispatch to the second at 0 s, a hold at 1 s, the end at 1.5 s."""
    return Steps(
        state=np.zeros((2, 15), np.float32),
        shared=np.zeros((2, 49), np.float32),
        raw=np.zeros((2, 38), np.float32),
        allowed=np.array([[True, True, True], [True, False, True]]),
        action=np.array([1, 2]),
        own_s=np.array([[3.0, 5.0], [3.0, 1.0]]),
        imposed_s=np.array([[1.0, 4.0], [2.0, 0.0]]),
        coalesce_s=np.array([[0.0, 0.5], [1.0, 0.0]]),
        mixing_s=np.array([[0.25, 0.75], [0.5, 0.5]]),
        at_s=np.array([0.0, 1.0]),
        held=np.array([2.0, 7.0]),
        unfinished=np.array([10.0, 12.0]),
        ended=np.array([4.0, 5.0]),
        end_s=1.5,
        ended_at_end=8,
    )


def test_the_papers_rewards_by_hand() -> None:
    steps = two_steps()
    base = rewards_of.literal(steps, Reward.BASELINE, 0, TICK_S)
    assert base.reward * 100 == pytest.approx([60 * 1 - 10 * 50, 60 * 3 - 12 * 25])
    assert base.discount == pytest.approx([0.999**50, 0.0])
    aware = rewards_of.literal(steps, Reward.AWARE, 0, TICK_S)
    assert aware.reward * 100 == pytest.approx([60 - 500 - 0.75, 180 - 300])
    guided = rewards_of.literal(steps, Reward.GUIDED, 2, TICK_S)
    assert guided.reward * 100 == pytest.approx([60 - 500 - 0.999 * math.exp(-1) * 0.5, 180 - 300])
    assert guided.discount[0] == pytest.approx((0.999 * (1 - math.exp(-1))) ** 50)


def test_the_shielded_rewards_by_hand() -> None:
    steps = two_steps()
    wanted = {
        Reward.MARGINAL: 4.0 - (5.0 + 4.0 + 1.0),
        Reward.BASELINE: 3.0 - 5.0,
        Reward.AWARE: 3.0 - 5.0 - 5.0,
        Reward.GUIDED: 3.0 - 5.0 - math.exp(-0.5) * (5.0 - 1.0),
    }
    for reward, first in wanted.items():
        found = rewards_of.shielded(steps, reward, 1)
        assert found.reward == pytest.approx([first, -7 * 0.12])
        share = math.exp(-0.5) if reward is Reward.GUIDED else 0.0
        assert found.discount == pytest.approx([(1 - share) * math.exp(-1 / 3), 0.0])


def test_the_networks_have_the_papers_and_the_recipes_sizes() -> None:
    assert network.paper_shape().widths == (27, 64, 64, 5)
    assert network.paper_shape(8).widths == (51, 64, 64, 9)
    assert network.SHARED_WEIGHTS == 442


def test_the_learners_network_is_the_one_that_decides() -> None:
    rng = np.random.default_rng(1)
    shape = network.paper_shape()
    weights_W, states_NS = shape.first_weights(rng), rng.standard_normal((20, 27))
    learned = double_q.values(np.float32(weights_W), np.float32(states_NS), shape)
    assert np.allclose(learned, network.paper_values(weights_W, states_NS), atol=1e-4)


def test_instances_in_another_order_are_the_same_transition() -> None:
    state = np.arange(27.0)[None]
    allowed = np.array([[True, False, True, True, False]])
    drawn = {"state": state, "next_allowed": allowed, "action": np.array([2]), "reward": np.array([1.5])}
    moved = double_q.reordered(drawn, np.array([[2, 0, 3, 1]]))
    assert moved["state"][0, :6].tolist() == [12, 13, 14, 15, 16, 17]
    assert moved["state"][0, 24:].tolist() == [24, 25, 26]
    assert moved["action"].tolist() == [0]
    assert moved["next_allowed"].tolist() == [[True, True, True, False, False]]
    assert moved["reward"].tolist() == [1.5]
    held = double_q.reordered({"action": np.array([4])}, np.array([[2, 0, 3, 1]]))
    assert held["action"].tolist() == [4]


def test_double_q_learning_finds_the_value_of_a_known_chain() -> None:
    """One state whose action 0 ends with 1 and whose action 1 leads back at a discount of 0.5: values 1 and 0.5."""
    shape = network.Shape((3, 8, 2))
    learner = double_q.Learner(
        shape, double_q.Recipe(learning_rate=1e-2, polyak=0.05, batch=64), np.random.default_rng(0)
    )
    rng = np.random.default_rng(1)
    for _ in range(5):
        action = rng.integers(0, 2, (200, 64))
        ones = np.ones((200, 64, 3), np.float32)
        learner.update(
            {
                "state": ones,
                "next_state": ones,
                "next_allowed": np.ones((200, 64, 2), bool),
                "action": action,
                "reward": (1.0 - action).astype(np.float32),
                "discount": (0.5 * action).astype(np.float32),
            }
        )
    found = double_q.values(learner.weights, np.ones((1, 3)), shape)
    assert np.asarray(found)[0] == pytest.approx([1.0, 0.5], abs=0.02)


def test_seeds_to_learn_from_and_to_choose_by_are_the_benchmarks() -> None:
    assert {learning.TRAINING_SEEDS[0], learning.TRAINING_SEEDS[-1]} == {TRAINING.first, TRAINING.last}
    assert all(seed in SELECTION and seed not in FINAL for seed in learning.VALIDATION_SEEDS)


def train(name: str, seed: int = 1) -> Learned:
    few = double_q.Recipe(learning_rate=1e-3, polyak=0.05, batch=64, updates=20)
    if name == "literal":
        paced = replace(SMALL, tick_s=TICK_S)
        settings = ddqn_literal.Settings(recipe=few, judge_every=2)
        return ddqn_literal.train(seed=seed, episodes=3, environment=paced, settings=settings)
    if name == "shielded":
        shielded = ddqn_shielded.Settings(recipe=few, judge_every=2)
        return ddqn_shielded.train(seed=seed, episodes=3, environment=SMALL, settings=shielded)
    taught = evolution.train(
        seed=seed, episodes=24, environment=SMALL, recipe=evolution.Recipe(candidates=6, judge_every=2)
    )
    if name == "evolution":
        return taught
    recipe = distil.Recipe(episodes_per_round=1, updates=20, batch=64)
    return distil.train(taught, seed=seed, episodes=3, environment=SMALL, recipe=recipe)


LEARNERS = ("literal", "shielded", "evolution", "distil")


@pytest.mark.parametrize("name", LEARNERS)
def test_the_same_seed_gives_the_same_agent_and_files(name: str, tmp_path: Path) -> None:
    first, again, other = train(name), train(name), train(name, seed=2)
    assert first.decider.weights.tobytes() == again.decider.weights.tobytes()
    assert first.decider.weights.tobytes() != other.decider.weights.tobytes()
    for folder, learned in (("first", first), ("again", again)):
        keep(tmp_path / folder, learned, "as tested")
    for file in ("agent.npz", "curve.json", "curve.svg"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    read = read_agent(tmp_path / "first")
    assert read.decider.weights.tobytes() == first.decider.weights.tobytes()
    assert (read.curve, read.best, read.tick_s) == (first.curve, first.best, first.tick_s)


@pytest.mark.parametrize("name", LEARNERS)
def test_an_exported_agent_agrees_and_is_one_that_a_router_takes(name: str, tmp_path: Path) -> None:
    learned = train(name)
    environment = replace(SMALL, tick_s=learned.tick_s)
    artefact = export(learned, environment)
    assert artefact.manifest.scores["export/worst_relative_difference"] < 1e-4
    artefact.write(tmp_path)
    manifest = parse_manifest((tmp_path / "manifest.json").read_bytes())
    assert manifest.feature_version == (201 if name == "evolution" else 101)
    assert len(manifest.feature_names) == (22 if name == "evolution" else 27)
    check_manifest(manifest, expected_kind=ModelKind.POLICY, model_sha256=manifest.sha256, expected_sha256=None)


def test_an_export_whose_graph_differs_is_refused() -> None:
    with pytest.raises(ExportDisagreesError, match=r"graph and network differ by 0\.5"):
        worst_difference(np.full((2, 5), 1.5, np.float32), np.ones((2, 5)))
    with pytest.raises(ExportDisagreesError, match="graph and network differ by nan"):
        worst_difference(np.full((2, 5), np.nan, np.float32), np.ones((2, 5)))


def test_a_folder_without_an_agent_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no agent of"):
        read_agent(tmp_path)
    (tmp_path / "agent.npz").write_bytes(b"not one")
    (tmp_path / "curve.json").write_text("{}")
    with pytest.raises(InvalidInputError, match="no agent of"):
        read_agent(tmp_path)

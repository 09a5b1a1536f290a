"""The product's network: its graph, what it learns from, its learner and its artefact."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from llmrouter.arrivals.cells import cell
from llmrouter.domain import EngineMode, Preferences
from llmrouter.errors import ModelRejectedError
from llmrouter.manifest import ModelKind, check_manifest, parse_manifest
from llmrouter.training.agents import product, product_network, product_tasks
from llmrouter.training.agents.judged import Front
from llmrouter.training.agents.keeping import keep, read_agent
from llmrouter.training.agents.product_export import export_product, scores_of
from llmrouter.training.agents.product_graph import product_model
from llmrouter.training.onnx_files import runner_on_cpu, stable_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from llmrouter.training.agents.learning import Learned

pytestmark = pytest.mark.timeout(1_200)  # the first simulation of a changed kernel compiles it

ENGINE = cell("paper-v100").engine
NUMBERS = 0.4 * np.random.default_rng(0).standard_normal(product_network.PRODUCT_WEIGHTS)


def told(rng: np.random.Generator, instances: int) -> NDArray[np.float32]:
    """What a pool of any engines and loads would be told as."""
    rows = np.zeros((instances, product_network.ROW))
    rows[:, 0] = rng.integers(0, 60, instances)
    rows[:, 1] = rows[:, 0] * rng.integers(1, 4_000, instances)
    rows[:, 2] = np.where(rng.random(instances) < 0.5, 0, rng.integers(0, 9_000, instances))
    rows[:, 3] = rows[:, 0] * rng.uniform(0, 500, instances)
    rows[:, 4], rows[:, 5] = rng.integers(4, 16_000), rng.uniform(1, 2_000)
    rows[:, 6] = rng.choice([19_200, 400_000])
    rows[:, 7] = rng.choice([50, 128, 256], instances)
    for column, low, high in ((8, 4e-3, 3e-2), (9, 1e-5, 3e-4), (10, 0, 1e-9), (11, 1e-8, 1e-6), (12, 1e-5, 1e-3)):
        rows[:, column] = rng.uniform(low, high, instances)
    rows[:, 13] = rng.random(instances) < 0.5
    rows[:, 14] = np.minimum(rows[:, 4], rng.integers(0, 500, instances))
    rows[:, 15] = rng.random(instances) < 0.7
    line = [rng.integers(1, 200), rng.uniform(0, 6), *rng.dirichlet([1.0] * 4)]
    return np.concatenate([rows.ravel(), line]).astype(np.float32)


@pytest.mark.parametrize("instances", [1, 2, 5, 64])
def test_the_graph_is_the_network(instances: int) -> None:
    run = runner_on_cpu(stable_bytes(product_model(NUMBERS)))
    rng = np.random.default_rng(instances)
    for _ in range(20):
        asked = told(rng, instances)
        cut = 16 * instances
        got = run({"instances": asked[:cut].reshape(-1, 16), "line": asked[cut:]})
        assert got.shape == (instances + 1,)
        wanted = scores_of(NUMBERS, asked)
        assert np.abs(got - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())


def test_hold_is_for_a_request_that_would_open_a_prefill_first_instance() -> None:
    """A network that wants to hold has no say where the best instance is chunked, or has a prompt queued."""
    eager = np.zeros(product_network.PRODUCT_WEIGHTS)
    eager[-1] = 1.0
    asked = told(np.random.default_rng(1), 1)
    asked[0], asked[15] = 3.0, 1.0
    held = {}
    for name, queued, first in (("opens", 0.0, 1.0), ("queued", 50.0, 1.0), ("chunked", 0.0, 0.0)):
        asked[2], asked[13] = queued, first
        scores = scores_of(eager, asked)
        held[name] = bool(scores[1] > scores[0])
    assert held == {"opens": True, "queued": False, "chunked": False}


def test_a_task_is_drawn_the_same_from_the_same_seed() -> None:
    one, again = (product_tasks.draw(np.random.default_rng(5), 7) for _ in range(2))
    assert one.engines == again.engines
    assert one.workload.arrived_at_s.tobytes() == again.workload.arrived_at_s.tobytes()
    assert one.workload.predicted_output_tokens.tobytes() == again.workload.predicted_output_tokens.tobytes()


def test_tasks_are_of_many_kinds() -> None:
    rng = np.random.default_rng(3)
    drawn = [product_tasks.draw(rng, seed) for seed in range(60)]
    assert {task.name for task in drawn} == set(product_tasks.CELLS)
    assert {len(task.engines) for task in drawn} == set(product_tasks.SIZES)
    assert any(len({engine.profile.mode for engine in task.engines}) == 2 for task in drawn)
    assert any(len({engine.profile.base_decode_s for engine in task.engines}) > 2 for task in drawn)
    assert len({task.preferences for task in drawn}) > 20


def test_a_slower_pool_gets_fewer_requests_a_second() -> None:
    equal, slower = (
        product_tasks.make("paper-v100", engines, load=0.8, seed=1, preferences=Preferences(), requests=300)
        for engines in ((ENGINE,) * 2, (ENGINE, product_tasks.slower(ENGINE, 2.0)))
    )
    assert slower.workload.duration_s == pytest.approx(equal.workload.duration_s / 0.75)


def test_the_other_mode_is_the_other() -> None:
    assert product_tasks.other_mode(ENGINE).profile.mode is EngineMode.CHUNKED
    assert product_tasks.other_mode(product_tasks.other_mode(ENGINE)).profile.mode is EngineMode.PREFILL_FIRST


def test_worth_is_by_preference() -> None:
    changes = np.log(np.array([0.8, 1.1, 0.9, 1.0]))
    assert product_tasks.worth(changes, Preferences(0.0, 0.0, 1.0, 0.0)) == pytest.approx(np.log(0.9))
    assert product_tasks.worth(changes, Preferences(1.0, 0.0, 0.0, 0.0)) == pytest.approx(0.25 * np.log(0.8))
    half = product_tasks.worth(changes, Preferences(1.0, 1.0, 0.0, 0.0))
    assert half == pytest.approx(0.125 * np.log(0.8) + 0.25 * np.log(1.1))


def tasks() -> list[product_tasks.Task]:
    made = product_tasks.make("paper-v100", (ENGINE,) * 2, load=0.9, seed=1_000, preferences=Preferences(), requests=80)
    return [made, replace(made, preferences=Preferences(1.0, 0.0, 0.0, 0.0))]


def learn(seed: int) -> Learned:
    recipe = product.Recipe(candidates=4, tasks_per_generation=1, judge_every=1)
    return product.train(seed=seed, episodes=8, recipe=recipe, judge=product.Judge(tasks()))


def test_the_network_begins_as_the_default_rule() -> None:
    """Before it has learned it costs what the rule costs, to a few percent: the rule's terms, the rule's weights."""
    weights_W = product.first_weights(np.random.default_rng(0), product.Recipe())
    changes = product.Judge(tasks()).changes(weights_W)
    assert np.abs(changes[:, 2]).max() < 0.05


def test_the_same_seed_gives_the_same_network_and_artefact(tmp_path: Path) -> None:
    first, again, other = learn(1), learn(1), learn(2)
    assert first.decider.weights.tobytes() == again.decider.weights.tobytes()
    assert first.decider.weights.tobytes() != other.decider.weights.tobytes()
    assert [point.episodes for point in first.curve] == [0, 4, 8]
    assert isinstance(first.best.judged, Front)
    assert first.best.judged.score == min(point.judged.score for point in first.curve)
    made, remade = export_product(first, tasks()), export_product(again, tasks())
    assert (made.model, made.manifest, made.card) == (remade.model, remade.manifest, remade.card)
    keep(tmp_path, first, "as tested")
    assert read_agent(tmp_path).curve == first.curve


def test_an_artefact_is_one_that_a_router_takes(tmp_path: Path) -> None:
    made = export_product(learn(1), tasks())
    assert made.manifest.scores["export/worst_relative_difference"] < 1e-4
    made.write(tmp_path)
    manifest = parse_manifest((tmp_path / "manifest.json").read_bytes())
    check_manifest(manifest, expected_kind=ModelKind.POLICY, model_sha256=manifest.sha256, expected_sha256=None)
    with pytest.raises(ModelRejectedError):
        check_manifest(manifest, expected_kind=ModelKind.POLICY, model_sha256="0" * 64, expected_sha256=None)
    assert manifest.bounds["line/prefer_ttft"].max == 1.0
    assert "docs/learned.md" in made.card

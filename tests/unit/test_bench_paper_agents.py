"""The comparison of agents: the paper's cell as the other tables have it, and a row by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bench.paper import agents, cells
from bench.paper.routes import Lengths
from llmrouter.routing.rules import Rule
from llmrouter.sim.run import simulate
from llmrouter.study.seeds import FINAL, SELECTION
from llmrouter.training.agents.learning import VALIDATION_SEEDS

if TYPE_CHECKING:
    from llmrouter.training.agents.environment import Environment

pytestmark = pytest.mark.timeout(600)  # the first simulation of a changed kernel compiles it


@pytest.mark.parametrize(
    ("environment", "cell"),
    [(agents.PACED, cells.main_cell()), (replace(agents.EIGHT, tick_s=0.02), cells.eight_instances())],
)
def test_agents_meet_the_papers_cell(environment: Environment, cell: cells.PaperCell) -> None:
    assert environment.setup == cell.setup
    ours, theirs = environment.workload(3), cell.workload(3, Lengths.BUCKETS)
    for name in ("arrived_at_s", "prompt_tokens", "output_tokens", "predicted_output_tokens"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name))


def test_test_seeds_are_no_seeds_of_learning() -> None:
    tested = range(agents.FIRST_DEVELOPMENT_SEED, agents.FIRST_DEVELOPMENT_SEED + agents.TEST_SEEDS)
    assert not set(tested) & set(VALIDATION_SEEDS)
    assert all(seed in SELECTION and seed not in FINAL for seed in tested)


def test_a_row_shows_the_median_and_the_worst_agent() -> None:
    one = agents.Played("x", [{name: [value, value + 1.0] for name in agents.FIGURES} for value in (-9.0, -7.0, -8.0)])
    assert one.means("e2e_pct") == [-8.5, -6.5, -7.5]
    assert agents._changes(one, "e2e_pct").startswith("-7.5 ± ")
    assert agents._changes(one, "e2e_pct").endswith("(-6.5)")


def test_round_robin_against_itself_is_no_change() -> None:
    small = replace(agents.PACED, requests=50)
    outcomes = simulate(small.setup, small.workload(1), agents.free(Rule.ROUND_ROBIN), seed=1)
    found = agents.figures(outcomes, outcomes)
    assert (found["makespan_pct"], found["e2e_pct"], found["unfinished"]) == (0.0, 0.0, 0.0)


def test_bad_numbers_are_exit_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert agents.main(["--training-seeds", "0"]) == 2
    assert "--training-seeds must be 1 to 100, not 0" in capsys.readouterr().err


def test_what_learning_adds_is_paired_with_the_rule() -> None:
    rule_s = np.array([10.0, 20.0])
    one = agents.Played("x", [{"e2e_s": [9.0, 18.0]}, {"e2e_s": [10.0, 20.0]}, {"e2e_s": [11.0, 22.0]}])
    assert agents._beyond(one, rule_s) == "-10.0 ± 0.0, +0.0 ± 0.0, +10.0 ± 0.0; 1 of 3"

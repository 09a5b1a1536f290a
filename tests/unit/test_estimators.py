"""Estimates of another policy from a log, where the truth is known: costs drawn by a law of the test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from llmrouter.decisions.estimators import Choices, cross_fitted, estimates

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

DECISIONS, INSTANCES = 800, 4
EXPLORED = 0.2


def logged(rng: np.random.Generator, *, explored: float = EXPLORED, blind: bool = False) -> tuple[Choices, float]:
    """A log of one policy, seen for another one, and the other's true mean cost in the states of the log.

    Instances have a load and a speed; the log's policy takes the least load, the other the fastest. What a choice costs
    is load over speed, and noise that grows with it. ``blind`` hides the load from the model of costs.
    """
    loads_NK = rng.exponential(1.0, (DECISIONS, INSTANCES))
    speeds_NK = rng.uniform(0.5, 2.0, (DECISIONS, INSTANCES))
    true_NK = 0.2 + loads_NK / speeds_NK
    best_N, other_N = loads_NK.argmin(axis=1), speeds_NK.argmax(axis=1)
    rows_N = np.arange(DECISIONS)
    logged_NK = np.full((DECISIONS, INSTANCES), explored / INSTANCES)
    logged_NK[rows_N, best_N] += 1.0 - explored
    target_NK = np.zeros((DECISIONS, INSTANCES))
    target_NK[rows_N, other_N] = 1.0
    drawn_N = (logged_NK.cumsum(axis=1) < rng.random((DECISIONS, 1))).sum(axis=1)
    cost_N = true_NK[rows_N, drawn_N] * rng.gamma(4.0, 0.25, DECISIONS)
    looks_NKF = np.stack(
        [speeds_NK if blind else loads_NK, 1.0 / speeds_NK, loads_NK * (not blind) / speeds_NK], axis=2
    )
    modelled_N, modelled_NK = cross_fitted(looks_NKF[rows_N, drawn_N], cost_N, looks_NKF)
    choices = Choices(
        cost=cost_N,
        logged=logged_NK[rows_N, drawn_N],
        target=target_NK[rows_N, drawn_N],
        modelled=modelled_N,
        modelled_target=(target_NK * modelled_NK).sum(axis=1),
        unsupported=np.where(logged_NK > 0.0, 0.0, target_NK).sum(axis=1),
    )
    return choices, float(true_NK[rows_N, other_N].mean())


@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("name", ["snips", "doubly_robust"])
def test_intervals_cover_the_truth_as_often_as_they_say(name: str, *, blind: bool) -> None:
    covered, errors, widths = 0, [], []
    for seed in range(150):
        choices, truth = logged(np.random.default_rng(seed), blind=blind)
        found = getattr(estimates(choices, np.random.default_rng(10_000 + seed), resamples=300), name)
        covered += found.low <= truth <= found.high
        errors.append(found.value - truth)
        widths.append(found.high - found.low)
    assert covered / 150 >= 0.88
    assert abs(np.mean(errors)) < 0.02  # of about 1.2
    assert np.mean(widths) < 1.0


def test_a_model_of_costs_narrows_the_interval() -> None:
    def width(name: str) -> float:
        found = [
            getattr(estimates(logged(np.random.default_rng(seed))[0], np.random.default_rng(seed), resamples=200), name)
            for seed in range(20)
        ]
        return float(np.mean([one.high - one.low for one in found]))

    assert width("doubly_robust") < 0.8 * width("snips")


def test_a_policy_is_worth_all_of_its_own_log() -> None:
    choices, _ = logged(np.random.default_rng(1))
    own = Choices(
        cost=choices.cost,
        logged=choices.logged,
        target=choices.logged,
        modelled=choices.modelled,
        modelled_target=choices.modelled,
        unsupported=np.zeros(DECISIONS),
    )
    found = estimates(own, np.random.default_rng(1))
    assert found.effective == pytest.approx(DECISIONS)
    assert found.snips.value == pytest.approx(choices.cost.mean())
    assert found.snips_change.value == pytest.approx(0.0)
    assert found.logged.value == found.doubly_robust.value == pytest.approx(choices.cost.mean())


def test_a_log_that_never_varies_says_what_it_lacks() -> None:
    choices, truth = logged(np.random.default_rng(2), explored=0.0)
    found = estimates(choices, np.random.default_rng(2))
    assert found.unsupported_fraction == pytest.approx(0.75, abs=0.06)
    assert found.snips.value is not None
    assert found.snips.value < 0.6 * truth  # it saw the other policy's choices only where they were good ones
    assert found.effective == pytest.approx(0.25 * DECISIONS, rel=0.2)


def test_a_log_without_any_of_the_others_choices_says_nothing() -> None:
    choices, _ = logged(np.random.default_rng(3))
    none = Choices(
        cost=choices.cost,
        logged=choices.logged,
        target=np.zeros(DECISIONS),
        modelled=choices.modelled,
        modelled_target=choices.modelled_target,
        unsupported=np.ones(DECISIONS),
    )
    found = estimates(none, np.random.default_rng(3))
    assert found.snips.value is None
    assert found.doubly_robust.value is None
    assert found.effective == 0.0
    assert found.logged.value is not None


@pytest.mark.parametrize("law", [lambda x: 3.0 + 2.0 * x[:, 0], lambda x: 3.0 + 0.0 * x[:, 0]])
def test_the_model_of_costs_finds_a_law_and_ignores_what_does_not_vary(
    law: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> None:
    rng = np.random.default_rng(4)
    looks_NF = np.stack([rng.normal(size=200), np.full(200, 7.0)], axis=1)
    made_N, there_NK = cross_fitted(looks_NF, law(looks_NF), looks_NF[:, None, :])
    assert made_N == pytest.approx(law(looks_NF), abs=0.2)
    assert there_NK[:, 0] == pytest.approx(made_N)

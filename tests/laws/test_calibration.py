"""What a router that believes a wrong profile learns of simulated engines, from what clients report to it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.calibration import PRIORS, Case, perform

CELLS = ("h100-mix", "paper-v100")


def case(name: str, **changed: object) -> Case:
    """400 requests at 0.8 of the cell's capacity, half of the coefficients three times too large, half too small."""
    return replace(Case(cell=name, load=0.8, prior="b g2 x3, g1 g3 /3", requests=400), **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize("prior", [prior for prior in PRIORS if prior != "right"])
@pytest.mark.parametrize("name", CELLS)
def test_step_times_are_foretold_within_a_tenth_after_two_hundred_requests(name: str, prior: str) -> None:
    row = perform(case(name, prior=prior))
    assert row.before > 0.4
    assert max(row.after[200], row.after[400]) < 0.1
    assert row.within["20"] is not None
    assert row.within["20"] <= 50
    assert row.frozen is None


@pytest.mark.parametrize("name", CELLS)
def test_a_right_profile_is_not_spoiled(name: str) -> None:
    row = perform(case(name, prior="right"))
    assert max(row.after.values()) < 0.1
    assert row.after[400] < 0.04


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("lies", ["10 % lie", "20 % say x5"])
def test_lies_of_some_do_little(name: str, lies: str) -> None:
    row = perform(case(name, lies=lies))
    assert row.after[400] < 0.12


@pytest.mark.parametrize("name", CELLS)
def test_where_all_lie_nothing_is_believed(name: str) -> None:
    row = perform(case(name, lies="all lie"))
    assert row.frozen == "BadResiduals"
    assert all(
        1 / 10.01 <= ratio / wrong <= 10.01
        for ratio, wrong in zip(row.ratios.values(), PRIORS[row.case.prior], strict=True)
    )


@pytest.mark.parametrize("name", CELLS)
def test_jumps_of_the_clock_cost_observations_and_no_truth(name: str) -> None:
    row, steady = perform(case(name, jumps=True)), perform(case(name))
    assert row.after[400] < 0.1
    assert row.observations < steady.observations


@pytest.mark.parametrize("name", CELLS)
def test_a_slow_engine_is_told_from_its_class(name: str) -> None:
    row = perform(case(name, slow_instance=True))
    assert row.slowest == pytest.approx(2.0, rel=0.2)
    assert row.after[400] < 0.1


def test_one_of_several_routers_learns_from_its_share() -> None:
    row = perform(case("h100-mix", routers=2, requests=800))
    assert row.after[800] < 0.12


def test_equal_cases_give_equal_rows() -> None:
    first, second = (replace(perform(case("paper-v100", requests=100)), microseconds=0.0) for _ in range(2))
    assert first == second

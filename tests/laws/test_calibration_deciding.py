"""A router's own parts that decide with step times while they learn them, before simulated engines."""

from __future__ import annotations

from functools import cache

import pytest

from bench.calibration_deciding import FIRST_SEED, SITUATIONS, TRUTH, Told, play
from llmrouter.routing.calibration_use import Calibrate

SITUATION = {one.name: one for one in SITUATIONS}
REQUESTS = 1_500


@cache
def told(situation: str, how: str, requests: int = REQUESTS) -> Told:
    return play("h100-mix", SITUATION[situation], how, requests=requests, seed=FIRST_SEED)


@pytest.mark.parametrize("how", [Calibrate.SLOWNESS, Calibrate.FULL])
@pytest.mark.parametrize("situation", ["one 2x slow", "one 2x slow, 10 % lie", "one 2x slow, clock jumps"])
def test_a_slow_engine_gets_less_and_all_are_answered_sooner(situation: str, how: str) -> None:
    off, on = told(situation, "None"), told(situation, how)
    assert on.first_share < 0.9 * off.first_share
    assert on.mean_s < 1.01 * off.mean_s


def test_wrong_coefficients_are_corrected_while_they_decide() -> None:
    wrong = "one 2x slow, wrong profile"
    off, on, truth = (told(wrong, how) for how in ("None", "Full", TRUTH))
    assert on.mean_s < 1.02 * off.mean_s
    assert on.mean_s < 1.04 * truth.mean_s


@pytest.mark.parametrize("how", [Calibrate.SLOWNESS, Calibrate.FULL])
def test_where_engines_are_alike_nothing_is_lost(how: str) -> None:
    assert told("alike", how).mean_s < 1.02 * told("alike", "None").mean_s


def test_where_all_lie_it_freezes_and_decides_as_the_profile_says() -> None:
    off, on = told("alike, all lie", "None"), told("alike, all lie", "Full")
    assert on.frozen["BadResiduals"] > 0.5 * sum(on.frozen.values())
    assert on.mean_s < 1.05 * off.mean_s


def test_an_engine_that_recovers_without_traffic_gets_it_back() -> None:
    """Slow from a third of the run to two thirds, at a load at which nobody has to go there."""
    situation = "one 2x slow for a third of the run, load 0.4 C"
    run = told(situation, "Full", 6_000)
    always = told("one 2x slow, load 0.4 C", "Full", 3_000)
    assert run.first_share > 2.0 * always.first_share


def test_equal_runs_are_equal() -> None:
    again = play("h100-mix", SITUATION["one 2x slow"], "Full", requests=REQUESTS, seed=FIRST_SEED)
    assert again == told("one 2x slow", "Full")

"""The profiles that decisions use: corrected as far as they may be, stable, bounded; and the slowness of instances."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrouter.domain import STEP_TIME_FIELDS, Instance, InstanceView, Load
from llmrouter.errors import InvalidInputError
from llmrouter.profiles import H100_MIX
from llmrouter.routing.calibration import (
    COEFFICIENTS,
    JUDGED,
    LARGEST_FACTOR,
    WARM_UP,
    Belief,
    ClassCalibration,
    Observation,
)
from llmrouter.routing.calibration_slowness import HALF_LIFE_S, LARGEST_SLOWNESS, LONGEST_REST_S, Slowness
from llmrouter.routing.calibration_use import LEVEL, MOVED, Calibrate, UsedProfiles, corrected
from llmrouter.routing.rooms import per_profile

ONES = dict.fromkeys(COEFFICIENTS, 1.0)
TWICE = math.log(2.0)


def belief(factor: float = 1.0, **slowness: float) -> Belief:
    return Belief(dict.fromkeys(COEFFICIENTS, factor), slowness)


def step(instance_id: str, factor: float, *, steps: float = 50.0, at: int = 0) -> Observation:
    """Some decode steps of an ``H100_MIX``, ``factor`` times as slow."""
    context, sequences = 20_000.0 + 997.0 * (at % 37), 20.0 + at % 13
    one_s = H100_MIX.base_decode_s + H100_MIX.context_s_per_token * context + H100_MIX.sequence_s * sequences
    return Observation(instance_id, factor * steps * one_s, steps, 0.0, steps * context, steps * sequences)


def test_a_slower_engine_is_the_profile_times_its_slowness() -> None:
    assert corrected(H100_MIX, ONES) == H100_MIX
    slow = corrected(H100_MIX, ONES, 2.0)
    for name in STEP_TIME_FIELDS:
        assert getattr(slow, name) == pytest.approx(2.0 * getattr(H100_MIX, name)), name
    assert (slow.name, slow.kv_tokens, slow.mode) == (H100_MIX.name, H100_MIX.kv_tokens, H100_MIX.mode)


def test_each_coefficient_has_its_own_ratio() -> None:
    ratios = dict(zip(COEFFICIENTS, (2.0, 3.0, 5.0, 7.0), strict=True))
    made = corrected(H100_MIX, ratios)
    for name, ratio in ratios.items():
        assert getattr(made, name) == pytest.approx(ratio * getattr(H100_MIX, name)), name
    assert made.base_prefill_s == pytest.approx(2.0 * H100_MIX.base_prefill_s)


@pytest.mark.parametrize(
    ("calibrate", "factor", "slowness"),
    [(Calibrate.NONE, 1.0, 1.0), (Calibrate.SLOWNESS, 1.0, 2.0), (Calibrate.FULL, 3.0, 2.0)],
)
def test_decisions_use_what_they_may(calibrate: Calibrate, factor: float, slowness: float) -> None:
    used = UsedProfiles(H100_MIX)
    used.follow(belief(3.0, slow=2.0), calibrate)
    base_s = H100_MIX.base_decode_s
    assert used.of("slow").base_decode_s == pytest.approx(factor * slowness * base_s, rel=LEVEL)
    assert used.of("other").base_decode_s == pytest.approx(factor * base_s)
    assert (used.uses_coefficients, used.uses_slowness) == (factor != 1.0, slowness != 1.0)
    used.follow(belief(3.0, slow=2.0), Calibrate.NONE)
    assert used.of("slow") == H100_MIX, "switched off, it is used no more"


def test_a_profile_stays_the_same_object_until_something_moved() -> None:
    used = UsedProfiles(H100_MIX)
    used.follow(belief(1.0 + 0.5 * MOVED, a=1.01, b=0.98), Calibrate.FULL)
    assert used.of("a") is used.of("b") is used.of("c") is H100_MIX
    used.follow(belief(1.5, a=2.0, b=2.02), Calibrate.FULL)
    first, other = used.of("a"), used.of("c")
    assert used.of("b") is first, "instances that are alike share one"
    for wobble in (0.99, 1.01, 1.0):
        used.follow(belief(1.5 * (1.0 + 0.5 * MOVED * (wobble - 1.0)), a=2.0 * wobble, b=2.0), Calibrate.FULL)
        assert (used.of("a"), used.of("c")) == (first, other)
        assert used.of("a") is first
        assert used.of("c") is other
    used.follow(belief(1.5, a=2.3), Calibrate.FULL)
    assert used.of("a") is not first
    assert used.of("c") is other


def test_what_policies_remember_of_a_corrected_profile_is_made_once() -> None:
    used = UsedProfiles(H100_MIX)
    made: list[object] = []
    remembered = per_profile(made.append)
    for _ in range(100):
        used.follow(belief(1.3, a=1.8), Calibrate.FULL)
        for name in ("a", "b", "c"):
            remembered(InstanceView(Instance(name, "e:1", "p", used.of(name), frozenset()), Load()))
    assert len(made) == 2


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            *[
                st.one_of(st.floats(), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e-300, 1e300]))
                for _ in range(5)
            ],
        ),
        max_size=60,
    ),
    st.lists(st.floats(), max_size=5),
)
def test_whatever_it_is_told_the_profile_stays_within_its_clamps(
    told: list[tuple[str, float, float, float, float, float]], rests: list[float]
) -> None:
    calibration, used = ClassCalibration(H100_MIX), UsedProfiles(H100_MIX)
    for number in range(WARM_UP):
        calibration.learn(step("a", 1.0, at=number))
    for one in told:
        calibration.learn(Observation(*one))
    for seconds in rests:
        calibration.rest(seconds)
    used.follow(calibration.belief, Calibrate.FULL)
    most = LARGEST_FACTOR * LARGEST_SLOWNESS * math.exp(LEVEL)
    for name in ("a", "b", "c", "unknown"):
        profile = used.of(name)
        for field in STEP_TIME_FIELDS:
            value, declared = getattr(profile, field), getattr(H100_MIX, field)
            assert math.isfinite(value)
            assert declared / most <= value <= declared * most


def test_slowness_is_relative_to_the_faster_of_two() -> None:
    slowness = Slowness()
    for _ in range(200):
        slowness.note("slow", TWICE - math.log(slowness.of("slow")))
        slowness.note("fast", -math.log(slowness.of("fast")))
    assert slowness.of("slow") == pytest.approx(2.0, rel=0.02)
    assert slowness.of("fast") == pytest.approx(1.0)
    assert slowness.of("never seen") == 1.0


def test_a_class_that_becomes_slow_together_makes_nobody_slow() -> None:
    slowness = Slowness()
    for _ in range(2_000):
        for name in "abc":
            slowness.note(name, 1.0)
    assert slowness.all() == pytest.approx({"a": 1.0, "b": 1.0, "c": 1.0}, rel=0.02)
    for _ in range(60):
        slowness.note("a", 0.3)
    assert slowness.of("a") > 1.5, "it is still told apart"


def test_what_is_not_measured_is_taken_for_one_like_the_others_again() -> None:
    slowness = Slowness()
    for _ in range(100):
        slowness.note("slow", 0.3)
        slowness.note("fast", 0.0)
    before = math.log(slowness.of("slow"))
    slowness.rest(1.0)
    assert math.log(slowness.of("slow")) == before, "it was heard of since the last time"
    seconds = 0.0
    while seconds < HALF_LIFE_S:
        slowness.note("fast", 0.0)
        slowness.rest(LONGEST_REST_S)
        seconds += LONGEST_REST_S
    assert math.log(slowness.of("slow")) == pytest.approx(0.5 * before)


@pytest.mark.parametrize("seconds", [-40.0, math.nan, 0.0])
def test_a_clock_that_stands_or_goes_back_forgets_nothing(seconds: float) -> None:
    slowness = Slowness()
    for _ in range(100):
        slowness.note("slow", 0.3)
        slowness.note("fast", 0.0)
    slowness.rest(1.0)
    before = slowness.all()
    slowness.rest(seconds)
    assert slowness.all() == before


def test_a_clock_that_jumps_ahead_forgets_little() -> None:
    slowness = Slowness()
    for _ in range(100):
        slowness.note("slow", 0.3)
        slowness.note("fast", 0.0)
    slowness.rest(1.0)
    before = slowness.of("slow")
    slowness.rest(1e9)
    assert slowness.of("slow") > 0.95 * before


def learned(count: int = 400) -> ClassCalibration:
    """Two instances, one twice as slow."""
    calibration = ClassCalibration(H100_MIX)
    for number in range(count):
        calibration.learn(step("fast", 1.0, at=number))
        calibration.learn(step("slow", 2.0, at=number))
    return calibration


def test_slowness_is_believed_with_the_coefficients_and_not_before() -> None:
    calibration = ClassCalibration(H100_MIX)
    for number in range(WARM_UP // 2 - 1):
        calibration.learn(step("fast", 1.0, at=number))
        calibration.learn(step("slow", 2.0, at=number))
    assert calibration.belief == Belief(ONES, {})
    assert learned().belief.slowness["slow"] == pytest.approx(2.0, rel=0.1)


def test_bad_residuals_freeze_slowness_which_fades_until_it_is_measured_again() -> None:
    calibration = learned()
    before = calibration.belief.slowness["slow"]
    for number in range(2 * JUDGED):
        calibration.learn(step("fast", 8.0 if number % 2 else 0.125, at=number))
        calibration.learn(step("slow", 0.125 if number % 2 else 8.0, at=number))
        if calibration.calibration.frozen is not None:
            break
    assert calibration.calibration.frozen == "BadResiduals"
    at_freeze = calibration.belief.slowness
    for number in range(JUDGED):
        calibration.learn(step("fast", 10.0, at=number))
    assert calibration.belief.slowness == at_freeze
    assert at_freeze["slow"] == pytest.approx(before, rel=0.5)
    for _ in range(round(4 * HALF_LIFE_S / LONGEST_REST_S)):
        calibration.rest(LONGEST_REST_S)
    assert calibration.belief.slowness["slow"] < at_freeze["slow"] ** 0.1


def test_a_restart_keeps_slowness() -> None:
    before, after = learned(), ClassCalibration(H100_MIX)
    assert after.restore(json.loads(json.dumps(before.state())))
    assert after.belief.slowness == pytest.approx(dict(before.belief.slowness))


@pytest.mark.parametrize(
    "slowness",
    [
        *("x", [], {"a": 1.0}, {"a": [1.0]}, {"a": [math.nan, 1]}, {"a": [99.0, 1]}, {"a": [0.0, -1]}, {"a": None}),
        {str(number): [0.0, 1] for number in range(300)},
    ],
)
def test_a_broken_slowness_is_one_clear_error_and_changes_nothing(slowness: object) -> None:
    calibration = ClassCalibration(H100_MIX)
    before = asdict(calibration.calibration)
    with pytest.raises(InvalidInputError, match="slowness"):
        calibration.restore({**learned(50).state(), "slowness": slowness})
    assert asdict(calibration.calibration) == before

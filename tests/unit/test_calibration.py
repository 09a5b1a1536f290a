"""Coefficients learned from observations: what is found, what is refused, what freezes and what a restart keeps."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrouter.errors import InvalidInputError
from llmrouter.profiles import H100_MIX
from llmrouter.routing.calibration import (
    COEFFICIENTS,
    JUDGED,
    LARGEST_FACTOR,
    THAW_AFTER,
    WARM_UP,
    ClassCalibration,
    Frozen,
    Observation,
    Refusal,
    prior_of,
)
from llmrouter.routing.calibration_slowness import MAX_INSTANCES

TRUE: dict[str, float] = dict(zip(COEFFICIENTS, prior_of(H100_MIX).tolist(), strict=True))


def observation(
    rng: random.Random, *, factor: float = 1.0, instance_id: str = "a", prompts: bool = True
) -> Observation:
    """What an ``H100_MIX`` does in some steps, ``factor`` times as slow."""
    steps = rng.uniform(10, 100)
    made = Observation(
        instance_id,
        0.0,
        steps,
        rng.uniform(0, 20_000) if prompts else 0.0,
        steps * rng.uniform(1e3, 2e5),
        steps * rng.uniform(1, 200),
    )
    return replace(made, seconds=factor * seconds(made))


def seconds(of: Observation) -> float:
    return (
        TRUE["base_decode_s"] * of.steps
        + TRUE["prefill_s_per_token"] * of.prefill_tokens
        + TRUE["context_s_per_token"] * of.context_tokens
        + TRUE["sequence_s"] * of.sequences
    )


def wrong(*factors: float) -> ClassCalibration:
    """A calibration whose prior has each coefficient wrong by its factor."""
    named: dict[str, Any] = {name: TRUE[name] * factor for name, factor in zip(COEFFICIENTS, factors, strict=True)}
    return ClassCalibration(replace(H100_MIX, **named))


def teach(calibration: ClassCalibration, count: int, *, seed: int = 1, factor: float = 1.0) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        assert calibration.learn(observation(rng, factor=factor)) is None


@pytest.mark.parametrize("factors", [(3, 3, 3, 3), (1 / 3,) * 4, (3, 1 / 3, 3, 1 / 3), (1 / 3, 3, 1 / 3, 3)])
def test_coefficients_wrong_by_three_are_found(factors: tuple[float, ...]) -> None:
    calibration = wrong(*factors)
    assert calibration.calibration.relative_residual is None
    teach(calibration, 600)
    known = calibration.calibration
    for name in COEFFICIENTS[:3]:  # the fourth takes 5 % of a step here: the profile keeps its say in it
        assert known.coefficients[name] == pytest.approx(TRUE[name], rel=0.15), name
        assert known.learned[name] > 0.8
    assert abs(math.log(known.coefficients["sequence_s"] / TRUE["sequence_s"])) < math.log(3)
    rng = random.Random(9)
    for seen in (observation(rng) for _ in range(100)):
        assert calibration.seconds(seen) == pytest.approx(seen.seconds, rel=0.1)
    assert known.frozen is None
    assert known.relative_residual is not None
    assert known.relative_residual < 0.03


def test_the_profile_is_believed_until_enough_was_seen() -> None:
    calibration = wrong(3, 3, 3, 3)
    teach(calibration, WARM_UP - 1)
    assert set(calibration.calibration.ratios.values()) == {1.0}
    teach(calibration, 1)
    assert calibration.calibration.ratios["base_decode_s"] < 0.6


@pytest.mark.parametrize("slowness", [1.0, 1 / 3, 2.0])
def test_a_coefficient_that_traffic_does_not_excite_keeps_its_proportion(slowness: float) -> None:
    calibration = ClassCalibration(H100_MIX)
    rng = random.Random(2)
    for _ in range(500):
        calibration.learn(observation(rng, prompts=False, factor=slowness))
    known = calibration.calibration
    assert known.learned["prefill_s_per_token"] == pytest.approx(0.0, abs=1e-9)
    for name in COEFFICIENTS:
        assert known.ratios[name] == pytest.approx(slowness, rel=0.02), name


def test_a_coefficient_of_nothing_stays_nothing() -> None:
    calibration = ClassCalibration(replace(H100_MIX, sequence_s=0.0))
    teach(calibration, 300)
    assert calibration.calibration.coefficients["sequence_s"] == 0.0
    assert math.isfinite(calibration.calibration.ratios["sequence_s"])


def test_no_coefficient_leaves_its_bounds() -> None:
    calibration = wrong(25, 1, 1, 1)
    teach(calibration, 400)
    assert calibration.calibration.ratios["base_decode_s"] >= 1 / LARGEST_FACTOR
    assert max(calibration.calibration.ratios.values()) <= LARGEST_FACTOR


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        ({"seconds": math.nan}, Refusal.NOT_A_NUMBER),
        ({"seconds": math.inf}, Refusal.NOT_A_NUMBER),
        ({"steps": math.nan}, Refusal.NOT_A_NUMBER),
        ({"prefill_tokens": math.inf}, Refusal.NOT_A_NUMBER),
        ({"sequences": -1.0}, Refusal.NOT_A_NUMBER),
        ({"seconds": 0.0}, Refusal.IMPLAUSIBLE),
        ({"seconds": -5.0}, Refusal.IMPLAUSIBLE),
        ({"seconds": 1e6}, Refusal.IMPLAUSIBLE),
        ({"steps": 1e12}, Refusal.IMPLAUSIBLE),
        ({"steps": 0.0, "prefill_tokens": 0.0, "context_tokens": 0.0, "sequences": 0.0}, Refusal.IMPLAUSIBLE),
    ],
)
def test_what_cannot_be_true_is_refused_and_changes_nothing(changed: dict[str, float], refusal: Refusal) -> None:
    calibration = ClassCalibration(H100_MIX)
    before = calibration.state()
    assert calibration.learn(replace(observation(random.Random(1)), **changed)) is refusal  # type: ignore[arg-type]
    assert calibration.state() == before


def test_a_fifth_that_lies_the_same_way_moves_little() -> None:
    calibration = wrong(3, 3, 3, 3)
    rng = random.Random(3)
    for _ in range(1_000):
        calibration.learn(observation(rng, factor=0.2 if rng.random() < 0.2 else 1.0))
    known = calibration.calibration
    assert known.coefficients["base_decode_s"] == pytest.approx(TRUE["base_decode_s"], rel=0.15)
    assert known.frozen is None


def test_noise_freezes_and_good_observations_thaw() -> None:
    calibration = ClassCalibration(H100_MIX)
    teach(calibration, 400)
    good = calibration.calibration.coefficients
    rng = random.Random(4)
    for _ in range(JUDGED):
        calibration.learn(observation(rng, factor=math.exp(rng.uniform(-2, 2))))
    frozen = calibration.calibration
    assert frozen.frozen is not None
    for name in COEFFICIENTS:
        assert frozen.coefficients[name] == pytest.approx(good[name], rel=0.2)
    teach(calibration, 4 * THAW_AFTER)
    assert calibration.calibration.frozen is None
    assert calibration.calibration.coefficients["base_decode_s"] == pytest.approx(TRUE["base_decode_s"], rel=0.1)


def test_noise_from_the_beginning_is_never_believed() -> None:
    calibration = ClassCalibration(H100_MIX)
    rng = random.Random(10)
    for _ in range(2 * JUDGED):
        calibration.learn(observation(rng, factor=math.exp(rng.uniform(-2, 2))))
        assert set(calibration.calibration.ratios.values()) == {1.0}
    assert calibration.calibration.frozen is not None


def test_an_engine_that_changes_is_followed() -> None:
    calibration = ClassCalibration(H100_MIX)
    teach(calibration, 400)
    teach(calibration, 1_500, factor=2.0, seed=5)
    assert calibration.calibration.frozen is None
    assert calibration.calibration.coefficients["base_decode_s"] == pytest.approx(2 * TRUE["base_decode_s"], rel=0.15)


def test_what_foretells_worse_than_the_profile_gives_way_to_it() -> None:
    calibration = ClassCalibration(H100_MIX)
    rng = random.Random(6)
    for _ in range(400):
        calibration.learn(observation(rng, factor=3.0))
    seen = set()
    for _ in range(60):
        calibration.learn(observation(rng))
        seen.add(calibration.calibration.frozen)
        if calibration.calibration.frozen is Frozen.WORSE_THAN_PROFILE:
            assert set(calibration.calibration.ratios.values()) == {1.0}
    assert seen - {None}


def test_a_slow_instance_has_a_slowness_and_spoils_nothing() -> None:
    calibration = ClassCalibration(H100_MIX)
    rng = random.Random(7)
    for _ in range(1_500):
        name = rng.choice("abcd")
        calibration.learn(observation(rng, factor=2.0 if name == "d" else 1.0, instance_id=name))
    known = calibration.calibration
    assert known.slowness["d"] == pytest.approx(2.0, rel=0.1)
    assert known.slowness["a"] == pytest.approx(1.0, rel=0.05)
    assert known.coefficients["base_decode_s"] == pytest.approx(TRUE["base_decode_s"], rel=0.1)


def test_memory_is_bounded_whatever_the_number_of_instances() -> None:
    calibration = ClassCalibration(H100_MIX)
    rng = random.Random(8)
    for number in range(MAX_INSTANCES + 50):
        calibration.learn(observation(rng, instance_id=str(number)))
    assert len(calibration.calibration.slowness) == MAX_INSTANCES


def test_a_restart_goes_on_where_it_was() -> None:
    before = wrong(3, 1 / 3, 3, 1 / 3)
    teach(before, 500)
    after = wrong(3, 1 / 3, 3, 1 / 3)
    assert after.restore(json.loads(json.dumps(before.state())))
    assert after.calibration.ratios == pytest.approx(before.calibration.ratios, rel=0.02)
    assert after.calibration.observations == before.calibration.observations


def test_a_state_of_another_profile_is_not_taken_up() -> None:
    before = wrong(3, 3, 3, 3)
    teach(before, 500)
    after = ClassCalibration(H100_MIX)
    assert not after.restore(before.state())
    assert after.calibration.observations == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prior", None),
        ("squares", [1.0]),
        ("squares", [[1.0] * 4] * 3 + [["x"] * 4]),
        ("squares", [-1.0] * 16),
        ("products", [math.nan] * 4),
        ("weight", -1.0),
        ("observations", 1e30),
        ("good", [1e6] * 4),
        ("residuals", [0.1]),
    ],
)
def test_a_broken_state_is_one_clear_error(name: str, value: object) -> None:
    calibration = ClassCalibration(H100_MIX)
    with pytest.raises(InvalidInputError, match="calibration state"):
        calibration.restore({**ClassCalibration(H100_MIX).state(), name: value})
    assert calibration.calibration.observations == 0


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(*(st.floats(allow_nan=True, allow_infinity=True) for _ in range(5)), st.sampled_from("abc")),
        max_size=80,
    )
)
def test_whatever_it_is_told_it_stays_finite_and_within_bounds(told: list[tuple[float, ...]]) -> None:
    calibration = ClassCalibration(H100_MIX)
    teach(calibration, WARM_UP)
    for *numbers, instance_id in told:
        calibration.learn(Observation(str(instance_id), *numbers))
    ratios = np.array(list(calibration.calibration.ratios.values()))
    assert np.isfinite(ratios).all()
    assert ratios.min() >= 1 / LARGEST_FACTOR - 1e-9
    assert ratios.max() <= LARGEST_FACTOR + 1e-9

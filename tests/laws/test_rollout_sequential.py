"""Laws of a trial: arms are stable and of their size, sums add up, and intervals hold however often one looks."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from llmrouter.rollout.arm_stats import ArmStats, Moments, late_after_s, merged, with_open
from llmrouter.rollout.arms import CANDIDATE, arm_of
from llmrouter.rollout.sequential import error_increase, fraction_interval, log_ratio
from llmrouter.rollout.verdict import verdict
from llmrouter.rollout.wire import wire_of
from llmrouter.rollout_specs import GuardrailsSpec

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

IDS = [f"request-{place}" for place in range(20_000)]


def in_trial(percent: float, salt: str = "a") -> set[str]:
    return {one for one in IDS if arm_of(one, salt=salt, percent=percent) == CANDIDATE}


@pytest.mark.parametrize("percent", [1, 10, 50, 99])
def test_an_arm_has_its_share_of_all_ids(percent: int) -> None:
    expected = len(IDS) * percent / 100
    assert abs(len(in_trial(percent)) - expected) < 5 * math.sqrt(expected * (1 - percent / 100))


def test_who_is_in_stays_in_and_another_candidate_has_others() -> None:
    assert in_trial(10) <= in_trial(25) <= in_trial(80)
    both = len(in_trial(10, "a") & in_trial(10, "b"))
    assert abs(both - 200) < 75  # 1 % of 20,000, as of independent draws


def measured(seconds: NDArray[np.float64], tokens: NDArray[np.float64]) -> Moments:
    moments = Moments()
    for one, size in zip(seconds, tokens, strict=True):
        moments.add(float(one), float(size))
    return moments


def test_what_routers_measure_adds_up_and_survives_the_wire() -> None:
    rng = np.random.default_rng(1)
    whole, parts = ArmStats(), [ArmStats() for _ in range(3)]
    for place in range(300):
        for one in (whole, parts[place % 3]):
            one.began()
        ttft_s, tokens = float(rng.lognormal()), int(rng.integers(1, 1000))
        for one in (whole, parts[place % 3]):
            one.first_token(ttft_s, prompt_tokens=tokens)
            one.ended_well(e2e_s=3 * ttft_s, tpot_s=ttft_s / tokens, output_tokens=tokens)
    total = merged(wire_of(one).stats() for one in parts)

    assert (total.requests, total.finished, total.ttft.count) == (300, 300, 300)
    assert total.e2e.xy == pytest.approx(whole.e2e.xy)
    assert total.ttft.mean_s == pytest.approx(whole.ttft.mean_s)


def bursts(rng: Generator, count: int) -> NDArray[np.float64]:
    """Logarithms of times with a long memory and heavy tails, as of engines that fill and empty."""
    level, levels = 0.0, np.empty(count)
    for place in range(count):
        level = 0.98 * level + 0.15 * rng.standard_normal()
        levels[place] = level
    return levels + 0.4 * rng.standard_t(4, count)


def first_alarm(rng: Generator, worse: float, looks: NDArray[np.int64], probability: float) -> int | None:
    """The first of many looks at which a candidate would be found worse than the current policy."""
    count = int(looks[-1])
    sizes = rng.lognormal(4, 1, count)
    y = bursts(rng, count) + 0.7 * np.log1p(sizes)
    arm = rng.random(count) < 0.2
    y[arm] += math.log(worse)
    columns = np.stack(
        [np.ones(count), np.exp(y), y, y * y, np.log1p(sizes), np.log1p(sizes) ** 2, np.log1p(sizes) * y]
    )
    sums = [np.cumsum(columns * side, axis=1) for side in (~arm, arm)]
    for look in looks:
        current, candidate = (Moments(int(one[0, look - 1]), *one[1:, look - 1]) for one in sums)
        if min(current.count, candidate.count) < 20:
            continue
        found = log_ratio(current, candidate, probability=probability)
        assert found is not None
        if found.low > 0.0:
            return int(look)
    return None


def test_an_equal_candidate_is_seldom_blamed_though_one_looks_all_the_time() -> None:
    looks, probability = np.arange(50, 4_000, 25), 0.05
    alarms = [first_alarm(np.random.default_rng(seed), 1.0, looks, probability) for seed in range(120)]
    # 6 expected at most; 13 or more would be one time of two hundred
    assert sum(alarm is not None for alarm in alarms) <= 12


def test_a_worse_candidate_is_found_the_sooner_the_worse_it_is() -> None:
    looks = np.arange(50, 8_000, 50)
    found = [
        [first_alarm(np.random.default_rng(seed), worse, looks, 0.0025) or 10**6 for seed in range(12)]
        for worse in (1.2, 1.5, 3.0)
    ]
    medians = [float(np.median(one)) for one in found]
    assert medians[0] > medians[1] > medians[2]
    assert medians[0] < 8_000
    assert medians[2] <= 250


def test_sizes_are_taken_out_of_times() -> None:
    rng = np.random.default_rng(4)
    sizes = rng.lognormal(5, 1.5, (2, 400))
    seconds = sizes * np.exp(0.1 * rng.standard_normal((2, 400)))
    current, candidate = (measured(seconds[arm], sizes[arm]) for arm in (0, 1))
    blind = [measured(seconds[arm], np.ones(400)) for arm in (0, 1)]

    with_sizes, without = (log_ratio(*pair, probability=0.01) for pair in ((current, candidate), blind))
    assert with_sizes is not None
    assert without is not None
    assert with_sizes.high - with_sizes.low < 0.2 * (without.high - without.low)


def test_the_interval_of_a_fraction_holds_at_every_look() -> None:
    probability, true = 0.05, 0.03
    left = 0
    for seed in range(200):
        failures = np.cumsum(np.random.default_rng(seed).random(2_000) < true)
        for look in range(20, 2_000, 40):
            low, high = fraction_interval(int(failures[look - 1]), look, probability=probability)
            if not low <= true <= high:
                left += 1
                break
    assert left <= 2 * probability * 200


def test_intervals_narrow_as_requests_come() -> None:
    widths = [fraction_interval(count // 20, count, probability=0.01) for count in (20, 200, 2_000, 20_000)]
    assert all(wide[1] - wide[0] > narrow[1] - narrow[0] for wide, narrow in itertools.pairwise(widths))
    assert fraction_interval(0, 0, probability=0.01) == (0.0, 1.0)
    assert fraction_interval(5, 5, probability=0.01)[1] == 1.0


def test_a_candidate_whose_requests_all_fail_is_found_at_once() -> None:
    assert error_increase((0, 90), (8, 8), probability=0.0025).low > 0.02


def test_requests_without_an_answer_count_as_late_as_they_are() -> None:
    rng = np.random.default_rng(2)
    current, candidate = ArmStats(), ArmStats()
    for arm in (current, candidate):
        for _ in range(100):
            arm.first_token(float(rng.lognormal(-2, 0.5)), prompt_tokens=100)
    rules = GuardrailsSpec(min_requests=20)
    assert verdict(current, candidate, rules).breach is None

    late_s = late_after_s((current, candidate))
    stuck = with_open(candidate, [(60.0, 100)] * 60 + [(0.01, 100)] * 50, late_after_s=late_s)
    said = verdict(current, stuck, rules)

    assert (stuck.waiting, stuck.ttft.count, candidate.ttft.count) == (60, 160, 100)
    assert said.reason == "TtftWorse"
    assert "time to first token" in str(said.breach)


def test_verdicts_wait_for_enough_requests_and_name_what_is_allowed() -> None:
    current, candidate = ArmStats(), ArmStats()
    for arm, ttft_s, count in ((current, 0.1, 200), (candidate, 10.0, 9)):
        for place in range(count):
            arm.first_token(ttft_s * (1 + 0.1 * (place % 3)), prompt_tokens=10)
    few = verdict(current, candidate, GuardrailsSpec(min_requests=10))
    assert few.breach is None
    candidate.first_token(11.0, prompt_tokens=10)
    enough = verdict(current, candidate, GuardrailsSpec(min_requests=10))
    assert enough.reason == "TtftWorse"
    generous = verdict(current, candidate, GuardrailsSpec(min_requests=10, max_ttft_ratio=100))
    assert generous.breach is None

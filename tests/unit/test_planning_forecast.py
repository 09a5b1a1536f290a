"""What is to come: the present, and how wrong that has been; and demands made of mixes and columns."""

from __future__ import annotations

import numpy as np
import pytest

from llmrouter.errors import InvalidInputError
from llmrouter.lengths.distribution import LEVELS
from llmrouter.planning.demand import POINTS, demand_of, demand_of_mix, equal_masses
from llmrouter.planning.forecast import KEPT, LEAST_RATIOS, MOST_RATIO, STEP_S, Band, RateHistory
from llmrouter.planning.mix import TrafficMix

HORIZON_S = 300.0


def told(rates: list[float], *, every_s: float = STEP_S) -> RateHistory:
    history = RateHistory()
    for place, rate in enumerate(rates):
        history.note((rate, 2 * rate), at_s=place * every_s)
    return history


def test_it_says_nothing_until_the_past_is_long_enough() -> None:
    needed = LEAST_RATIOS + round(HORIZON_S / STEP_S)
    assert told([10.0] * (needed - 1)).bands(HORIZON_S) is None
    assert told([10.0] * needed).bands(HORIZON_S) is not None


def test_a_steady_rate_is_foretold_exactly() -> None:
    bands = told([10.0] * 60).bands(HORIZON_S)
    assert bands is not None
    assert [(one.low, one.mid, one.high) for one in bands] == [(10.0, 10.0, 10.0), (20.0, 20.0, 20.0)]


def test_the_interval_is_of_changes_over_the_horizon() -> None:
    """A rate that grows by 1 % a span will have grown by 1.01²⁰ in 20 spans."""
    bands = told([1.01**place for place in range(100)]).bands(20 * STEP_S)
    assert bands is not None
    assert bands[0].high / bands[0].mid == pytest.approx(1.01**20)
    assert bands[0].low == bands[0].mid


@pytest.mark.parametrize("every_s", [5.0, STEP_S, 2.5 * STEP_S])
def test_how_often_it_is_told_changes_little(every_s: float) -> None:
    rates = [float(2.0 + np.sin(place * every_s / 400.0)) for place in range(round(3_600 / every_s))]
    bands = told(rates, every_s=every_s).bands(HORIZON_S)
    assert bands is not None
    assert bands[0].high / bands[0].mid == pytest.approx(1.6, abs=0.25)


def test_of_a_random_walk_nine_of_ten_stay_within() -> None:
    rng, history, inside = np.random.default_rng(5), RateHistory(), []
    last: dict[int, Band] = {}
    rate = 100.0
    for place in range(1_500):
        rate *= float(np.exp(0.02 * rng.normal()))
        history.note((rate,), at_s=place * STEP_S)
        if place - 8 in last:
            band = last.pop(place - 8)
            inside.append(band.low <= rate <= band.high)
        bands = history.bands(8 * STEP_S)
        if bands is not None:
            last[place] = bands[0]
    assert 0.82 <= float(np.mean(inside)) <= 0.95


def test_bursts_from_nothing_are_bounded() -> None:
    bands = told([0.0, 50.0] * 60).bands(STEP_S)
    assert bands is not None
    assert bands[0].high <= MOST_RATIO * bands[0].mid


def test_a_silence_and_a_clock_that_jumps_back_begin_anew_and_memory_is_bounded() -> None:
    history = told([1.0] * 1_000)
    assert history.bands(HORIZON_S) is not None
    history.note((1.0, 2.0), at_s=1e6)
    assert history.bands(HORIZON_S) is None
    back = told([1.0] * 100)
    back.note((1.0, 2.0), at_s=0.0)
    assert back.bands(HORIZON_S) is None
    assert told([1.0] * 1_000).bands(KEPT * STEP_S) is None


def test_equal_masses_keep_the_mean() -> None:
    values = np.random.default_rng(1).lognormal(6.0, 1.0, 999)
    points = equal_masses(values)
    assert len(points) == POINTS
    assert list(points) == sorted(points)
    assert float(np.mean(points)) == pytest.approx(float(values.mean()))
    assert equal_masses(np.array([3.0, 1.0])) == (1.0, 3.0)


def test_a_mix_is_the_demand_of_its_requests() -> None:
    rng = np.random.default_rng(2)
    prompt, output = rng.lognormal(6.5, 0.8, 4_000), rng.lognormal(5.0, 0.7, 4_000)
    meant = demand_of("m", prompt, output, requests_per_s=8.0)
    mix = TrafficMix(
        requests=480.0,
        requests_per_s=4.0,
        prefill_tokens_per_s=4.0 * float(prompt.mean()),
        decode_tokens_per_s=4.0 * float(output.mean()),
        prefill_squared_per_s=4.0 * float((prompt**2).mean()),
        context_tokens_per_s=4.0 * float((output * (prompt + output / 2)).mean()),
        prompt_tokens=tuple(np.quantile(prompt, LEVELS).tolist()),
        output_tokens=tuple(np.quantile(output, LEVELS).tolist()),
    )
    found = demand_of_mix("m", mix, times=2.0)
    assert found is not None
    assert found.requests_per_s == 8.0
    assert found.mean_prefill_tokens == pytest.approx(meant.mean_prefill_tokens)
    assert found.mean_output_tokens == pytest.approx(meant.mean_output_tokens)
    assert found.context_tokens == pytest.approx(meant.context_tokens)
    assert found.prefill_tokens == pytest.approx(meant.prefill_tokens, rel=0.2, abs=30.0)


def test_what_is_not_known_is_no_demand() -> None:
    assert demand_of_mix("m", TrafficMix()) is None
    assert demand_of_mix("m", TrafficMix(requests_per_s=3.0)) is None
    with pytest.raises(InvalidInputError, match="as many"):
        demand_of("m", [1.0, 2.0], [1.0], requests_per_s=1.0)

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from llmrouter.study.statistics import half_width, mean_of, paired_change


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(7)
    base = rng.uniform(1.0, 2.0, 20)
    values = base * rng.normal(0.9, 0.05, 20)
    change = paired_change(values.tolist(), base.tolist())
    percents = 100 * (values / base - 1)
    low, high = stats.t.interval(0.95, 19, loc=percents.mean(), scale=stats.sem(percents))
    assert change.percent is not None
    assert change.half_width is not None
    assert change.percent == pytest.approx(percents.mean())
    assert change.percent - change.half_width == pytest.approx(low)
    assert change.percent + change.half_width == pytest.approx(high)


@pytest.mark.parametrize(("count", "quantile"), [(2, 12.706), (5, 2.776), (20, 2.093)])
def test_the_quantile_is_the_printed_one(count: int, quantile: float) -> None:
    values = [0.0] * (count - 1) + [1.0]
    deviation = float(np.std(values, ddof=1)) / count**0.5
    assert half_width(values) == pytest.approx(quantile * deviation, rel=1e-3)


def test_pairing_takes_the_spread_between_seeds_out() -> None:
    base = [1.0, 10.0, 100.0]
    change = paired_change([0.9, 9.0, 90.0], base)
    assert change.percent == pytest.approx(-10.0)
    assert change.half_width == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("values", "base"), [([1.0, 2.0], [0.0, 1.0]), ([1.0, None], [1.0, 1.0]), ([1.0, 1.0], [None, 1.0])]
)
def test_a_percentage_of_nothing_is_none(values: list[float | None], base: list[float | None]) -> None:
    change = paired_change(values, base)
    assert change.percent is None
    assert change.half_width is None


def test_one_seed_has_a_difference_and_no_interval() -> None:
    change = paired_change([2.0], [1.0])
    assert change.percent == pytest.approx(100.0)
    assert change.half_width is None


def test_sides_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_change([1.0], [1.0, 2.0])


def test_a_mean_is_over_what_is_known() -> None:
    assert mean_of([1.0, None, 3.0]) == 2.0
    assert mean_of([None]) is None

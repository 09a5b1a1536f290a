from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrouter.arrivals import generators
from llmrouter.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Law = Callable[[float, int, np.random.Generator], NDArray[np.float64]]

LAWS: dict[str, Law] = {
    "poisson": generators.poisson,
    "gamma 0": partial(generators.gamma, cv=0.0),
    "gamma 0.5": partial(generators.gamma, cv=0.5),
    "gamma 4": partial(generators.gamma, cv=4.0),
    "mmpp": partial(generators.mmpp, rates=(1.0, 5.0, 20.0), mean_sojourns_s=(6.0, 2.0, 0.5)),
    "on-off": partial(generators.on_off, mean_on_s=2.0, mean_off_s=6.0),
    "diurnal": partial(generators.diurnal, amplitude=0.9, period_s=600.0),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_law_keeps_its_mean_rate(name: str) -> None:
    at_s = LAWS[name](20.0, 200_000, np.random.default_rng(5))
    assert len(at_s) / at_s[-1] == pytest.approx(20.0, rel=0.06)


@pytest.mark.parametrize(("name", "cv"), [("poisson", 1.0), ("gamma 0", 0.0), ("gamma 0.5", 0.5), ("gamma 4", 4.0)])
def test_a_renewal_law_has_its_cv(name: str, cv: float) -> None:
    gaps = np.diff(LAWS[name](3.0, 200_000, np.random.default_rng(6)))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05, abs=1e-9)


@pytest.mark.parametrize("name", ["mmpp", "on-off"])
def test_a_modulated_law_is_burstier_than_poisson(name: str) -> None:
    gaps = np.diff(LAWS[name](20.0, 100_000, np.random.default_rng(7)))
    assert gaps.std() / gaps.mean() > 1.5


def test_on_off_is_silent_between_bursts() -> None:
    """Off for 6 s on average: the gaps longer than 3 s come about once per cycle of 8 s, exp(-3/6) of them."""
    at_s = LAWS["on-off"](20.0, 100_000, np.random.default_rng(8))
    long_gaps = (np.diff(at_s) > 3.0).sum()
    assert long_gaps == pytest.approx(at_s[-1] / 8.0 * np.exp(-0.5), rel=0.1)


def test_a_state_of_an_mmpp_holds_for_its_share_of_the_time() -> None:
    """Two states, rates 0 and 1, sojourns 3:1 — all requests come in a quarter of the time, at four times the rate."""
    at_s = generators.mmpp(8.0, 100_000, np.random.default_rng(9), rates=(0.0, 1.0), mean_sojourns_s=(30.0, 10.0))
    assert np.median(np.diff(at_s)) == pytest.approx(np.log(2) / 32.0, rel=0.1)


def test_a_day_has_its_peak_and_its_trough() -> None:
    """1 + 0.9·sin over a period: the first half has 1 + 2·0.9/π of the mean, the second what is left."""
    at_s = LAWS["diurnal"](50.0, 300_000, np.random.default_rng(10))
    whole = at_s[at_s < 600.0 * (at_s[-1] // 600.0)]
    first_half = (whole % 600.0 < 300.0).mean()
    assert first_half == pytest.approx((1 + 1.8 / np.pi) / 2, abs=0.01)


def test_no_amplitude_is_poisson() -> None:
    flat = generators.diurnal(7.0, 100, np.random.default_rng(1), amplitude=0.0)
    assert flat == pytest.approx(generators.poisson(7.0, 100, np.random.default_rng(1)))


@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(LAWS)),
    rate_rps=st.floats(0.01, 1_000),
    count=st.integers(1, 300),
    seed=st.integers(0, 2**32),
)
def test_every_law_makes_so_many_finite_times_in_order_and_again(
    name: str, rate_rps: float, count: int, seed: int
) -> None:
    first, again = (LAWS[name](rate_rps, count, np.random.default_rng(seed)) for _ in range(2))
    assert first.shape == (count,)
    assert np.isfinite(first).all()
    assert (first >= 0).all()
    assert (np.diff(first) >= 0).all()
    assert (first == again).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda rng: generators.poisson(0.0, 5, rng), "rate_rps"),
        (lambda rng: generators.poisson(float("nan"), 5, rng), "rate_rps"),
        (lambda rng: generators.poisson(1.0, 0, rng), "count"),
        (lambda rng: generators.gamma(1.0, 5, rng, cv=-1.0), "cv"),
        (lambda rng: generators.mmpp(1.0, 5, rng, rates=(1.0,), mean_sojourns_s=(1.0,)), "at least two"),
        (lambda rng: generators.mmpp(1.0, 5, rng, rates=(1.0, 2.0), mean_sojourns_s=(1.0,)), "as many"),
        (lambda rng: generators.mmpp(1.0, 5, rng, rates=(0.0, 0.0), mean_sojourns_s=(1.0, 1.0)), "rates"),
        (lambda rng: generators.mmpp(1.0, 5, rng, rates=(-1.0, 2.0), mean_sojourns_s=(1.0, 1.0)), "rates"),
        (lambda rng: generators.on_off(1.0, 5, rng, mean_on_s=0.0, mean_off_s=1.0), "sojourns"),
        (lambda rng: generators.diurnal(1.0, 5, rng, amplitude=1.5), "amplitude"),
        (lambda rng: generators.diurnal(1.0, 5, rng, amplitude=0.5, period_s=0.0), "period_s"),
    ],
)
def test_an_impossible_law_is_refused(call: Callable[[np.random.Generator], object], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        call(np.random.default_rng(1))

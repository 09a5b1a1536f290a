"""Laws of the traffic's mix: right rates, parts that add up to the whole, nothing negative, whatever the clock does."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmrouter.lengths.distribution import LEVELS, MAX_TOKENS, MEDIAN, LengthDistribution
from llmrouter.planning.mix import (
    MIN_AGE_S,
    MIN_REQUESTS,
    WINDOW_S,
    Dispatched,
    Mixes,
    MixMeter,
    TrafficMix,
    added,
    engine_seconds,
    merged,
)
from llmrouter.profiles import LLAMA_31_8B_RTX_4090, LLAMA_31_8B_RTX_PRO_6000, OPT_13B_A100
from llmrouter.routing.features import profile_features
from llmrouter.routing.rules import OWN_ALONE, marginal_cost_row
from llmrouter.sim.capacity import ROUND_ROBIN
from llmrouter.sim.model import EngineModel
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import Setup
from llmrouter.sim.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.domain import EngineProfile

PROFILE = LLAMA_31_8B_RTX_4090
SPREAD = 0.8
ADDED = ("requests", "requests_per_s", "prefill_tokens_per_s", "decode_tokens_per_s", "engine_s_per_s")


def law(median_tokens: float, spread: float = SPREAD) -> LengthDistribution:
    """A log-normal law with its true mean."""
    quantiles = tuple(median_tokens * math.exp(spread * NormalDist().inv_cdf(level)) for level in LEVELS)
    return LengthDistribution(quantiles, median_tokens * math.exp(spread**2 / 2), 1.0, "true")


def dispatched(median_tokens: float = 200.0, prompt_tokens: int = 500, *, spread: float = SPREAD) -> Dispatched:
    return Dispatched(law(median_tokens, spread), prompt_tokens, PROFILE, sharers=8)


def mix_of(meter: MixMeter, now_s: float) -> TrafficMix:
    mix = meter.mix(now_s)
    assert mix is not None
    return mix


@pytest.mark.parametrize("age_s", [MIN_AGE_S, 60.0, 3_600.0])
def test_rates_of_a_steady_stream_are_right_from_the_first_word_on(age_s: float) -> None:
    meter, one, gap_s = MixMeter(1_000.0), dispatched(), 0.1
    for n in range(round(age_s / gap_s)):
        meter.dispatched(one, now_s=1_000.0 + (n + 0.5) * gap_s)

    mix = mix_of(meter, 1_000.0 + age_s)

    prefill_s, decode_s = engine_seconds(PROFILE, 500, one.law.expected_tokens, sharers=8)
    assert mix.requests_per_s == pytest.approx(10.0, rel=1e-3)
    assert mix.prefill_tokens_per_s == pytest.approx(5_000.0, rel=1e-3)
    assert mix.decode_tokens_per_s == pytest.approx(10.0 * one.law.expected_tokens, rel=1e-3)
    assert mix.engine_s_per_s == pytest.approx(10.0 * (prefill_s + decode_s), rel=1e-3)
    assert mix.prefill_time_fraction == pytest.approx(prefill_s / (prefill_s + decode_s))
    assert mix.output_tokens == pytest.approx(one.law.quantiles, rel=0.15)
    assert mix.prompt_tokens == pytest.approx([500.0] * len(LEVELS), rel=0.08)


@pytest.mark.parametrize("wrong", [0.2, 1.0, 4.0])
def test_wrong_predictions_are_made_good_by_the_answers(wrong: float) -> None:
    """Each answer takes 20 s; rates are those of true tokens, and so is their law."""
    rng, meter, age_s, answer_s = np.random.default_rng(1), MixMeter(), 600.0, 20.0
    one, true = dispatched(200.0 * wrong), law(200.0)
    for at_s in np.arange(0.0, age_s, 0.02).tolist():
        meter.dispatched(one, now_s=at_s)
        if at_s > answer_s:
            tokens = true.quantiles[LEVELS.index(0.5)] * math.exp(SPREAD * rng.normal())
            meter.finished(one, output_tokens=tokens, now_s=at_s)

    mix = mix_of(meter, age_s)

    assert mix.decode_tokens_per_s == pytest.approx(50.0 * true.expected_tokens, rel=0.05)
    assert mix.output_tokens is not None
    assert mix.output_tokens[MEDIAN] == pytest.approx(200.0, rel=0.1)
    assert mix.requests_per_s == pytest.approx(50.0, rel=1e-2)


def test_the_estimate_leads() -> None:
    """Of a change to long answers, it says so before the first of them has ended."""
    meter = MixMeter()
    for n in range(6_000):
        meter.dispatched(dispatched(20.0), now_s=n / 10)
    before = mix_of(meter, 600.0)
    for n in range(600):
        meter.dispatched(dispatched(2_000.0), now_s=600.0 + n / 10)
    after = mix_of(meter, 660.0)

    assert after.decode_tokens_per_s > 50 * before.decode_tokens_per_s
    assert before.prefill_time_fraction is not None
    assert after.prefill_time_fraction is not None
    assert after.prefill_time_fraction < before.prefill_time_fraction / 5


Event = tuple[float, float, int, float | None, int]
events = st.lists(
    st.tuples(
        st.floats(0.0, 5.0),  # since the last
        st.floats(1.0, 5_000.0),  # median of the law
        st.integers(1, 100_000),  # prompt
        st.none() | st.floats(-1e9, 1e9),  # reported
        st.integers(0, 2),  # which router
    ),
    min_size=20,
    max_size=60,
)


def play(heard: Sequence[Event], routers: Sequence[int]) -> tuple[MixMeter, float]:
    """The meter of those routers that are named, told everything that is theirs; answers come at once."""
    meter, now_s = MixMeter(), 0.0
    for gap_s, median_tokens, prompt_tokens, reported, router in heard:
        now_s += gap_s
        if router not in routers:
            continue
        one = dispatched(median_tokens, prompt_tokens)
        meter.dispatched(one, now_s=now_s)
        if reported is not None:
            meter.finished(one, output_tokens=reported, now_s=now_s)
    return meter, now_s


@given(events)
def test_parts_add_up_to_the_whole(heard: list[Event]) -> None:
    whole, now_s = play(heard, (0, 1, 2))
    at_s = now_s + MIN_AGE_S
    parts = merged(mix_of(play(heard, (router,))[0], at_s) for router in range(3))
    together = merged([mix_of(whole, at_s)])

    assume(together is not None and together.requests > 1.001 * MIN_REQUESTS)
    assert parts is not None
    assert together is not None
    for name in (*ADDED, "context_tokens_per_s", "prefill_squared_per_s"):
        assert getattr(parts, name) == pytest.approx(getattr(together, name), rel=1e-6, abs=1e-6), name
    assert parts.prefill_time_fraction == pytest.approx(together.prefill_time_fraction, rel=1e-6)


@given(events, st.lists(st.floats(-1e6, 1e12), max_size=60))
def test_nothing_is_negative_and_all_is_finite_whatever_the_clock_does(heard: list[Event], jumps: list[float]) -> None:
    meter, now_s = MixMeter(), 100.0
    for (gap_s, median_tokens, prompt_tokens, reported, _), jump_s in zip(heard, jumps, strict=False):
        now_s += gap_s
        one = dispatched(median_tokens, prompt_tokens)
        meter.dispatched(one, now_s=now_s + jump_s)
        if reported is not None:
            meter.finished(one, output_tokens=reported, now_s=now_s)
    mix = meter.mix(now_s)
    if mix is None:
        return
    for name, value in asdict(mix).items():
        for number in value if isinstance(value, tuple) else (value,):
            assert number is None or (math.isfinite(number) and number >= 0.0), name
    assert mix.prefill_time_fraction is None or mix.prefill_time_fraction <= 1.0
    assert mix.output_tokens is None or max(mix.output_tokens) <= MAX_TOKENS


def test_overestimates_that_end_in_a_silence_do_not_turn_negative() -> None:
    meter, one = MixMeter(), dispatched(4_000.0)
    for _ in range(50):
        meter.dispatched(one, now_s=100.0)
    for _ in range(50):
        meter.finished(one, output_tokens=1.0, now_s=200.0)

    mix = mix_of(meter, 200.0)

    assert mix.decode_tokens_per_s == 0.0
    assert mix.prefill_time_fraction == 1.0


def test_a_clock_that_jumps_back_stands_still() -> None:
    meter = MixMeter()
    for n in range(100):
        meter.dispatched(dispatched(), now_s=float(n))
    assert meter.mix(50.0) == meter.mix(99.0)
    before = mix_of(meter, 99.0)
    meter.dispatched(dispatched(), now_s=0.0)
    assert mix_of(meter, 0.0).requests == pytest.approx(before.requests + 1.0)


def test_what_is_long_past_is_forgotten() -> None:
    meter = MixMeter()
    for _ in range(1_000):
        meter.dispatched(dispatched(), now_s=1.0)
    assert mix_of(meter, 1.0 + WINDOW_S).requests == pytest.approx(1_000 / math.e)
    late = mix_of(meter, 1e9)
    assert (late.requests_per_s, late.prefill_time_fraction, late.output_tokens) == (0.0, None, None)
    assert merged([late]) is None


def test_moments_are_those_of_what_was_computed_and_asked_for() -> None:
    meter, one = MixMeter(), Dispatched(law(100.0, 0.0), 1_000, PROFILE, sharers=8, cached_tokens=400)
    for n in range(600):
        meter.dispatched(one, now_s=0.1 * n)
        meter.finished(one, output_tokens=50.0, now_s=0.1 * n)

    mix = mix_of(meter, 60.0)

    assert mix.prefill_squared_per_s / mix.requests_per_s == pytest.approx(1_000**2 - 400**2)
    assert mix.context_tokens_per_s / mix.requests_per_s == pytest.approx(50 * (1_000 + 25))
    assert mix.prompt_tokens == pytest.approx([600.0] * len(LEVELS), rel=0.08)


@pytest.mark.parametrize(("shape", "dispersion"), [(1e6, 0.0), (1.0, 1.0), (0.25, 4.0)])
def test_counts_of_arrivals_tell_how_bursty_they_are(shape: float, dispersion: float) -> None:
    """Over many gaps, the index of dispersion of a renewal process is the squared variation of its gaps."""
    rng, meter, now_s = np.random.default_rng(4), MixMeter(), 0.0
    for gap_s in (rng.gamma(shape, 0.05 / shape, 12_000)).tolist():
        now_s += gap_s
        meter.dispatched(dispatched(), now_s=now_s)
    assert mix_of(meter, now_s).dispersion == pytest.approx(dispersion, rel=0.25, abs=0.02)


def test_bursts_that_come_to_all_routers_add_up() -> None:
    parts = [TrafficMix(requests_per_s=10.0, dispersion=3.0), TrafficMix(requests_per_s=10.0, dispersion=2.0)]
    assert added(parts).dispersion == 4.0
    assert added([TrafficMix()]).dispersion is None


def test_silence_between_bursts_counts() -> None:
    meter = MixMeter()
    for burst in range(20):
        for _ in range(50):
            meter.dispatched(dispatched(), now_s=10.0 * burst)
    found = mix_of(meter, 200.0).dispersion
    assert found is not None
    assert found == pytest.approx(45.0, rel=0.1)  # 50 in one second of ten: 50·(1 − 1/10)


def test_models_are_told_apart_and_add_up() -> None:
    mixes, whole = Mixes(), MixMeter()
    for n in range(600):
        one = replace(dispatched(1_000.0 if n % 3 else 50.0), model="long" if n % 3 else "short")
        for meter in (mixes, whole):
            meter.dispatched(one, now_s=0.1 * n)
            meter.finished(one, output_tokens=70.0, now_s=0.1 * n)
    by_model, together, meant = mixes.by_model(60.0), mixes.whole(60.0), mix_of(whole, 60.0)

    assert sorted(by_model) == ["long", "short"]
    assert by_model["long"].requests_per_s == pytest.approx(2 * by_model["short"].requests_per_s, rel=0.02)
    assert together is not None
    for name in ADDED:
        assert getattr(together, name) == pytest.approx(getattr(meant, name))
    assert Mixes(0.0).whole(MIN_AGE_S / 2) is None
    silent = Mixes(0.0).whole(MIN_AGE_S)
    assert silent is not None
    assert silent.requests_per_s == 0.0


def test_too_little_is_no_mix() -> None:
    young = MixMeter(100.0)
    young.dispatched(dispatched(), now_s=101.0)
    assert young.mix(100.0 + MIN_AGE_S - 0.1) is None
    few, enough = MixMeter(), MixMeter()
    for _ in range(6):
        few.dispatched(dispatched(), now_s=100.0)
    for _ in range(4):
        enough.dispatched(dispatched(), now_s=100.0)
    assert merged([]) is None
    assert merged([mix_of(few, 100.0)]) is None
    assert merged([mix_of(few, 100.0), mix_of(enough, 100.0)]) is not None


def test_quantiles_of_routers_are_weighted_by_their_requests() -> None:
    meters = [MixMeter(), MixMeter()]
    for n in range(40):
        meters[n % 4 == 0].dispatched(dispatched(1_000.0 if n % 4 == 0 else 100.0, spread=0.1), now_s=100.0)
    both = merged(mix_of(meter, 100.0) for meter in meters)
    assert both is not None
    assert both.output_tokens is not None
    assert both.output_tokens[MEDIAN] == pytest.approx(0.75 * 100 + 0.25 * 1_000, rel=0.1)


@pytest.mark.parametrize("profile", [LLAMA_31_8B_RTX_4090, LLAMA_31_8B_RTX_PRO_6000], ids=lambda one: one.name)
@pytest.mark.parametrize("cached", [0.0, 200.0])
def test_engine_seconds_are_the_terms_that_routing_prices(profile: EngineProfile, cached: float) -> None:
    """Alone, what the marginal cost asks of an idle engine, plus the context of the answer's own tokens."""
    p, d = 700.0, 300.0
    alone_s = marginal_cost_row((0.0, 0.0, 0.0, 0.0, p, d, *profile_features(profile), cached), OWN_ALONE)

    prefill_s, decode_s = engine_seconds(profile, p, d, sharers=1, cached_tokens=cached)

    assert prefill_s + decode_s == pytest.approx(alone_s + profile.context_s_per_token * d * d / 2)
    assert decode_s - engine_seconds(profile, p, d, sharers=10)[1] == pytest.approx(0.9 * d * profile.base_decode_s)


@pytest.mark.timeout(600)  # the first simulation of a changed kernel compiles it
@pytest.mark.parametrize(
    ("profile", "prompt_tokens", "output_tokens", "rate_rps"),
    [
        (LLAMA_31_8B_RTX_4090, 300, 250, 4.0),
        (LLAMA_31_8B_RTX_4090, 2_000, 80, 1.0),
        (LLAMA_31_8B_RTX_PRO_6000, 1_500, 30, 8.0),
        (LLAMA_31_8B_RTX_PRO_6000, 300, 250, 8.0),
        (OPT_13B_A100, 300, 250, 2.0),
        (OPT_13B_A100, 1_500, 30, 2.0),
    ],
    ids=lambda one: getattr(one, "name", str(one)),
)
def test_engine_time_is_that_of_a_simulated_engine(
    profile: EngineProfile, prompt_tokens: int, output_tokens: int, rate_rps: float
) -> None:
    """Near its capacity, where requests share steps: the sum over requests is the time the engine is busy."""
    rng, count = np.random.default_rng(1), 2_500
    arrived_N = np.cumsum(rng.exponential(1 / rate_rps, count))
    prompt_N = np.maximum(1, rng.lognormal(np.log(prompt_tokens), 0.6, count)).astype(int)
    output_N = np.maximum(1, rng.lognormal(np.log(output_tokens), 0.7, count)).astype(int)
    setup = Setup(engines=(EngineModel(profile),))

    outcomes = simulate(setup, Workload.of(arrived_N, prompt_N, output_N), ROUND_ROBIN)

    ended_N = np.searchsorted(np.sort(outcomes.finished_at_s), outcomes.dispatched_at_s)
    sharers_N = np.arange(1, count + 1) - ended_N
    rows = zip(prompt_N.tolist(), output_N.tolist(), sharers_N.tolist(), strict=True)
    work_s = sum(sum(engine_seconds(profile, p, d, sharers=n)) for p, d, n in rows)
    assert work_s == pytest.approx(outcomes.engine_busy_s[0], rel=0.06)

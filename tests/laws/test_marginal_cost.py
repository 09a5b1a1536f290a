"""Laws of the marginal cost, for every engine class and over its whole range."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrouter.domain import EngineMode, EngineProfile, ObjectiveWeights
from llmrouter.profiles import PROFILES
from llmrouter.routing.features import FEATURE_NAMES, WEIGHT_NAMES, weights_of
from llmrouter.routing.marginal_cost import column, marginal_cost, marginal_costs

if TYPE_CHECKING:
    import random

    from numpy.typing import NDArray

    Row = dict[str, float]

ROUNDING = 1e-5
OWN = ObjectiveWeights(
    wait=1.0, decode=1.0, stall=0.0, slowdown=0.0, coalesce=0.0, overflow=0.0, spread=0.0, pressure=0.0, reuse=0.0
)
ZERO = weights_of(OWN)
LOADS = ("requests", "context_tokens", "queued_prefill_tokens", "remaining_decode_tokens")

profiles = st.sampled_from(list(PROFILES.values()))
weights = st.builds(
    partial(replace, OWN),
    stall=st.floats(0.0, 10.0),
    slowdown=st.floats(0.0, 10.0),
    coalesce=st.floats(0.0, 10.0),
    overflow=st.floats(0.0, 10.0),
    spread=st.floats(0.0, 10.0),
    pressure=st.floats(0.0, 10.0),
    reuse=st.floats(0.0, 10.0),
).map(weights_of)


def row_of(profile: EngineProfile, load: tuple[int, int, float, float], asked: tuple[int, int]) -> Row:
    requests, context_each, queued_share, left_each = load
    context = float(requests * context_each)
    return {
        "requests": float(requests),
        "context_tokens": context,
        "queued_prefill_tokens": float(int(context * queued_share)),
        "remaining_decode_tokens": requests * left_each,
        "prompt_tokens": float(asked[0]),
        "predicted_output_tokens": float(asked[1]),
        "kv_tokens": profile.kv_tokens,
        "max_sequences": profile.max_sequences,
        "base_s": profile.base_decode_s,
        "prefill_s_per_token": profile.prefill_s_per_token,
        "prefill_s_per_token_squared": profile.prefill_s_per_token_squared,
        "context_s_per_token": profile.context_s_per_token,
        "sequence_s": profile.sequence_s,
        "prefill_first": 1.0 if profile.mode is EngineMode.PREFILL_FIRST else 0.0,
        "cached_prompt_tokens": 0.0,
    }


asks = st.tuples(st.integers(1, 30_000), st.integers(1, 4_000))
loads = st.tuples(st.integers(0, 400), st.integers(1, 8_000), st.floats(0.0, 1.0), st.floats(0.0, 2_000.0))
rows = st.builds(row_of, profiles, loads, asks)


def array_of(*given_rows: Row) -> NDArray[np.float32]:
    return np.array([[row[name] for name in FEATURE_NAMES] for row in given_rows], dtype=np.float32)


def cost(row: Row, weights_W: NDArray[np.float32]) -> float:
    return float(marginal_cost(array_of(row), weights_W)[0])


def own_s(row: Row) -> float:
    return cost(row, ZERO)


def at_most(smaller: float, larger: float) -> bool:
    return smaller <= larger * (1 + ROUNDING)


def idle(row: Row) -> Row:
    return row | dict.fromkeys(LOADS, 0.0)


@given(rows, weights)
def test_is_finite_and_positive(row: Row, weights_W: NDArray[np.float32]) -> None:
    assert 0.0 < cost(row, weights_W) < np.inf


@given(rows, weights)
def test_an_idle_instance_never_costs_more_than_a_busy_one_of_its_class(
    row: Row, weights_W: NDArray[np.float32]
) -> None:
    assert at_most(cost(idle(row), weights_W), cost(row, weights_W))


@given(rows, weights, st.integers(1, 200))
def test_more_of_the_same_requests_never_cost_less(row: Row, weights_W: NDArray[np.float32], factor: int) -> None:
    """Every load grows by the same factor: the mean request in flight stays as it is, there are more of them."""
    busier = row | {name: row[name] * factor for name in LOADS}
    if row["queued_prefill_tokens"] == 0.0 or row["prefill_first"] == 0.0:
        assert at_most(cost(row, weights_W), cost(busier, weights_W))


@given(rows, weights, st.integers(1, 20_000))
def test_more_to_decode_never_costs_less(row: Row, weights_W: NDArray[np.float32], more: int) -> None:
    longer = row | {"remaining_decode_tokens": row["remaining_decode_tokens"] + more}
    assert at_most(cost(row, weights_W), cost(longer, weights_W))


@given(rows, weights, st.integers(1, 20_000))
def test_a_longer_queue_of_prefill_never_costs_less(row: Row, weights_W: NDArray[np.float32], more: int) -> None:
    """Where there is one already: the first queued prompt of a prefill-first engine makes joining it cheap."""
    queued = row | {"queued_prefill_tokens": row["queued_prefill_tokens"] + 1.0}
    longer = queued | {"queued_prefill_tokens": queued["queued_prefill_tokens"] + more}
    assert at_most(cost(queued, weights_W), cost(longer, weights_W))


@given(rows, weights, st.integers(1, 20_000))
def test_a_longer_prompt_never_costs_less(row: Row, weights_W: NDArray[np.float32], more: int) -> None:
    longer = row | {"prompt_tokens": row["prompt_tokens"] + more}
    assert at_most(cost(row, weights_W), cost(longer, weights_W))


@given(rows, weights, st.integers(1, 4_000))
def test_a_longer_answer_never_costs_less(row: Row, weights_W: NDArray[np.float32], more: int) -> None:
    longer = row | {"predicted_output_tokens": row["predicted_output_tokens"] + more}
    assert at_most(cost(row, weights_W), cost(longer, weights_W))


@given(rows, weights)
def test_every_weight_adds_to_the_own_cost(row: Row, weights_W: NDArray[np.float32]) -> None:
    assert at_most(own_s(row), cost(row, weights_W))


@given(profiles, asks)
def test_alone_it_costs_its_own_prefill_and_steps_whatever_the_weights(
    profile: EngineProfile, asked: tuple[int, int]
) -> None:
    row = row_of(profile, (0, 0, 0.0, 0.0), asked)
    p, d = asked
    prefill_s = profile.prefill_s_per_token * p + profile.prefill_s_per_token_squared * p * p
    step_s = profile.base_decode_s + profile.sequence_s + profile.context_s_per_token * p
    np.testing.assert_allclose(own_s(row), prefill_s + d * step_s, rtol=1e-5)
    assert own_s(row) == cost(row, weights_of(replace(OWN, stall=9.0, slowdown=9.0, coalesce=9.0, overflow=9.0)))


@given(rows)
def test_zero_weights_leave_the_own_cost(row: Row) -> None:
    """Below the limits of KV and slots it is: queued prefill, the batch's share of every step, its own work."""
    roomy = row | {"kv_tokens": 1e9, "max_sequences": 1e6}
    n, context, d, p = (row[key] for key in ("requests", "context_tokens", "predicted_output_tokens", "prompt_tokens"))
    g1, g2, g3 = (row[key] for key in ("prefill_s_per_token", "context_s_per_token", "sequence_s"))
    want_s = g1 * row["queued_prefill_tokens"] + d * (g3 * n + g2 * context) + d * (row["base_s"] + g3 + g2 * p)
    want_s += g1 * p + row["prefill_s_per_token_squared"] * p * p
    np.testing.assert_allclose(own_s(roomy), want_s, rtol=1e-5)


@given(rows, weights)
def test_coalescing_never_raises_the_cost_of_an_engine_with_queued_prefill(
    row: Row, weights_W: NDArray[np.float32]
) -> None:
    queued = row | {"queued_prefill_tokens": max(1.0, row["queued_prefill_tokens"])}
    without_W = weights_W * np.array([1, 1, 1, 1, 0, 1, 1, 1, 1], dtype=np.float32)
    assert cost(queued, weights_W) == cost(queued, without_W)


@settings(max_examples=50)
@given(st.lists(rows, min_size=1, max_size=20), weights, st.randoms(use_true_random=False))
def test_permuting_instances_permutes_costs(
    pool: list[Row], weights_W: NDArray[np.float32], chance: random.Random
) -> None:
    order = list(range(len(pool)))
    chance.shuffle(order)
    features_IF = array_of(*pool)
    np.testing.assert_allclose(
        marginal_cost(features_IF[order], weights_W), marginal_cost(features_IF, weights_W)[order], rtol=ROUNDING
    )


@settings(max_examples=50)
@given(st.lists(rows, min_size=2, max_size=20), weights)
def test_without_pressure_an_instance_costs_the_same_in_any_pool(
    pool: list[Row], weights_W: NDArray[np.float32]
) -> None:
    calm_W = weights_W.copy()
    calm_W[WEIGHT_NAMES.index("pressure")] = 0.0
    together_I = marginal_cost(array_of(*pool), calm_W)
    np.testing.assert_array_equal(together_I, [np.float32(cost(row, calm_W)) for row in pool])


@settings(max_examples=50)
@given(st.lists(rows, min_size=2, max_size=20), weights)
def test_pressure_is_the_mean_of_the_prefill_that_waits(pool: list[Row], weights_W: NDArray[np.float32]) -> None:
    """It multiplies the weight of the stall, the same for all instances of the pool."""
    backlog_s = float(np.mean([row["prefill_s_per_token"] * row["queued_prefill_tokens"] for row in pool]))
    stall, pressure = WEIGHT_NAMES.index("stall"), WEIGHT_NAMES.index("pressure")
    pressed_W = weights_W.astype(np.float64)
    pressed_W[stall] *= 1.0 + pressed_W[pressure] * backlog_s
    pressed_W[pressure] = 0.0
    want_I = [marginal_costs([list(row.values())], pressed_W.tolist())[0] for row in pool]
    np.testing.assert_allclose(marginal_cost(array_of(*pool), weights_W), want_I, rtol=ROUNDING)


@given(rows, weights, st.floats(0.0, 1.0))
def test_a_hit_saves_its_prefill_and_what_others_would_lose_by_another_copy(
    row: Row, weights_W: NDArray[np.float32], share: float
) -> None:
    """Each token that is cached lowers the cost; where none is, the weight of reuse says nothing."""
    idle = row | dict.fromkeys(LOADS, 0.0)
    cached = float(int(share * row["prompt_tokens"]))
    saved_s = row["prefill_s_per_token"] * cached + row["prefill_s_per_token_squared"] * cached**2
    reuse = WEIGHT_NAMES.index("reuse")
    without_W = weights_W.copy()
    without_W[reuse] = 0.0
    assert cost(row, weights_W) == cost(row, without_W)
    whole_s, hit_s = cost(idle, weights_W), cost(idle | {"cached_prompt_tokens": cached}, weights_W)
    np.testing.assert_allclose(
        whole_s - hit_s, (1.0 + weights_W[reuse]) * saved_s, rtol=ROUNDING, atol=ROUNDING * max(whole_s, 1.0) * 12.0
    )


def test_columns_have_the_names_of_the_features() -> None:
    assert [column(name) for name in FEATURE_NAMES] == list(range(len(FEATURE_NAMES)))

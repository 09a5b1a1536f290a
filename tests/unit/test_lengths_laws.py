"""The compiled sums of laws and texts against the same in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrouter.lengths.distribution import LEVELS, MEDIAN
from llmrouter.lengths.laws import blended, lay_out, moved, near_quantiles, word_sums

SEEDS = st.integers(0, 1 << 32)
LEVELS_Q = np.array(LEVELS)


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(0, 5))
def test_moved_quantiles_are_in_order_from_the_median_on(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    latent_NQ = np.exp(rng.normal(5.0, 4.0, (rows, len(LEVELS))))
    factors_NQ = np.exp(rng.normal(0.0, 1.0, latent_NQ.shape))
    wanted_NQ = latent_NQ * factors_NQ
    wanted_NQ[:, MEDIAN:] = np.maximum.accumulate(wanted_NQ[:, MEDIAN:], axis=1)
    wanted_NQ[:, MEDIAN::-1] = np.minimum.accumulate(wanted_NQ[:, MEDIAN::-1], axis=1)
    np.testing.assert_array_equal(moved(latent_NQ, factors_NQ), np.clip(wanted_NQ, 1.0, 1e6))


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 5), st.integers(1, 4))
def test_a_blend_is_the_weighted_geometric_mean(seed: int, rows: int, experts: int) -> None:
    rng = np.random.default_rng(seed)
    said_EN8 = np.exp(rng.normal(5.0, 3.0, (experts, rows, len(LEVELS) + 1)))
    weights_NE = rng.dirichlet(np.ones(experts), rows)
    quantiles_NQ, rank_N = blended(weights_NE, [(one[:, :-1], one[:, -1]) for one in said_EN8])
    wanted_N8 = np.exp(np.einsum("ne,enk->nk", weights_NE, np.log(said_EN8)))
    np.testing.assert_allclose(quantiles_NQ, np.clip(wanted_N8[:, :-1], 1.0, 1e6), rtol=1e-12)
    np.testing.assert_allclose(rank_N, wanted_N8[:, -1], rtol=1e-12)


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 200), st.floats(-20.0, 20.0))
def test_near_quantiles_are_those_of_the_weighed_examples(seed: int, points: int, forecast: float) -> None:
    rng = np.random.default_rng(seed)
    sorted_3K = np.vstack([rng.normal(5.0, 2.0, points), np.zeros(points), np.sort(rng.normal(0.0, 1.0, points))])
    said_K, prior_K = rng.uniform(0.0, 1.0, points), rng.uniform(0.0, 0.2, points) + 1e-6
    found_Q = np.empty(len(LEVELS))
    near_quantiles(forecast, -5.0, LEVELS_Q, sorted_3K, said_K, prior_K, np.empty(points + 3), found_Q)
    weight_K = np.exp(-5.0 * (sorted_3K[0] - forecast) ** 2) * said_K + prior_K
    middle_K = weight_K.cumsum() - 0.5 * weight_K
    wanted_Q = np.interp(LEVELS_Q * weight_K.sum(), middle_K, sorted_3K[2])
    np.testing.assert_allclose(found_Q, wanted_Q, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 4), st.integers(0, 30))
def test_word_sums_are_of_unit_strength(seed: int, rows: int, words: int) -> None:
    rng = np.random.default_rng(seed)
    weights_W = rng.normal(size=50).astype(np.float32)
    strengths_W = rng.uniform(size=50).astype(np.float32)
    strengths_W[0] = 0.0
    ids_NI = rng.integers(0, 50, (rows, words + 2)).astype(np.int32)[:, 1:-1]
    strengths_NI = strengths_W[ids_NI].astype(np.float64)
    norms_N = np.maximum(np.sqrt((strengths_NI**2).sum(axis=1)), 1e-9)
    wanted_N = (weights_W[ids_NI] * strengths_NI).sum(axis=1) / norms_N
    np.testing.assert_allclose(word_sums(ids_NI, weights_W, strengths_W, 1e-9), wanted_N, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(1, 4), st.booleans())
def test_inputs_are_laid_out_side_by_side(seed: int, rows: int, with_laws: bool) -> None:  # noqa: FBT001 - drawn
    rng = np.random.default_rng(seed)
    dense_ND, scales_D = rng.normal(size=(rows, 5)).astype(np.float32), rng.normal(size=5)
    ids_NI, columns_L = rng.integers(0, 99, (rows, 7)).astype(np.int32), np.array([3, 4])
    latent_NQ = np.exp(rng.normal(size=(rows, len(LEVELS)))) if with_laws else None
    inputs_ND = np.zeros((rows, 1 + 5 + 7 + (len(LEVELS) if with_laws else 0)))
    lay_out(inputs_ND, dense_ND, scales_D, ids_NI, columns_L, latent_NQ, 3.0, 4.5)
    for row, inputs_D in enumerate(inputs_ND):
        assert inputs_D[0] == 3.0
        np.testing.assert_array_equal(inputs_D[1:6], dense_ND[row] * scales_D)
        hot = [begin + ids_NI[row, at] % columns_L[at] for at, begin in enumerate((6, 9)) if ids_NI[row, at] > 0]
        assert np.flatnonzero(inputs_D[6:13]).tolist() == [one - 6 for one in hot]
        if latent_NQ is not None:
            np.testing.assert_allclose(inputs_D[13:], np.log(latent_NQ[row]) - 4.5, rtol=1e-12, atol=1e-12)


def test_wrong_shapes_are_refused() -> None:
    row, two = np.ones((1, len(LEVELS))), np.ones((2, len(LEVELS)))
    three, some = np.ones((3, 4)), np.ones(4)
    words = np.ones(4, dtype=np.float32)
    with pytest.raises(ValueError, match="not of one shape"):
        moved(row, two)
    with pytest.raises(ValueError, match="not of one number"):
        blended(np.ones((1, 2)), [(row, np.ones(1))])
    with pytest.raises(ValueError, match="not of one shape"):
        blended(np.ones((1, 1)), [(two, np.ones(2))])
    with pytest.raises(ValueError, match="not of one size"):
        near_quantiles(1.0, -1.0, LEVELS_Q, three, some, some, np.ones(3), np.ones(len(LEVELS)))
    with pytest.raises(ValueError, match="as many quantiles"):
        near_quantiles(1.0, -1.0, LEVELS_Q, three, some, some, some, np.ones(2))
    for word in (-1, 4):
        with pytest.raises(ValueError, match="is none of 4"):
            word_sums(np.array([[word]], dtype=np.int32), words, words, 1e-9)
    with pytest.raises(ValueError, match="not of the size"):
        lay_out(row, np.ones((1, 2), dtype=np.float32), np.ones(2), np.ones((1, 1), dtype=np.int32), np.ones(1, int), None, 1.0, 1.0)  # fmt: skip  # noqa: E501

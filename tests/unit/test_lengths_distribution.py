from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrouter.lengths.bins import BINS, STARTS_B, bin_of, broad_prior, quantiles_of
from llmrouter.lengths.distribution import AGENT_EDGES_TOKENS, LEVELS, Lengths, lengths_of

NORMAL_Q = np.array([-1.6449, -1.2816, -0.6745, 0.0, 0.6745, 1.2816, 1.6449])


def log_normal(median: float, spread: float, limit: float = 1e6) -> Lengths:
    return lengths_of(np.exp(np.log(median) + spread * NORMAL_Q)[None], source="test", limit_N=np.array([limit]))


def drawn(median: float, spread: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.exp(np.random.default_rng(3).normal(math.log(median), spread, 400_000))


class TestAgainstALogNormalLaw:
    @pytest.mark.parametrize(("median", "spread"), [(100, 0.3), (250, 0.8), (60, 1.2)])
    def test_its_mean(self, median: float, spread: float) -> None:
        assert log_normal(median, spread).expected_tokens[0] == pytest.approx(drawn(median, spread).mean(), rel=0.06)

    @pytest.mark.parametrize("limit", [40.0, 130.0, 1_000.0])
    def test_its_mean_under_a_limit(self, limit: float) -> None:
        cut = np.minimum(drawn(120, 0.8), limit).mean()
        assert log_normal(120, 0.8, limit).expected_tokens[0] == pytest.approx(cut, rel=0.03)

    @pytest.mark.parametrize("tokens", [5.0, 30.0, 120.0, 256.0, 2_048.0])
    def test_its_probabilities(self, tokens: float) -> None:
        below = (drawn(120, 1.0) < tokens).mean()
        assert log_normal(120, 1.0).row(0).below(tokens) == pytest.approx(below, abs=0.02)

    @pytest.mark.parametrize("generated", [0.0, 50.0, 150.0, 250.0])
    def test_its_residual_life(self, generated: float) -> None:
        lengths = drawn(120, 0.8)
        want = lengths[lengths >= generated].mean() - generated
        assert log_normal(120, 0.8).row(0).residual_tokens(generated) == pytest.approx(want, rel=0.15)

    def test_its_residual_life_grows_while_that_of_a_narrow_law_falls(self) -> None:
        wide, narrow = log_normal(120, 1.5).row(0), log_normal(120, 0.1).row(0)
        assert wide.residual_tokens(500.0) > wide.residual_tokens(0.0)
        assert narrow.residual_tokens(100.0) < narrow.residual_tokens(0.0)


class TestResidualLife:
    def test_never_passes_the_limit(self) -> None:
        law = log_normal(500, 1.0, limit=600.0).row(0)
        assert 5.0 < law.residual_tokens(590.0) <= 10.0
        assert law.residual_tokens(600.0) == 0.0
        assert law.residual_tokens(10_000.0) == 0.0

    def test_stays_what_it_was_beyond_the_last_quantile(self) -> None:
        law = log_normal(100, 0.5).row(0)
        assert law.residual_tokens(law.quantiles[-1]) == law.residual_tokens(50_000.0)

    def test_a_certain_length_has_one_more_token_once_it_was_wrong(self) -> None:
        law = lengths_of(np.full((1, len(LEVELS)), 80.0), source="test").row(0)
        assert law.residual_tokens(30.0) == pytest.approx(50.0)
        assert law.residual_tokens(80.0) == 1.0
        assert law.residual_tokens(500.0) == 1.0


class TestBuckets:
    def test_an_edge_belongs_to_the_bucket_above(self) -> None:
        law = lengths_of(np.full((1, len(LEVELS)), 250.0), source="test").row(0)
        assert law.bucket_probabilities() == (0.0, 1.0, 0.0)

    def test_a_limit_leaves_nothing_above_it(self) -> None:
        law = log_normal(3_000, 0.5, limit=500.0).row(0)
        assert law.bucket_probabilities()[2] == 0.0
        assert law.bucket_probabilities(AGENT_EDGES_TOKENS)[2] == 0.0


class TestMaking:
    def test_crossing_quantiles_are_sorted(self) -> None:
        laws = lengths_of(np.array([[70.0, 60.0, 50.0, 40.0, 30.0, 20.0, 10.0]]), source="test")
        assert laws.quantiles[0].tolist() == [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0]

    @pytest.mark.parametrize("shape", [(3, 6), (7,), (1, 2, 7)])
    def test_another_shape_is_an_error(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="shape"):
            lengths_of(np.ones(shape), source="test")

    def test_the_input_is_left_alone(self) -> None:
        given_NQ = np.array([[7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
        lengths_of(given_NQ, source="test")
        assert given_NQ[0, 0] == 7.0


@given(
    st.lists(st.floats(-1e9, 1e9), min_size=7, max_size=7),
    st.floats(1.0, 1e7),
    st.floats(0.0, 2e6),
    st.lists(st.floats(1.0, 1e6), min_size=1, max_size=4),
)
def test_every_law_is_a_law(quantiles: list[float], limit: float, generated: float, edges: list[float]) -> None:
    laws = lengths_of(np.array([quantiles]), source="test", limit_N=np.array([limit]))
    law = laws.row(0)
    assert list(law.quantiles) == sorted(law.quantiles)
    assert 1.0 <= law.quantiles[0] <= law.quantiles[-1] <= min(limit, 1e6)
    assert 1.0 <= law.expected_tokens <= min(limit, 1e6)
    shares = law.bucket_probabilities(sorted(edges))
    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) >= -1e-12
    residual = law.residual_tokens(generated)
    assert 0.0 <= residual <= max(0.0, min(limit, 1e6) - generated) + 1e-6


class TestBins:
    def test_cover_every_length_once(self) -> None:
        assert STARTS_B[0] == 1
        assert (np.diff(STARTS_B) >= 1).all()
        assert [bin_of(tokens) for tokens in (1, 16, 1e6)] == [0, 15, BINS - 1]
        for place in range(BINS):
            assert bin_of(float(STARTS_B[place])) == place

    def test_a_single_token_keeps_its_atom(self) -> None:
        shares = np.zeros((1, BINS))
        shares[0, bin_of(3)] = 1.0
        assert quantiles_of(shares)[0].tolist() == pytest.approx([3.0] * len(LEVELS))

    @pytest.mark.parametrize(("median", "spread"), [(20, 1.0), (300, 0.5), (2_000, 0.8)])
    def test_give_back_the_quantiles_of_what_was_counted(self, median: float, spread: float) -> None:
        lengths = np.clip(np.round(drawn(median, spread)), 1, 1e6)
        places = np.searchsorted(STARTS_B, lengths, side="right") - 1
        shares = np.bincount(places, minlength=BINS)[None] / len(lengths)
        assert quantiles_of(shares)[0] == pytest.approx(np.quantile(lengths, LEVELS), rel=0.03)

    def test_the_prior_is_broad(self) -> None:
        prior = broad_prior()
        assert prior.sum() == pytest.approx(1.0)
        low, high = quantiles_of(prior[None])[0, [0, -1]]
        assert high / low > 100

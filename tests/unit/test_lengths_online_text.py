from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from llmrouter.lengths.artefact import features_of
from llmrouter.lengths.online_regression import NearResiduals, RecentRidge, WordWeights
from llmrouter.lengths.online_text import OnlineText
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.lengths.simple import QuantileModel
from llmrouter.lengths.text import text_features

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SIGN = {"list": 40.0, "essay": 900.0}
FILLING = ("about the sea", "of all cities", "for my mother", "on steam engines", "with care", "in plain words")


def asked(rng: np.random.Generator, kind: str) -> LengthRequest:
    text = f"Write a {kind} {FILLING[rng.integers(len(FILLING))]} {rng.integers(1_000)}"
    return LengthRequest(prompt=text, prompt_tokens=12, application="chat", model="m")


def taught(predictor: OnlineText, rng: np.random.Generator, answers: int = 400) -> OnlineText:
    for _ in range(answers):
        kind = ("list", "essay")[rng.integers(2)]
        predictor.learn(asked(rng, kind), SIGN[kind] * float(rng.uniform(0.8, 1.25)))
    return predictor


class TestOnlineText:
    def test_words_tell_answers_of_one_application_apart(self) -> None:
        rng = np.random.default_rng(1)
        predictor = taught(OnlineText(), rng)
        laws = predictor.predict([asked(rng, "list"), asked(rng, "essay")])
        assert laws.quantiles[:, 3] == pytest.approx([40.0, 900.0], rel=0.25)
        assert laws.rank[0] < laws.rank[1]
        assert laws.bucket_probabilities().argmax(axis=1).tolist() == [0, 1]

    def test_a_change_of_what_words_mean_is_followed(self) -> None:
        rng = np.random.default_rng(2)
        predictor = taught(OnlineText(), rng, 1_500)
        for _ in range(500):
            predictor.learn(asked(rng, "list"), 600.0 * float(rng.uniform(0.8, 1.25)))
        assert predictor.predict([asked(rng, "list")]).quantiles[0, 3] == pytest.approx(600.0, rel=0.25)

    def test_a_stranger_is_believed_to_be_like_nothing_in_particular(self) -> None:
        law = OnlineText().predict([LengthRequest(prompt="Hello")])
        assert law.quantiles[0, 3] == pytest.approx(128.0)
        assert law.quantiles[0, -1] > 500.0

    def test_kept_features_do_what_the_prompt_does(self) -> None:
        rng = np.random.default_rng(3)
        by_prompt, by_features = OnlineText(), OnlineText(read=features_of)
        for place in range(60):
            request = asked(rng, "essay")
            kept = replace(request, prompt=None, features=text_features([request]))
            assert by_features.predict([kept]).latent.tolist() == by_prompt.predict([request]).latent.tolist()
            by_prompt.learn(request, 300 + place)
            by_features.learn(kept, 300 + place)

    def test_a_models_quantiles_are_made_use_of(self) -> None:
        rng = np.random.default_rng(4)

        def scorer(requests: Sequence[LengthRequest]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            tokens_N = np.array([float(one.turn or 1) for one in requests])
            return tokens_N[:, None] * np.linspace(0.5, 2.0, 7), tokens_N

        predictor = OnlineText(model=QuantileModel(scorer, name="by-turn", digest="d"))
        assert predictor.digest == "d"
        for _ in range(400):
            turn = int(rng.integers(10, 500))
            predictor.learn(LengthRequest(prompt="Go on.", turn=turn), 3.0 * turn)
        laws = predictor.predict([LengthRequest(prompt="Go on.", turn=turn) for turn in (30, 300)])
        assert laws.quantiles[:, 3] == pytest.approx([90.0, 900.0], rel=0.3)

    def test_an_answer_cut_below_its_forecast_says_nothing(self) -> None:
        rng = np.random.default_rng(5)
        predictor = taught(OnlineText(), rng)
        request = asked(rng, "essay")
        before = predictor.predict([request]).latent
        assert predictor.learn(replace(request, max_output_tokens=16), 16) is None
        assert (predictor.predict([request]).latent == before).all()

    def test_an_answer_cut_above_its_forecast_is_a_long_one(self) -> None:
        rng = np.random.default_rng(6)
        predictor = taught(OnlineText(), rng)
        request = asked(rng, "list")
        before = predictor.predict([request]).rank[0]
        predictor.learn(replace(request, max_output_tokens=800), 800)
        assert predictor.predict([request]).rank[0] > before

    def test_what_was_asked_just_before_teaches_what_asking_anew_does(self) -> None:
        just_asked, not_asked = (taught(OnlineText(), np.random.default_rng(8)) for _ in "12")
        request = asked(np.random.default_rng(9), "list")
        for tokens in (800, 30, 5):
            just_asked.predict([request])
            for predictor in (just_asked, not_asked):
                predictor.learn(request, tokens)
                predictor.learn(request, tokens)
        assert just_asked.predict([request]).latent.tolist() == not_asked.predict([request]).latent.tolist()

    def test_one_absurd_answer_moves_little(self) -> None:
        rng = np.random.default_rng(7)
        predictor = taught(OnlineText(), rng)
        other = asked(rng, "list")
        predictor.learn(asked(rng, "essay"), 1_000_000)
        assert predictor.predict([other]).quantiles[0, 3] < 80.0

    def test_forecasts_stay_within_what_was_learned(self) -> None:
        rng = np.random.default_rng(8)
        predictor = taught(OnlineText(), rng)
        wild = LengthRequest(prompt="essay essay " * 9_000, prompt_tokens=10**9, turn=10**9, max_output_tokens=10**6)
        assert predictor.predict([wild]).rank[0] <= 900.0 * 1.25

    def test_memory_does_not_grow_with_labels(self) -> None:
        predictor = OnlineText()
        size = len(pickle.dumps(predictor))
        for place in range(1_500):
            predictor.learn(LengthRequest(prompt="x", application=f"label {place}"), 9)
        assert len(pickle.dumps(predictor)) < size + 200_000 < 2_000_000


class TestRecentRidge:
    def test_is_ridge_regression(self) -> None:
        rng = np.random.default_rng(1)
        inputs_ND, target_N = rng.normal(size=(40, 3)), rng.normal(size=40)
        ridge = RecentRidge(np.full(3, 2.0), half_life=np.inf)
        for inputs_D, target in zip(inputs_ND, target_N.tolist(), strict=True):
            ridge.learn(inputs_D, target)
        expected_D = np.linalg.solve(inputs_ND.T @ inputs_ND + 2.0 * np.eye(3), inputs_ND.T @ target_N)
        assert ridge.predict(np.eye(3)) == pytest.approx(expected_D)

    def test_what_is_long_ago_weighs_little(self) -> None:
        ridge = RecentRidge(np.array([0.1]), half_life=20.0)
        for target in (1.0, 5.0):
            for _ in range(RecentRidge.EAGER * 5):
                ridge.learn(np.ones(1), target)
        assert ridge.predict(np.ones((1, 1)))[0] == pytest.approx(5.0, abs=0.05)


class TestWordWeights:
    def test_an_example_brings_its_sum_nearer(self) -> None:
        words = WordWeights(10, step=0.25, common=10.0)
        ids = np.array([1, 4, 0, 7], dtype=np.int32)
        words.learn(ids, 2.0)
        assert words.predict(ids[None])[0] == pytest.approx(0.5, rel=0.05)

    def test_an_empty_text_is_nothing(self) -> None:
        words = WordWeights(10, step=0.25, common=10.0)
        empty = np.zeros(4, dtype=np.int32)
        words.learn(empty, 2.0)
        assert words.predict(empty[None])[0] == 0.0

    def test_rare_words_learn_more(self) -> None:
        words = WordWeights(10, step=0.25, common=10.0)
        for _ in range(100):
            words.learn(np.array([1], dtype=np.int32), 0.0)
        words.learn(np.array([1, 2], dtype=np.int32), 1.0)
        common, rare = words.predict(np.array([[1], [2]], dtype=np.int32))
        assert rare > 2.0 * common > 0.0


def residuals(capacity: int = 64) -> NearResiduals:
    return NearResiduals(capacity=capacity, width=0.3, foreign=0.1, prior=3.0, spread=1.2)


class TestNearResiduals:
    def test_those_of_like_forecasts_count(self) -> None:
        near = residuals()
        for _ in range(32):
            near.learn(3.0, 1, -0.5)
            near.learn(6.0, 1, 0.5)
        found_NQ = near.quantiles(np.array([3.0, 6.0]), np.array([1, 1], dtype=np.int32))
        assert found_NQ[:, 3] == pytest.approx([-0.5, 0.5])

    def test_those_of_the_same_label_count_more(self) -> None:
        near = residuals()
        for _ in range(32):
            near.learn(3.0, 1, -0.5)
            near.learn(3.0, 2, 0.5)
        found_NQ = near.quantiles(np.array([3.0, 3.0]), np.array([1, 2], dtype=np.int32))
        assert found_NQ[:, 3] == pytest.approx([-0.5, 0.5])

    def test_the_oldest_gives_way(self) -> None:
        near = residuals(capacity=8)
        for residual in [-0.5] * 20 + [0.5] * 8:
            near.learn(3.0, 1, residual)
        assert near.quantiles(np.array([3.0]), np.array([1], dtype=np.int32))[0, 3] == pytest.approx(0.5)

    def test_before_the_first_the_law_is_broad(self) -> None:
        found_Q = residuals().quantiles(np.zeros(1), np.zeros(1, dtype=np.int32))[0]
        assert found_Q[3] == pytest.approx(0.0)
        assert found_Q[-1] == pytest.approx(-found_Q[0]) == pytest.approx(1.9, abs=0.4)

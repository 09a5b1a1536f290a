from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from llmrouter.errors import InvalidInputError
from llmrouter.lengths.bins import BINS
from llmrouter.lengths.distribution import MEDIAN
from llmrouter.lengths.online import OnlineQuantiles, band_of
from llmrouter.lengths.predictor import LengthRequest, label
from llmrouter.lengths.sketches import Counts, Sketches


def teach(
    predictor: OnlineQuantiles, application: str, *, median: float, count: int, seed: int = 1, model: str = "m"
) -> None:
    rng = np.random.default_rng(seed)
    for tokens in np.exp(rng.normal(math.log(median), 0.4, count)):
        predictor.learn(
            LengthRequest(prompt_tokens=50, application=application, model=model), float(max(1, round(tokens)))
        )


def median_of(predictor: OnlineQuantiles, application: str, *, model: str = "m", prompt_tokens: int = 50) -> float:
    request = LengthRequest(prompt_tokens=prompt_tokens, application=application, model=model)
    return predictor.predict([request]).row(0).quantiles[MEDIAN]


class TestShrinkage:
    def test_a_stranger_begins_as_all_requests_of_its_model(self) -> None:
        predictor = OnlineQuantiles()
        teach(predictor, "chat", median=400, count=500, model="large")
        teach(predictor, "chat", median=40, count=500, model="small")
        assert median_of(predictor, "stranger", model="large") > 4 * median_of(predictor, "stranger", model="small")

    @pytest.mark.parametrize("median", [15, 1_500])
    def test_a_stranger_is_known_within_50_answers(self, median: float) -> None:
        predictor = OnlineQuantiles()
        teach(predictor, "chat", median=150, count=3_000)
        teach(predictor, "stranger", median=median, count=50, seed=2)
        assert median_of(predictor, "stranger") == pytest.approx(median, rel=0.3)
        assert median_of(predictor, "chat") == pytest.approx(150, rel=0.15)

    def test_an_unknown_band_leans_on_its_application(self) -> None:
        predictor = OnlineQuantiles()
        teach(predictor, "chat", median=150, count=1_000)
        assert median_of(predictor, "chat", prompt_tokens=100_000) == pytest.approx(150, rel=0.15)

    def test_exploration_prefers_those_that_are_not_known(self) -> None:
        predictor = OnlineQuantiles(exploration=0.5)
        teach(predictor, "chat", median=150, count=1_000)
        asked = [LengthRequest(prompt_tokens=50, application=name, model="m") for name in ("chat", "stranger")]
        laws = predictor.predict(asked)
        assert laws.rank[1] < 0.8 * laws.rank[0]
        assert laws.expected_tokens[1] == pytest.approx(laws.expected_tokens[0], rel=0.1)


class TestForgetting:
    def test_a_drift_is_followed_within_500_answers(self) -> None:
        predictor = OnlineQuantiles(half_life=250)
        teach(predictor, "chat", median=600, count=3_000)
        teach(predictor, "chat", median=60, count=500, seed=2)
        assert median_of(predictor, "chat") == pytest.approx(60, rel=0.5)

    def test_nothing_is_forgotten_without_a_half_life(self) -> None:
        sketches = Sketches(capacity=2, half_life=None)
        for _ in range(5_000):
            sketches.add("a", 3)
        assert sketches.count("a") == pytest.approx(5_000)

    def test_counts_settle_at_the_memory(self) -> None:
        sketches = Sketches(capacity=2, half_life=10.0)
        for _ in range(5_000):  # many times the rescaling bound
            sketches.add("a", 3)
        assert sketches.count("a") == pytest.approx(1.0 / (1.0 - 0.5**0.1))


class TestCutAnswers:
    def test_count_as_at_least_so_long(self) -> None:
        predictor = OnlineQuantiles(half_life=None)
        rng = np.random.default_rng(4)
        for tokens in np.exp(rng.normal(math.log(200), 0.6, 4_000)):
            limit = int(rng.choice([100, 100_000]))
            request = LengthRequest(prompt_tokens=5, application="a", max_output_tokens=limit)
            predictor.learn(request, float(min(limit, max(1, round(tokens)))))
        law = predictor.predict([LengthRequest(prompt_tokens=5, application="a")]).row(0)
        assert law.quantiles[MEDIAN] == pytest.approx(200, rel=0.12)

    def test_where_all_are_cut_the_limit_is_the_least(self) -> None:
        predictor = OnlineQuantiles()
        request = LengthRequest(prompt_tokens=5, application="a", max_output_tokens=64)
        for _ in range(200):
            predictor.learn(request, 64)
        assert predictor.predict([request]).row(0).quantiles[0] >= 40


class TestMemory:
    def test_a_million_labels_are_bounded(self) -> None:
        predictor = OnlineQuantiles(capacity=64, shared=True)
        teach(predictor, "chat", median=100, count=10)
        tracemalloc.start()
        try:
            for place in range(4_000):
                predictor.learn(LengthRequest(prompt_tokens=9, application=f"label {place}" * 20, model=f"m{place}"), 7)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert predictor.groups == 64
        assert predictor.evicted > 11_000
        assert peak < 4 * 2**20
        everything, groups = predictor.delta()
        assert len(groups.keys) <= 64
        assert everything.counts.sum() == pytest.approx(4_010)

    def test_who_is_in_use_stays(self) -> None:
        predictor = OnlineQuantiles(capacity=16)
        for place in range(500):
            predictor.learn(LengthRequest(application=f"label {place}", model="m"), 5_000)
            predictor.learn(LengthRequest(prompt_tokens=50, application="chat", model="m"), 20)
        assert median_of(predictor, "chat") == pytest.approx(20, rel=0.1)

    def test_asking_alone_keeps_nothing(self) -> None:
        predictor = OnlineQuantiles()
        predictor.predict([LengthRequest(application=f"label {place}") for place in range(1_000)])
        assert predictor.groups == 0

    def test_a_long_label_becomes_a_short_key(self) -> None:
        assert len(label("x" * 10**6)) < 64
        assert label("x" * 1_000) != label("x" * 1_001)
        assert label("short") == "short"
        assert label("\ud800" * 100)

    def test_a_long_label_cannot_pass_for_another(self) -> None:
        predictor = OnlineQuantiles()
        teach(predictor, "a\x1fmodel=m", median=3_000, count=300)
        assert median_of(predictor, "b") == median_of(predictor, "c")


class TestSharing:
    def test_two_routers_that_exchange_deltas_agree_with_one_that_saw_all(self) -> None:
        alone = OnlineQuantiles(half_life=None)
        first, second = (OnlineQuantiles(half_life=None, shared=True) for _ in range(2))
        for turn in range(6):
            for router in (first, second):
                seed = 10 * turn + (router is first)
                teach(router, "chat", median=100 + 30 * turn, count=20, seed=seed)
                teach(alone, "chat", median=100 + 30 * turn, count=20, seed=seed)
            deltas = first.delta(), second.delta()
            second.merge(deltas[0])
            first.merge(deltas[1])
        asked = [LengthRequest(prompt_tokens=50, application="chat", model="m")]
        assert first.predict(asked).latent == pytest.approx(alone.predict(asked).latent)
        assert second.predict(asked).latent == pytest.approx(alone.predict(asked).latent)

    def test_what_was_merged_is_not_told_again(self) -> None:
        first, second = (OnlineQuantiles(shared=True) for _ in range(2))
        teach(first, "chat", median=100, count=20)
        second.merge(first.delta())
        assert second.delta()[1].keys == ()
        assert first.delta()[1].keys == ()

    def test_with_decay_they_nearly_agree(self) -> None:
        alone = OnlineQuantiles(half_life=200.0)
        first, second = (OnlineQuantiles(half_life=200.0, shared=True) for _ in range(2))
        for turn in range(40):
            teach(first, "chat", median=100, count=10, seed=turn)
            teach(alone, "chat", median=100, count=10, seed=turn)
            second.merge(first.delta())
        assert median_of(second, "chat") == pytest.approx(median_of(alone, "chat"), rel=0.02)

    def test_all_counts_restore_a_router(self) -> None:
        before, after = OnlineQuantiles(), OnlineQuantiles()
        teach(before, "chat", median=100, count=200)
        after.merge(before.counts())
        assert median_of(after, "chat") == pytest.approx(median_of(before, "chat"))

    @pytest.mark.parametrize(
        ("counts", "message"),
        [
            (Counts(("a",), np.ones((1, BINS)), bins_version=99), "version 99"),
            (Counts(("a",), np.ones((1, 5))), "shape"),
            (Counts(("a", "b"), np.ones((1, BINS))), "shape"),
            (Counts(("a",), -np.ones((1, BINS))), "at least 0"),
            (Counts(("a",), np.full((1, BINS), np.nan)), "finite"),
            (Counts(("a",), np.full((1, BINS), 1e9)), "more than"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, counts: Counts, message: str) -> None:
        sketches = Sketches(capacity=4, half_life=None)
        with pytest.raises(InvalidInputError, match=message):
            sketches.merge(counts)
        assert len(sketches) == 0


def test_bands_double() -> None:
    assert [band_of(tokens) for tokens in (None, -3, 0, 1, 2, 3, 4, 1_023, 1_024, 10**9)] == [
        *(-1, 0, 0, 1, 2, 2, 3, 10, 11, 24)
    ]

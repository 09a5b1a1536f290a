from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from llmrouter.lengths.distribution import LEVELS
from llmrouter.lengths.online import OnlineQuantiles
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.lengths.recalibrated import Recalibrated
from llmrouter.lengths.simple import ConstantLengths, PointModel

if TYPE_CHECKING:
    from llmrouter.lengths.predictor import LengthPredictor

LOW, HIGH = LEVELS.index(0.1), LEVELS.index(0.9)


def covered(
    predictor: Recalibrated, *, median: float, spread: float, count: int, application: str = "a", seed: int = 5
) -> float:
    """Share of answers of a log-normal law within the 80 % interval, each predicted before it is learned."""
    rng = np.random.default_rng(seed)
    inside = 0
    request = LengthRequest(prompt_tokens=9, application=application)
    for tokens in np.exp(rng.normal(math.log(median), spread, count)):
        law = predictor.predict([request]).row(0)
        answer = float(max(1, round(tokens)))
        inside += law.quantiles[LOW] <= answer <= law.quantiles[HIGH]
        predictor.learn(request, answer, law)
    return inside / count


def narrow_model() -> PointModel:
    return PointModel(lambda requests: np.full(len(requests), 30.0), name="sure", spread=0.05)


class TestCoverage:
    @pytest.mark.parametrize("inner", ["constant", "narrow", "online"])
    @pytest.mark.parametrize(("median", "spread"), [(40, 0.4), (800, 1.2)])
    def test_the_80_percent_interval_covers_80_percent(self, inner: str, median: float, spread: float) -> None:
        made: dict[str, LengthPredictor] = {
            "constant": ConstantLengths(256),
            "narrow": narrow_model(),
            "online": OnlineQuantiles(),
        }
        predictor = Recalibrated(made[inner])
        covered(predictor, median=median, spread=spread, count=500)
        assert 0.78 <= covered(predictor, median=median, spread=spread, count=3_000, seed=6) <= 0.82

    def test_a_drift_is_recovered_within_500_answers(self) -> None:
        predictor = Recalibrated(narrow_model())
        covered(predictor, median=600, spread=0.5, count=2_000)
        covered(predictor, median=60, spread=1.0, count=500, seed=6)
        assert 0.76 <= covered(predictor, median=60, spread=1.0, count=1_500, seed=7) <= 0.84

    def test_every_level_keeps_its_place(self) -> None:
        predictor = Recalibrated(narrow_model())
        covered(predictor, median=600, spread=1.0, count=2_000)
        law = predictor.predict([LengthRequest(prompt_tokens=9, application="a")]).row(0)
        want = np.exp(math.log(600) + np.array([-1.645, -1.282, -0.674, 0.0, 0.674, 1.282, 1.645]))
        assert np.log(law.quantiles) == pytest.approx(np.log(want), abs=0.35)


class TestApplications:
    def test_each_has_its_own(self) -> None:
        predictor = Recalibrated(narrow_model())
        for turn in range(200):
            covered(predictor, median=600, spread=0.3, count=5, application="long", seed=turn)
            covered(predictor, median=6, spread=0.3, count=5, application="short", seed=turn)
        laws = predictor.predict([LengthRequest(application="long"), LengthRequest(application="short")])
        assert laws.quantiles[0, HIGH] > 300
        assert laws.quantiles[1, HIGH] < 30

    def test_a_stranger_has_that_of_all(self) -> None:
        predictor = Recalibrated(narrow_model())
        covered(predictor, median=600, spread=0.3, count=15, application="new")
        laws = predictor.predict([LengthRequest(application="new"), LengthRequest(application="unheard of")])
        assert laws.latent[0] == pytest.approx(laws.latent[1])

    def test_so_many_labels_are_bounded(self) -> None:
        predictor = Recalibrated(ConstantLengths(50), capacity=16)
        for place in range(500):
            predictor.learn(LengthRequest(application=f"label {place}"), 9)
        assert predictor.applications == 16

    def test_a_label_that_gave_way_begins_anew(self) -> None:
        predictor = Recalibrated(narrow_model(), capacity=1)
        covered(predictor, median=600, spread=0.3, count=300, application="first")
        predictor.learn(LengthRequest(application="second"), 30)
        laws = predictor.predict([LengthRequest(application="second"), LengthRequest(application="third")])
        assert laws.latent[0] == pytest.approx(laws.latent[1])


def test_cut_answers_keep_the_share_below_each_quantile() -> None:
    predictor = Recalibrated(narrow_model())
    rng = np.random.default_rng(9)
    request = LengthRequest(application="a", max_output_tokens=200)
    below = 0
    for place, tokens in enumerate(np.exp(rng.normal(math.log(150), 0.6, 4_000))):
        law = predictor.predict([request]).row(0)
        answer = float(min(200, max(1, round(tokens))))
        below += place >= 1_000 and answer <= law.quantiles[1]
        predictor.learn(request, answer, law)
    assert below / 3_000 == pytest.approx(0.1, abs=0.02)

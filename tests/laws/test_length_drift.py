"""How seldom the watch is wrong, how soon it is right, and that an alarm ends when the laws have followed."""

from __future__ import annotations

import math
from statistics import NormalDist, median
from typing import TYPE_CHECKING

import numpy as np
import pytest

from llmrouter.lengths.distribution import LEVELS, LengthDistribution
from llmrouter.lengths.drift import _TESTS, TAIL, WINDOWS, DriftWatch, _bounds
from llmrouter.lengths.online import OnlineQuantiles
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.lengths.recalibrated import Recalibrated
from llmrouter.lengths.simple import PointModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrouter.lengths.predictor import LengthPredictor

REQUEST = LengthRequest(application="a", model="m", prompt_tokens=50)
MEDIAN_TOKENS = 200.0
TRUE_SHARES = (0.1, 0.4, 0.0, 0.4, 0.1)
FOREVER = 10**9


def law(spread: float) -> LengthDistribution:
    """A log-normal law; ``spread`` is its standard deviation in the logarithm."""
    quantiles = tuple(MEDIAN_TOKENS * math.exp(spread * NormalDist().inv_cdf(level)) for level in LEVELS)
    return LengthDistribution(quantiles, MEDIAN_TOKENS, 1.0, "true")


def answer(rng: np.random.Generator, spread: float, factor: float) -> float:
    return max(1.0, round(math.exp(rng.normal(math.log(MEDIAN_TOKENS * factor), spread))))


def alarming(codes_N: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Where some count of some window is out of bounds (answers,)."""
    out_N = np.zeros(len(codes_N), dtype=np.bool_)
    for place, test in enumerate(_TESTS):
        cumulated = np.concatenate([[0], np.cumsum(np.isin(codes_N, test.codes))])
        for window in WINDOWS:
            out_N[window - 1 :] |= cumulated[window:] - cumulated[:-window] >= _bounds(window, TAIL)[place]
    return out_N


def test_a_true_law_raises_about_one_alarm_in_a_million_answers() -> None:
    """Answers of continuous laws so wide that none is near a quantile: the most alarms that a true law can raise."""
    rng = np.random.default_rng(11)
    alarms, answers = 0, 4_000_000
    for _ in range(4):
        places = np.nonzero(alarming(rng.choice(5, size=answers // 4, p=TRUE_SHARES).astype(np.int8)))[0]
        alarms += len(places) and 1 + int((np.diff(places) > WINDOWS[-1]).sum())
    assert alarms <= 8  # 0.65 a million in 40 million


@pytest.mark.parametrize("spread", [0.5, 0.8, 1.2])
def test_the_watch_is_calm_on_a_true_law(spread: float) -> None:
    rng, watch, true = np.random.default_rng(5), DriftWatch(), law(spread)
    for _ in range(20_000):
        watch.note(REQUEST, true, answer(rng, spread, 1.0))
        assert watch.drift is None


def delay(spread: float, factor: float, seed: int) -> int:
    """Answers from the change to the alarm, where the law does not follow."""
    rng, watch, true = np.random.default_rng(seed), DriftWatch(), law(spread)
    for _ in range(200):
        watch.note(REQUEST, true, answer(rng, spread, 1.0))
    for place in range(2_000):
        watch.note(REQUEST, true, answer(rng, spread, factor))
        if watch.drift is not None:
            wanted = "AnswersLonger" if factor > 1.0 else "AnswersShorter"
            assert watch.drift.reason == wanted
            return place + 1
    return FOREVER


@pytest.mark.parametrize(
    ("spread", "factor", "within"),
    [(0.5, 2.0, 40), (0.5, 4.0, 15), (0.8, 2.0, 90), (0.8, 4.0, 25), (0.8, 0.5, 90), (0.8, 0.25, 25), (1.2, 4.0, 50)],
)
def test_a_change_that_lasts_is_noticed(spread: float, factor: float, within: int) -> None:
    delays = [delay(spread, factor, seed) for seed in range(21)]
    assert median(delays) <= within
    assert max(delays) < 3 * within


def learners(spread: float) -> dict[str, LengthPredictor]:
    model = PointModel(lambda requests: np.full(len(requests), MEDIAN_TOKENS), name="model", spread=spread)
    return {
        "model, recalibrated": Recalibrated(model),
        "application quantiles": OnlineQuantiles(),
        "application quantiles, recalibrated": Recalibrated(OnlineQuantiles()),
    }


@pytest.mark.parametrize("name", sorted(learners(1.0)))
@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_laws_that_learn_end_the_alarm_that_a_change_raised(name: str, factor: float) -> None:
    spread = 0.5
    rng, watch, predictor = np.random.default_rng(3), DriftWatch(), learners(spread)[name]

    def passes(answers: int, factor: float) -> list[bool]:
        alarmed = []
        for _ in range(answers):
            tokens = answer(rng, spread, factor)
            predicted = predictor.predict([REQUEST]).row(0)
            watch.note(REQUEST, predicted, tokens)
            predictor.learn(REQUEST, tokens, predicted)
            alarmed.append(watch.drift is not None)
        return alarmed

    assert not any(passes(600, 1.0)[200:])
    alarmed = passes(800, factor)
    assert 4 <= alarmed.index(True) <= 20
    assert not any(alarmed[500:])

"""One suite for every length predictor: what it answers, what it believes, and what strange requests do to it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from llmrouter.lengths.blended import Blended
from llmrouter.lengths.distribution import LEVELS, MAX_TOKENS, NotFiniteLengthsError
from llmrouter.lengths.online import By, OnlineQuantiles
from llmrouter.lengths.online_text import OnlineText
from llmrouter.lengths.predictor import LengthRequest, UsageRefusal
from llmrouter.lengths.recalibrated import Recalibrated
from llmrouter.lengths.simple import ConstantLengths, PointModel, QuantileModel, ThreeBucketRule
from llmrouter.training.length_evaluation_artefact import shipped_forest, shipped_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from llmrouter.lengths.predictor import LengthPredictor


def by_prompt(requests: Sequence[LengthRequest]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A model whose quantiles cross and leave the bounds."""
    size_N = np.array([float(len(one.prompt or "")) for one in requests])
    return np.stack([size_N * (1.0 - level) - 5.0 for level in LEVELS], axis=1), size_N


def taught(predictor: LengthPredictor) -> LengthPredictor:
    rng = np.random.default_rng(7)
    for place in range(300):
        request = LengthRequest(prompt_tokens=place, application=("code", "chat")[place % 2], model="m")
        predictor.learn(request, float(rng.integers(1, 900)))
    return predictor


MAKERS: dict[str, Callable[[], LengthPredictor]] = {
    "constant": lambda: ConstantLengths(256),
    "three buckets": ThreeBucketRule,
    "histogram": lambda: taught(OnlineQuantiles(chain=(By.BAND,), half_life=None, name="histogram")),
    "task mean": lambda: taught(OnlineQuantiles(chain=(By.APPLICATION,), half_life=None, name="task-mean")),
    "online, new": OnlineQuantiles,
    "online, taught": lambda: taught(OnlineQuantiles(exploration=0.2)),
    "forest": shipped_forest,
    "text": lambda: shipped_text()[0],
    "point with spread": lambda: PointModel(lambda requests: np.full(len(requests), 40.0), name="point", spread=0.5),
    "quantiles": lambda: QuantileModel(by_prompt, name="by-prompt", digest="d"),
    "recalibrated, new": lambda: Recalibrated(OnlineQuantiles()),
    "recalibrated, taught": lambda: taught(Recalibrated(OnlineQuantiles())),
    "recalibrated constant": lambda: taught(Recalibrated(ConstantLengths(256))),
    "blended": lambda: taught(Blended([Recalibrated(shipped_forest()), OnlineQuantiles()])),
    "online text, new": OnlineText,
    "online text, taught": lambda: taught(OnlineText()),
    "online text, with a model": lambda: taught(OnlineText(model=shipped_text()[0])),
    "recalibrated online text": lambda: taught(Recalibrated(OnlineText())),
    "blended with online text": lambda: taught(Blended([OnlineQuantiles(), OnlineText()])),
    "recalibrated text": lambda: taught(Recalibrated(shipped_text()[0])),
    "recalibrated forest": lambda: taught(Recalibrated(shipped_forest())),
}

REQUESTS = (
    LengthRequest(),
    LengthRequest(prompt="", prompt_tokens=0),
    LengthRequest(prompt="Write a poem.", prompt_tokens=4, application="chat", model="m"),
    LengthRequest(prompt="x" * 100_000, prompt_tokens=10**9, application="x" * 10_000, model="m" * 10_000),
    LengthRequest(prompt="\x00\ud800\udfff\x7f", prompt_tokens=3, application="\ud800", model="m"),
    LengthRequest(prompt="a", prompt_tokens=1, max_output_tokens=1, temperature=0.0, tools=3, stop=2, turn=9),
    LengthRequest(prompt="a", prompt_tokens=1, max_output_tokens=17, thinking=True),
    LengthRequest(prompt="a", prompt_tokens=1, max_output_tokens=0),
)


@pytest.fixture(params=list(MAKERS))
def predictor(request: pytest.FixtureRequest) -> LengthPredictor:
    return MAKERS[request.param]()


class TestEveryPredictor:
    def test_gives_one_law_per_request(self, predictor: LengthPredictor) -> None:
        assert len(predictor.predict(REQUESTS)) == len(REQUESTS)

    def test_an_empty_batch(self, predictor: LengthPredictor) -> None:
        assert len(predictor.predict([])) == 0

    def test_laws_are_finite_ascending_and_within_bounds(self, predictor: LengthPredictor) -> None:
        laws = predictor.predict(REQUESTS)
        assert np.isfinite(laws.quantiles).all()
        assert np.isfinite(laws.rank).all()
        assert (np.diff(laws.quantiles, axis=1) >= 0.0).all()
        assert (laws.quantiles >= 1.0).all()
        assert (laws.quantiles <= MAX_TOKENS).all()
        assert ((laws.expected_tokens >= 1.0) & (laws.expected_tokens <= MAX_TOKENS)).all()

    def test_no_answer_is_expected_beyond_the_requests_limit(self, predictor: LengthPredictor) -> None:
        for request, law in zip(REQUESTS, map(predictor.predict(REQUESTS).row, range(len(REQUESTS))), strict=True):
            if request.max_output_tokens is not None:
                assert max(*law.quantiles, law.expected_tokens) <= max(1, request.max_output_tokens)

    def test_a_batch_answers_as_its_requests_alone(self, predictor: LengthPredictor) -> None:
        batch = predictor.predict(REQUESTS)
        for place, request in enumerate(REQUESTS):
            alone = predictor.predict([request]).row(0)
            assert batch.row(place).quantiles == pytest.approx(alone.quantiles, rel=1e-6)
            assert batch.row(place).rank == pytest.approx(alone.rank, rel=1e-6)

    def test_bucket_probabilities_add_up(self, predictor: LengthPredictor) -> None:
        shares = predictor.predict(REQUESTS).bucket_probabilities((10.0, 250.0, 1_000.0))
        assert shares.shape == (len(REQUESTS), 4)
        assert (shares >= 0.0).all()
        assert shares.sum(axis=1) == pytest.approx(1.0)

    def test_names_the_source(self, predictor: LengthPredictor) -> None:
        law = predictor.predict(REQUESTS).row(0)
        assert (law.source, law.digest) == (predictor.name, predictor.digest)

    @pytest.mark.parametrize(
        ("tokens", "reason"),
        [
            (0, UsageRefusal.NOT_POSITIVE),
            (-5, UsageRefusal.NOT_POSITIVE),
            (10**9, UsageRefusal.TOO_LARGE),
            (math.inf, UsageRefusal.TOO_LARGE),
            (-math.inf, UsageRefusal.NOT_POSITIVE),
            (math.nan, UsageRefusal.NOT_A_NUMBER),
        ],
    )
    def test_a_lie_is_refused_and_changes_nothing(
        self, predictor: LengthPredictor, tokens: float, reason: UsageRefusal
    ) -> None:
        before = predictor.predict(REQUESTS)
        for _ in range(50):
            assert predictor.learn(REQUESTS[2], tokens) is reason
        after = predictor.predict(REQUESTS)
        assert (after.latent == before.latent).all()

    def test_more_than_the_requests_own_limit_is_a_lie(self, predictor: LengthPredictor) -> None:
        assert predictor.learn(REQUESTS[6], 18) is UsageRefusal.BEYOND_LIMIT
        assert predictor.learn(REQUESTS[6], 17) is None

    def test_what_is_true_is_believed(self, predictor: LengthPredictor) -> None:
        assert [predictor.learn(request, 1) for request in REQUESTS] == [None] * len(REQUESTS)

    def test_the_law_it_gave_may_be_handed_back(self, predictor: LengthPredictor) -> None:
        law = predictor.predict([REQUESTS[2]]).row(0)
        assert predictor.learn(REQUESTS[2], 12, law) is None


class TestModels:
    @pytest.mark.parametrize("wrong", [math.nan, math.inf])
    def test_an_answer_that_is_not_finite_is_an_error(self, wrong: float) -> None:
        point = PointModel(lambda requests: np.full(len(requests), wrong), name="broken")
        with pytest.raises(NotFiniteLengthsError, match="broken"):
            point.predict(REQUESTS)
        quantiles = QuantileModel(
            lambda requests: (by_prompt(requests)[0], np.full(len(requests), wrong)), name="broken"
        )
        with pytest.raises(NotFiniteLengthsError, match="broken"):
            Recalibrated(quantiles).predict(REQUESTS)

    def test_the_forest_tells_applications_apart(self) -> None:
        asked = [LengthRequest(prompt_tokens=900, application=name) for name in ("code", "conversation")]
        assert shipped_forest().predict(asked).expected_tokens[1] > 0

    @pytest.mark.parametrize("tokens", [0, -1, math.nan, 2e6])
    def test_a_constant_is_a_length(self, tokens: float) -> None:
        with pytest.raises(ValueError, match="within 1"):
            ConstantLengths(tokens)

    def test_the_three_bucket_rule(self) -> None:
        asked = [LengthRequest(thinking=True, tools=1), LengthRequest(tools=2), LengthRequest(tools=0), LengthRequest()]
        assert ThreeBucketRule().predict(asked).expected_tokens.tolist() == pytest.approx([4_096, 100, 1_000, 1_000])

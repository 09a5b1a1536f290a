"""One suite for every predictor; the shipped model's own behaviour; and what happens when it fails."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from llmrouter.artefacts import builtin_model
from llmrouter.domain import Prediction
from llmrouter.errors import ModelRejectedError
from llmrouter.manifest import parse_manifest
from llmrouter.routing.lateness import LATE_IN_A_ROW, REST_S
from llmrouter.training.length_table import LICENCES
from router_grpc.adapters.predictors import (
    ConstantPredictor,
    FallbackPredictor,
    NonFinitePredictionError,
    OnnxPredictor,
    load_predictor,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router_grpc.ports import Predictor

MODEL, MANIFEST = builtin_model("output_length", "random-forest")
LENGTHS = [0, 1, 17, 900, 4_000, 100_000, 10**9]


def shipped() -> OnnxPredictor:
    return load_predictor(MODEL, MANIFEST, expected_sha256=None)


def guarded(primary: Predictor) -> FallbackPredictor:
    return FallbackPredictor(
        primary, ConstantPredictor(256), budget_s=1.0, clock=lambda: 0.0, on_failure=lambda _reason, _message: None
    )


@pytest.fixture(params=["constant", "onnx", "fallback"])
def predictor(request: pytest.FixtureRequest) -> Predictor:
    made: dict[str, Predictor] = {
        "constant": ConstantPredictor(256),
        "onnx": shipped(),
        "fallback": guarded(shipped()),
    }
    return made[request.param]


class TestEveryPredictor:
    def test_gives_one_prediction_per_request(self, predictor: Predictor) -> None:
        predictions = predictor.predict(LENGTHS, ["conversation"] * len(LENGTHS))
        assert len(predictions) == len(LENGTHS)

    def test_is_finite_and_at_least_one_token(self, predictor: Predictor) -> None:
        for application in ("", "code", "conversation", "never heard of", "x" * 10_000):
            for one in predictor.predict(LENGTHS, [application] * len(LENGTHS)):
                assert math.isfinite(one.expected_tokens)
                assert one.expected_tokens >= 1.0

    def test_an_empty_batch(self, predictor: Predictor) -> None:
        assert predictor.predict([], []) == []

    def test_a_batch_answers_as_its_requests_alone(self, predictor: Predictor) -> None:
        batch = predictor.predict(LENGTHS, ["code"] * len(LENGTHS))
        assert batch == [predictor.predict([tokens], ["code"])[0] for tokens in LENGTHS]

    def test_names_the_source(self, predictor: Predictor) -> None:
        (one,) = predictor.predict([10], ["code"])
        assert one.source == predictor.name
        assert one.digest == predictor.digest


class TestOnnxPredictor:
    def test_knows_the_applications_of_its_manifest(self) -> None:
        code, conversation = shipped().predict([1_000, 1_000], ["code", "conversation"])
        assert code.expected_tokens < conversation.expected_tokens

    def test_all_unknown_applications_are_one(self) -> None:
        first, second, third = shipped().predict([64, 64, 64], ["", "payroll", "Code"])
        assert first == second == third

    def test_stays_below_the_declared_bound(self) -> None:
        manifest = parse_manifest(MANIFEST)
        limit = manifest.bounds["output_tokens"].max
        for application in manifest.applications:
            predictions = shipped().predict(LENGTHS, [application] * len(LENGTHS))
            assert max(one.expected_tokens for one in predictions) <= limit

    def test_was_made_from_shippable_rows_only(self) -> None:
        for one in parse_manifest(MANIFEST).training_data:
            assert LICENCES[one.source] == one.licence

    def test_batches_of_unequal_length(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            shipped().predict([1, 2], ["code"])

    def test_refuses_a_policy_model(self) -> None:
        with pytest.raises(ModelRejectedError) as caught:
            load_predictor(*builtin_model("policy", "marginal-cost"), expected_sha256=None)
        assert caught.value.reason == "ManifestInvalid"

    def test_refuses_a_cut_model(self) -> None:
        with pytest.raises(ModelRejectedError) as caught:
            load_predictor(MODEL[: len(MODEL) // 2], MANIFEST, expected_sha256=None)
        assert caught.value.reason == "ModelCorrupt"

    def test_refuses_a_wrong_digest(self) -> None:
        with pytest.raises(ModelRejectedError) as caught:
            load_predictor(MODEL, MANIFEST, expected_sha256="f" * 64)
        assert caught.value.reason == "DigestMismatch"


class TestConstantPredictor:
    @pytest.mark.parametrize("tokens", [0, -1, math.nan, math.inf, 2e9])
    def test_refuses_what_no_answer_has(self, tokens: float) -> None:
        with pytest.raises(ValueError, match="within 1"):
            ConstantPredictor(tokens)


class Scripted:
    """A predictor that takes the time, or raises the error, it is told to."""

    name = "scripted"
    digest = "d"
    resting = False

    def __init__(self) -> None:
        self.now_s = 0.0
        self.takes_s = 0.0
        self.error: Exception | None = None
        self.calls = 0

    def clock(self) -> float:
        return self.now_s

    def predict(self, prompt_tokens: Sequence[int], applications: Sequence[str]) -> list[Prediction]:
        del applications
        self.calls += 1
        self.now_s += self.takes_s
        if self.error is not None:
            raise self.error
        return [Prediction(7.0, self.name, self.digest) for _ in prompt_tokens]


class TestFallbackPredictor:
    @pytest.fixture
    def scripted(self) -> Scripted:
        return Scripted()

    @pytest.fixture
    def failures(self) -> list[str]:
        return []

    @pytest.fixture
    def predictor(self, scripted: Scripted, failures: list[str]) -> FallbackPredictor:
        return FallbackPredictor(
            scripted,
            ConstantPredictor(256),
            budget_s=0.01,
            clock=scripted.clock,
            on_failure=lambda reason, _message: failures.append(reason),
        )

    def source(self, predictor: FallbackPredictor) -> str:
        return predictor.predict([5], ["code"])[0].source

    def test_the_primary_answers(self, predictor: FallbackPredictor, failures: list[str]) -> None:
        assert self.source(predictor) == "scripted"
        assert failures == []

    @pytest.mark.parametrize(
        ("error", "reason"), [(RuntimeError("boom"), "Error"), (NonFinitePredictionError("nan"), "NotFinite")]
    )
    def test_the_fallback_answers_for_a_failure(
        self, predictor: FallbackPredictor, scripted: Scripted, failures: list[str], error: Exception, reason: str
    ) -> None:
        scripted.error = error
        assert self.source(predictor) == "constant"
        assert failures == [reason]
        scripted.error = None
        assert self.source(predictor) == "scripted"

    def test_a_slow_primary_rests_and_comes_back(
        self, predictor: FallbackPredictor, scripted: Scripted, failures: list[str]
    ) -> None:
        scripted.takes_s = 0.02
        assert [self.source(predictor) for _ in range(LATE_IN_A_ROW)] == ["scripted"] * LATE_IN_A_ROW
        assert predictor.resting
        assert self.source(predictor) == "constant"
        assert scripted.calls == LATE_IN_A_ROW
        assert failures == ["Late"] * (LATE_IN_A_ROW + 1)
        scripted.now_s += REST_S
        scripted.takes_s = 0.0
        assert self.source(predictor) == "scripted"

    def test_late_ones_with_prompt_ones_between_do_not_rest_it(
        self, predictor: FallbackPredictor, scripted: Scripted
    ) -> None:
        for _ in range(3 * LATE_IN_A_ROW):
            scripted.takes_s = 0.0 if scripted.calls % LATE_IN_A_ROW == 0 else 0.02
            self.source(predictor)
        assert not predictor.resting

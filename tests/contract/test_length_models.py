"""One suite for every length model that a router can load; the shipped models' own behaviour; what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from llmrouter.artefacts import builtin_model
from llmrouter.errors import ModelRejectedError
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.manifest import parse_manifest
from llmrouter.training.length_table import LICENCES
from router_grpc.adapters.length_models import load_lengths

if TYPE_CHECKING:
    from router_grpc.ports import LengthModel

NAMES = ("random-forest", "text")
REQUESTS = (
    LengthRequest(),
    LengthRequest(prompt="", prompt_tokens=0, application="code"),
    LengthRequest(prompt="Write a poem.", prompt_tokens=4, application="x" * 10_000, model="m"),
    LengthRequest(prompt="\x00\ud800 \udfff" * 9, prompt_tokens=10**9, max_output_tokens=1, temperature=9.0),
    LengthRequest(prompt_tokens=17, application="never heard of", tools=3, stop=1, turn=2, thinking=True),
)


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> LengthModel:
    return load_lengths(*builtin_model("output_length", request.param), expected_sha256=None)


class TestEveryModel:
    def test_gives_one_finite_law_per_request(self, model: LengthModel) -> None:
        laws = model.laws(REQUESTS)
        assert len(laws) == len(REQUESTS)
        assert np.isfinite(laws.quantiles).all()
        assert (laws.quantiles >= 1.0).all()

    def test_an_empty_batch(self, model: LengthModel) -> None:
        assert len(model.laws([])) == 0

    def test_a_batch_answers_as_its_requests_alone(self, model: LengthModel) -> None:
        batch = model.laws(REQUESTS).quantiles
        alone = np.concatenate([model.laws([one]).quantiles for one in REQUESTS])
        assert batch == pytest.approx(alone, rel=1e-5)

    def test_names_its_source(self, model: LengthModel) -> None:
        law = model.laws(REQUESTS[:1]).row(0)
        assert (law.source, law.digest) == (model.name, model.digest)

    def test_says_what_it_runs_on(self, model: LengthModel) -> None:
        assert model.provider in {"cpu", "cuda"}


def test_a_text_model_reads_prompts_and_a_forest_does_not() -> None:
    for name, reads in (("text", True), ("random-forest", False)):
        model = load_lengths(*builtin_model("output_length", name), expected_sha256=None)
        first, second = (
            model.laws([LengthRequest(prompt="Say yes.", prompt_tokens=9)]),
            model.laws([LengthRequest(prompt="Write a long essay about Rome.", prompt_tokens=9)]),
        )
        assert model.reads_prompts is reads
        assert (first.quantiles.tolist() != second.quantiles.tolist()) is reads


def test_the_forest_knows_the_applications_of_its_manifest() -> None:
    forest = load_lengths(*builtin_model("output_length", "random-forest"), expected_sha256=None)
    asked = [LengthRequest(prompt_tokens=1_000, application=name) for name in ("code", "conversation", "", "payroll")]
    code, conversation, nothing, payroll = forest.laws(asked).expected_tokens
    assert code < conversation
    assert nothing == payroll


def test_the_forest_stays_below_its_declared_bound() -> None:
    content = builtin_model("output_length", "random-forest")
    manifest = parse_manifest(content[1])
    forest = load_lengths(*content, expected_sha256=None)
    asked = [LengthRequest(prompt_tokens=10**power, application=name)
             for power in range(10) for name in manifest.applications]  # fmt: skip
    assert forest.laws(asked).expected_tokens.max() <= manifest.bounds["output_tokens"].max


def test_the_forest_was_made_from_shippable_rows_only() -> None:
    for one in parse_manifest(builtin_model("output_length", "random-forest")[1]).training_data:
        assert LICENCES[one.source] == one.licence


@pytest.mark.parametrize("name", NAMES)
class TestRefused:
    def reason(self, model: bytes, manifest: bytes, *, sha256: str | None = None) -> str:
        with pytest.raises(ModelRejectedError) as caught:
            load_lengths(model, manifest, expected_sha256=sha256)
        return caught.value.reason

    def test_a_cut_model(self, name: str) -> None:
        model, manifest = builtin_model("output_length", name)
        assert self.reason(model[: len(model) // 2], manifest) == "ModelCorrupt"

    def test_a_wrong_digest(self, name: str) -> None:
        assert self.reason(*builtin_model("output_length", name), sha256="f" * 64) == "DigestMismatch"

    def test_another_feature_version(self, name: str) -> None:
        model, manifest = builtin_model("output_length", name)
        said = json.loads(manifest)
        said["featureVersion"] = 3
        assert self.reason(model, json.dumps(said).encode()) == "FeatureVersionMismatch"

    def test_other_features(self, name: str) -> None:
        model, manifest = builtin_model("output_length", name)
        said = json.loads(manifest)
        first = said["featureNames"][0]
        said["featureNames"][0] = "star_sign"
        said["bounds"]["star_sign"] = said["bounds"].pop(first, {"min": 0, "max": 1})
        assert self.reason(model, json.dumps(said).encode()) in {"FeatureVersionMismatch", "ManifestInvalid"}


def test_a_policy_model_is_refused() -> None:
    with pytest.raises(ModelRejectedError) as caught:
        load_lengths(*builtin_model("policy", "marginal-cost"), expected_sha256=None)
    assert caught.value.reason == "ManifestInvalid"

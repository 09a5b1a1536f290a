"""One suite for every scorer, and one bad model for every reason to refuse one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.models import (
    file_reading_scorer,
    lying_scorer,
    manifest_for,
    nan_scorer,
    shipped_manifest,
    summing_scorer,
    two_column_scorer,
)

from llmrouter.artefacts import builtin_model
from llmrouter.domain import ObjectiveWeights
from llmrouter.errors import ModelRejectedError
from llmrouter.manifest import MAX_MODEL_BYTES, Bounds, Tensor
from llmrouter.routing.features import FEATURE_NAMES, FEATURE_VERSION, WEIGHT_NAMES, weights_of
from llmrouter.routing.marginal_cost import FormulaScorer
from llmrouter.training.marginal_cost_export import probe_inputs
from router_grpc.adapters.onnx_model import cuda_usable, load_scorer

if TYPE_CHECKING:
    from pathlib import Path

    from router_grpc.ports import Scorer

WEIGHTS = weights_of(ObjectiveWeights())
F, W = len(FEATURE_NAMES), len(WEIGHT_NAMES)
MODEL, MANIFEST = builtin_model("policy", "marginal-cost")


@pytest.fixture(params=["formula", "onnx"])
def scorer(request: pytest.FixtureRequest) -> Scorer:
    return FormulaScorer() if request.param == "formula" else load_scorer(MODEL, MANIFEST, expected_sha256=None)


def pools(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    stream = probe_inputs(np.random.default_rng(7))
    return [next(stream) for _ in range(count)]


def rejection(model: bytes, manifest: bytes, *, expected_sha256: str | None = None) -> ModelRejectedError:
    with pytest.raises(ModelRejectedError) as caught:
        load_scorer(model, manifest, expected_sha256=expected_sha256)
    return caught.value


class TestEveryScorer:
    @pytest.mark.parametrize("instances", [0, 1, 2, 16, 256])
    def test_gives_one_float32_per_instance(self, scorer: Scorer, instances: int) -> None:
        features_IF = np.ones((instances, len(FEATURE_NAMES)), dtype=np.float32)
        scores_I = scorer.score(features_IF, WEIGHTS)
        assert scores_I.shape == (instances,)
        assert scores_I.dtype == np.float32

    def test_is_finite_within_the_declared_bounds(self, scorer: Scorer) -> None:
        for features_IF, weights_W in pools(30):
            assert np.isfinite(scorer.score(features_IF, weights_W)).all()

    def test_answers_the_same_twice(self, scorer: Scorer) -> None:
        features_IF, weights_W = pools(5)[-1]
        np.testing.assert_array_equal(scorer.score(features_IF, weights_W), scorer.score(features_IF, weights_W))

    def test_leaves_its_inputs_alone(self, scorer: Scorer) -> None:
        features_IF, weights_W = pools(5)[-1]
        before_IF, before_W = features_IF.copy(), weights_W.copy()
        scorer.score(features_IF, weights_W)
        np.testing.assert_array_equal(features_IF, before_IF)
        np.testing.assert_array_equal(weights_W, before_W)

    def test_agrees_with_the_formula(self, scorer: Scorer) -> None:
        for features_IF, weights_W in pools(60):
            want_I = FormulaScorer().score(features_IF, weights_W)
            np.testing.assert_allclose(scorer.score(features_IF, weights_W), want_I, rtol=1e-5, atol=0.0)

    @pytest.mark.parametrize(("rows", "columns", "weights"), [(3, F + 1, W), (3, F - 1, W), (3, F, W - 1)])
    def test_refuses_a_wrong_shape(self, scorer: Scorer, rows: int, columns: int, weights: int) -> None:
        features_IF, weights_W = np.ones((rows, columns), np.float32), np.ones(weights, np.float32)
        with pytest.raises(ModelRejectedError) as caught:
            scorer.score(features_IF, weights_W)
        assert caught.value.reason == "ShapeMismatch"

    def test_says_what_it_is_and_runs_on(self, scorer: Scorer) -> None:
        assert scorer.digest
        assert scorer.provider in {"numpy", "cpu", "cuda"}


class TestLoading:
    def test_takes_the_shipped_model_by_its_digest(self) -> None:
        digest = shipped_manifest().sha256
        loaded = load_scorer(MODEL, MANIFEST, expected_sha256=digest)
        assert loaded.digest == digest
        assert loaded.provider == ("cuda" if cuda_usable() else "cpu")

    def test_says_nothing_on_stderr(self, capfd: pytest.CaptureFixture[str]) -> None:
        load_scorer(MODEL, MANIFEST, expected_sha256=None)
        assert capfd.readouterr().err == ""

    def test_takes_another_graph_of_the_same_shape(self) -> None:
        model = summing_scorer()
        scorer = load_scorer(model, manifest_for(model, shipped_manifest()), expected_sha256=None)
        assert scorer.score(np.ones((2, F), np.float32), WEIGHTS).tolist() == [F, F]

    def test_wrong_sha256(self) -> None:
        assert rejection(MODEL, MANIFEST, expected_sha256="0" * 64).reason == "DigestMismatch"

    def test_bytes_cut_in_half(self) -> None:
        half = MODEL[: len(MODEL) // 2]
        assert rejection(half, MANIFEST, expected_sha256=shipped_manifest().sha256).reason == "DigestMismatch"
        assert rejection(half, MANIFEST).reason == "ModelCorrupt"

    @pytest.mark.parametrize("junk", [b"", b"\x00", b"not a model", MODEL[: len(MODEL) // 2], MODEL[:-1]])
    def test_junk_that_its_manifest_vouches_for(self, junk: bytes) -> None:
        assert rejection(junk, manifest_for(junk, shipped_manifest())).reason == "ModelCorrupt"

    def test_too_many_bytes(self) -> None:
        error = rejection(bytes(MAX_MODEL_BYTES + 1), MANIFEST)
        assert error.reason == "ModelCorrupt"
        assert str(MAX_MODEL_BYTES) in str(error)

    def test_no_manifest(self) -> None:
        assert rejection(MODEL, b"").reason == "ManifestInvalid"

    def test_a_model_of_another_kind(self) -> None:
        model, manifest = builtin_model("output_length", "random-forest")
        assert rejection(model, manifest).reason == "ManifestInvalid"

    def test_another_feature_version(self) -> None:
        manifest = manifest_for(MODEL, shipped_manifest(), feature_version=FEATURE_VERSION + 1)
        assert rejection(MODEL, manifest).reason == "FeatureVersionMismatch"

    def test_features_in_another_order(self) -> None:
        names = (FEATURE_NAMES[1], FEATURE_NAMES[0], *FEATURE_NAMES[2:])
        manifest = manifest_for(MODEL, shipped_manifest(), feature_names=names)
        assert rejection(MODEL, manifest).reason == "FeatureVersionMismatch"

    def test_an_extra_feature_that_the_manifest_owns_up_to(self) -> None:
        model, base = summing_scorer(features=F + 1), shipped_manifest()
        manifest = manifest_for(
            model,
            base,
            feature_names=(*FEATURE_NAMES, "temperature"),
            bounds={**base.bounds, "temperature": Bounds(min=0.0, max=1.0)},
            inputs=(Tensor(name="features", dtype="float32", shape=(None, F + 1)), base.inputs[1]),
        )
        assert rejection(model, manifest).reason == "ShapeMismatch"

    def test_an_extra_feature_that_the_manifest_hides(self) -> None:
        model = summing_scorer(features=F + 1)
        assert rejection(model, manifest_for(model, shipped_manifest())).reason == "ShapeMismatch"

    @pytest.mark.parametrize("model", [two_column_scorer(), lying_scorer(), summing_scorer(rows=1)])
    def test_a_wrong_output_shape(self, model: bytes) -> None:
        assert rejection(model, manifest_for(model, shipped_manifest())).reason == "ShapeMismatch"

    def test_nan_on_a_probe(self) -> None:
        model = nan_scorer()
        assert rejection(model, manifest_for(model, shipped_manifest())).reason == "NotFinite"

    @pytest.mark.parametrize("absolute", [True, False])
    def test_a_model_that_reads_a_file_of_the_machine(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, absolute: bool
    ) -> None:
        secret = tmp_path / "secret.bin"
        secret.write_bytes(np.arange(F, dtype=np.float32).tobytes())
        monkeypatch.chdir(tmp_path)
        model = file_reading_scorer(str(secret) if absolute else "secret.bin")
        assert rejection(model, manifest_for(model, shipped_manifest())).reason == "ModelCorrupt"

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from llmrouter.artefacts import builtin_model, builtin_names
from llmrouter.errors import InvalidConfigError, ModelRejectedError
from llmrouter.manifest import MAX_MANIFEST_BYTES, Manifest, ModelKind, check_manifest, parse_manifest

SHIPPED = [
    ("policy", "learned"),
    ("policy", "marginal-cost"),
    ("output_length", "random-forest"),
    ("output_length", "text"),
]
POLICY = parse_manifest(builtin_model("policy", "marginal-cost")[1])
LENGTH = parse_manifest(builtin_model("output_length", "random-forest")[1])


def policy_file(**changes: object) -> bytes:
    """The shipped policy's manifest with fields set, or dropped where the value is ``...``."""
    data = json.loads(POLICY.to_json())
    data.update(changes)
    return json.dumps({key: value for key, value in data.items() if value is not ...}).encode()


def check(manifest: Manifest, **changes: Any) -> None:  # noqa: ANN401 - any argument of the call
    asked: dict[str, Any] = {"expected_kind": manifest.kind, "model_sha256": manifest.sha256, "expected_sha256": None}
    check_manifest(manifest, **(asked | changes))


def rejected(manifest: Manifest, **changes: object) -> str:
    with pytest.raises(ModelRejectedError) as caught:
        check(manifest, **changes)
    return caught.value.reason


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_what_is_shipped_passes_and_survives_a_round_trip(kind: str, name: str) -> None:
    raw = builtin_model(kind, name)[1]
    manifest = parse_manifest(raw)
    assert (manifest.kind, manifest.name) == (kind, name)
    assert manifest.to_json() == raw
    check(manifest, expected_sha256=manifest.sha256)
    check(manifest, expected_sha256=manifest.sha256.upper())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"surprise": 1}, "surprise"),
        ({"seed": ...}, "seed"),
        ({"seed": -1}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"featureVersion": 0}, "featureVersion"),
        ({"featureVersion": "1"}, "featureVersion"),
        ({"modelVersion": "one"}, "modelVersion"),
        ({"name": "../../etc"}, "name"),
        ({"kind": "verdict"}, "kind"),
        ({"sha256": "abc"}, "sha256"),
        ({"opset": {}}, "opset"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [{"name": "features", "dtype": "float64", "shape": [None, 14]}]}, "inputs.0.dtype"),
        ({"outputs": [{"name": "costs", "dtype": "float32", "shape": [0]}]}, "outputs.0.shape"),
        ({"scores": {"mae": float("nan")}}, "scores"),
        ({"trainingData": [{"source": "s", "licence": "MIT", "rows": -1}]}, "trainingData.0.rows"),
        ({"bounds": {}}, "lacks the feature 'requests'"),
        ({"bounds": {"requests": {"min": 2.0, "max": 1.0}}}, "bounds.requests"),
        ({"bounds": json.loads(POLICY.to_json())["bounds"] | {"moon": {"min": 0.0, "max": 1.0}}}, "moon"),
        ({"featureNames": ["requests", "requests"]}, "repeats"),
        ({"featureNames": [f"f{number}" for number in range(600)]}, "featureNames"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelRejectedError) as caught:
        parse_manifest(policy_file(**changes))
    assert caught.value.reason == "ManifestInvalid"
    assert named in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}"])
def test_what_is_no_manifest(raw: bytes) -> None:
    with pytest.raises(ModelRejectedError) as caught:
        parse_manifest(raw)
    assert caught.value.reason == "ManifestInvalid"


def test_too_many_bytes() -> None:
    with pytest.raises(ModelRejectedError, match=str(MAX_MANIFEST_BYTES)):
        parse_manifest(b" " * (MAX_MANIFEST_BYTES + 1))


@pytest.mark.parametrize(
    ("manifest", "changes", "reason"),
    [
        (POLICY, {"expected_sha256": "0" * 64}, "DigestMismatch"),
        (POLICY, {"model_sha256": "0" * 64}, "ModelCorrupt"),
        (POLICY, {"expected_kind": "output_length"}, "ManifestInvalid"),
        (LENGTH, {"expected_kind": ModelKind.POLICY}, "ManifestInvalid"),
        (POLICY.model_copy(update={"feature_version": 9}), {}, "FeatureVersionMismatch"),
        (LENGTH.model_copy(update={"feature_version": 9}), {}, "FeatureVersionMismatch"),
        (POLICY.model_copy(update={"feature_names": POLICY.feature_names[::-1]}), {}, "FeatureVersionMismatch"),
        (POLICY.model_copy(update={"feature_names": (*POLICY.feature_names, "more")}), {}, "ShapeMismatch"),
        (LENGTH.model_copy(update={"applications": LENGTH.applications[1:]}), {}, "ShapeMismatch"),
        (POLICY.model_copy(update={"inputs": POLICY.inputs[:1]}), {}, "ShapeMismatch"),
        (POLICY.model_copy(update={"outputs": POLICY.inputs}), {}, "ShapeMismatch"),
        (LENGTH.model_copy(update={"outputs": POLICY.outputs}), {}, "ShapeMismatch"),
    ],
)
def test_each_refusal_has_its_reason(manifest: Manifest, changes: dict[str, Any], reason: str) -> None:
    assert rejected(manifest, **changes) == reason


def test_a_model_that_was_not_asked_for_is_that_first() -> None:
    """Also where the manifest is of another version: the cure is the digest."""
    assert rejected(POLICY.model_copy(update={"feature_version": 9}), expected_sha256="0" * 64) == "DigestMismatch"


def test_checking_needs_no_model_runtime() -> None:
    code = (
        "import sys, llmrouter.manifest, llmrouter.artefacts\n"
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["nope", "", "..", "../output_length/random-forest", "Marginal-Cost"])
def test_a_model_that_is_not_shipped(name: str) -> None:
    with pytest.raises(InvalidConfigError, match="there is: learned, marginal-cost") as caught:
        builtin_model("policy", name)
    assert caught.value.reason == "ModelNotFound"


def test_lists_what_is_shipped() -> None:
    assert [(kind.value, name) for kind in ModelKind for name in builtin_names(kind)] == SHIPPED

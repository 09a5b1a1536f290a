"""Length predictors and tokenizers, from an LLMRouter to what routers read, against a real API server."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from support.operator_process import llm_router
from support.played_routers import acknowledge, config_of, model_config_map, spoiled_manifest

from llmrouter.artefacts import builtin_model
from llmrouter.config import PredictorConfig

if TYPE_CHECKING:
    from support.operator_process import Space

pytest_plugins = ["support.control_plane", "support.operator_space"]


def with_predictor(sha256: str) -> dict[str, Any]:
    return llm_router("fleet", predictor={"model": {"configMap": {"name": "lengths"}, "sha256": sha256}})


def test_a_predictor_of_ones_own_travels_with_the_configuration_and_is_followed(space: Space) -> None:
    model, manifest = builtin_model("output_length", "text")
    sha256 = hashlib.sha256(model).hexdigest()

    space.apply(with_predictor(sha256))
    space.wait(lambda: space.condition("fleet", "PredictorReady")["reason"] == "ModelNotFound", "no model yet")
    assert config_of(space)[1].predictor == PredictorConfig(type="Text")  # the one in force, which is shipped

    space.apply(model_config_map(model, manifest, "lengths"))
    space.wait(lambda: config_of(space)[1].predictor.model_sha256 == sha256, "the model is found")
    config_map = space.get("ConfigMap", "fleet-router-config")
    assert base64.b64decode(config_map["binaryData"]["predictor.onnx"]) == model
    assert config_map["data"]["predictor.manifest.json"].encode() == manifest
    acknowledge(space)
    space.wait(lambda: space.condition("fleet", "PredictorReady")["status"] == "True", "ready")

    space.apply(model_config_map(model[: len(model) // 2], manifest, "lengths"))
    space.wait(lambda: space.condition("fleet", "PredictorReady")["reason"] == "DigestMismatch", "half a model refused")
    kept = space.get("ConfigMap", "fleet-router-config")
    assert base64.b64decode(kept["binaryData"]["predictor.onnx"]) == model
    assert space.condition("fleet", "PolicyReady")["status"] == "True"
    (event,) = space.events("fleet", "DigestMismatch")
    assert event["type"] == "Warning"

    space.apply(llm_router("fleet", predictor={"type": "Applications"}))
    space.wait(lambda: "binaryData" not in space.get("ConfigMap", "fleet-router-config"), "the model gone again")


def test_without_a_predictor_in_force_applications_are_told_apart(space: Space) -> None:
    predictor = {"type": "RandomForest", "model": {"configMap": {"name": "absent"}, "sha256": "0" * 64}}

    space.apply(llm_router("fresh", predictor=predictor))

    space.wait(lambda: space.condition("fresh", "PredictorReady")["reason"] == "ModelNotFound", "the condition")
    assert space.condition("fresh", "PredictorReady")["message"].endswith("Applications is in force")
    content = space.get("ConfigMap", "fresh-router-config")["data"]["router.json"]
    assert json.loads(content)["predictor"]["type"] == "Applications"


def test_a_predictor_that_does_not_fit_beside_the_policy_is_refused(space: Space) -> None:
    model, manifest = builtin_model("output_length", "text")
    large = model.ljust(990_000, b"\0")
    sha256 = hashlib.sha256(large).hexdigest()
    space.apply(model_config_map(large, spoiled_manifest(manifest, sha256=sha256), "lengths"))

    space.apply(with_predictor(sha256))

    space.wait(lambda: space.condition("fleet", "PredictorReady")["reason"] == "ModelTooLarge", "the condition")
    assert config_of(space)[1].predictor.type == "Text"
    assert config_of(space)[1].predictor.model_sha256 is None


def test_drifting_lengths_are_a_condition_and_two_events(space: Space) -> None:
    acknowledge(space, length_drift=False)
    space.wait(lambda: space.condition("fleet", "LengthDrift")["status"] == "False", "steady")
    assert space.events("fleet", "LengthsSteady") == []

    acknowledge(space, length_drift=True, length_drift_message="chat: 40 % covered")
    space.wait(lambda: space.condition("fleet", "LengthDrift")["status"] == "True", "drifting")
    assert "chat: 40 % covered" in space.condition("fleet", "LengthDrift")["message"]
    space.wait(lambda: [one["type"] for one in space.events("fleet", "LengthsDrifted")] == ["Warning"], "a warning")

    acknowledge(space, length_drift=False)
    space.wait(lambda: [one["type"] for one in space.events("fleet", "LengthsSteady")] == ["Normal"], "its end")


@pytest.mark.parametrize(
    "source", [{"persistentVolumeClaim": {"claimName": "tokenizers"}}, {"configMap": {"name": "tokenizers"}}]
)
def test_tokenizers_are_mounted_into_the_routers(space: Space, source: dict[str, Any]) -> None:
    models = [one | {"tokenizer": "llama/tokenizer.json"} for one in llm_router("fleet")["spec"]["models"]]

    space.apply(llm_router("fleet", models=models, router={"replicas": 2, "tokenizers": source}))

    def pod() -> dict[str, Any]:
        spec: dict[str, Any] = space.get("Deployment", "fleet-router")["spec"]["template"]["spec"]
        return spec

    space.wait(lambda: any(next(iter(source)) in volume for volume in pod()["volumes"]), "the volume")
    assert list(config_of(space)[1].tokenizers.values()) == ["llama/tokenizer.json"] * len(models)
    (mount,) = [one for one in pod()["containers"][0]["volumeMounts"] if one["name"] == "tokenizers"]
    assert (mount["mountPath"], mount["readOnly"]) == ("/var/lib/llmrouter/tokenizers", True)

"""A model of one's own with a fault that no check of a model can see: the shipped one, its sign turned round."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import onnx

from llmrouter.artefacts import builtin_model
from llmrouter.manifest import ModelKind, parse_manifest

COSTS = "costs"


def turned_round() -> tuple[bytes, bytes]:
    """ONNX bytes and manifest: the costs of ``marginal-cost``, negated, so that the worst instance looks best."""
    content, manifest = builtin_model(ModelKind.POLICY, "marginal-cost")
    model = onnx.load_from_string(content)
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == COSTS:
                node.output[place] = f"true_{COSTS}"
    model.graph.node.append(onnx.helper.make_node("Neg", [f"true_{COSTS}"], [COSTS]))
    turned: bytes = model.SerializeToString(deterministic=True)
    sha256 = hashlib.sha256(turned).hexdigest()
    return turned, parse_manifest(manifest).model_copy(update={"name": "turned-round", "sha256": sha256}).to_json()


def objects(policy: str) -> list[dict[str, Any]]:
    """The model's ConfigMap, as ``kubectl create configmap --from-file`` makes it, and a RoutingPolicy of that name."""
    model, manifest = turned_round()
    name = f"{policy}-model"
    sha256 = hashlib.sha256(model).hexdigest()
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "binaryData": {"model.onnx": base64.b64encode(model).decode()},
            "data": {"manifest.json": manifest.decode()},
        },
        {
            "apiVersion": "llmrouter.dev/v1alpha1",
            "kind": "RoutingPolicy",
            "metadata": {"name": policy},
            "spec": {"type": "Onnx", "model": {"configMap": {"name": name}, "sha256": sha256}},
        },
    ]

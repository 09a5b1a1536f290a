"""What tests say and read in the place of an LLMRouter's routers, and models in ConfigMaps."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

from support.acknowledgements import said_by

from llmrouter.config import DIGEST_ANNOTATION, RouterConfig, canonical_json, parse_router_config

if TYPE_CHECKING:
    from support.operator_process import Space

EVERYTHING = [
    ("ConfigMap", "fleet-router-config"),
    ("ConfigMap", "fleet-routers"),
    ("ServiceAccount", "fleet-router"),
    ("Role", "fleet-router"),
    ("RoleBinding", "fleet-router"),
    ("Service", "fleet-router"),
    ("Deployment", "fleet-router"),
    ("PodDisruptionBudget", "fleet-router"),
]


def config_of(space: Space) -> tuple[str, RouterConfig]:
    """Digest and content of the configuration that routers read."""
    config_map = space.get("ConfigMap", "fleet-router-config")
    content = config_map["data"]["router.json"].encode()
    digest = config_map["metadata"]["annotations"][DIGEST_ANNOTATION]
    assert hashlib.sha256(content).hexdigest() == digest
    return digest, parse_router_config(content)


def policy_in_force(space: Space) -> str:
    return str(config_of(space)[1].policy.name)


def router_pods(space: Space) -> list[str]:
    pods = space.find("Pod", "?labelSelector=llmrouter.dev/router=fleet")
    return sorted(pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"])


def acknowledgement(pod: str, digest: str, config: RouterConfig, **changes: object) -> str:
    said = said_by(
        pod,
        config_digest=digest,
        generation=config.generation,
        policy_name=config.policy.name,
        policy_type=config.policy.type,
        policy_digest=config.policy.digest,
        predictor_ready=True,
        state_backend_ready=True,
        at_s=1.0,
    )
    return canonical_json(said.model_copy(update=changes)).decode()


def acknowledge(space: Space, **changes: object) -> list[str]:
    """Every router says that it runs the current configuration."""
    space.wait(lambda: len(router_pods(space)) == 2, "two router pods")
    digest, config = config_of(space)
    pods = router_pods(space)
    data = {pod: acknowledgement(pod, digest, config, **changes) for pod in pods}
    space.patch("ConfigMap", "fleet-routers", {"data": data})
    return pods


def become_ready(space: Space) -> None:
    """What a kubelet would say of the pods."""
    for pod in router_pods(space):
        conditions = [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}]
        space.patch("Pod", pod, {"status": {"phase": "Running", "conditions": conditions}}, "/status")


def model_config_map(model: bytes, manifest: bytes, name: str = "model") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "binaryData": {"model.onnx": base64.b64encode(model).decode()},
        "data": {"manifest.json": manifest.decode()},
    }


def spoiled_manifest(manifest: bytes, **changes: object) -> bytes:
    return json.dumps(json.loads(manifest) | changes).encode()

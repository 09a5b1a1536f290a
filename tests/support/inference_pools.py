"""InferencePools for tests: the kind as far as this project reads it, and objects of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmrouter.inference_pool import GROUP, KIND, PLURAL, VERSION
from llmrouter.testbed.cluster.api import ApiError
from llmrouter.testbed.cluster.processes import poll

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmrouter.testbed.cluster.api import Api

CRD_PATH = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{PLURAL}.{GROUP}"
WITHIN_S = 30.0

_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_NUMBER = {"type": "object", "required": ["number"], "properties": {"number": _PORT}}
_PICKER = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "group": {"type": "string", "default": ""},
        "kind": {"type": "string", "default": "Service"},
        "name": {"type": "string"},
        "port": _NUMBER,
        "failureMode": {"type": "string", "default": "FailClose", "enum": ["FailOpen", "FailClose"]},
    },
}
_LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
_SPEC = {
    "type": "object",
    "required": ["selector", "targetPorts"],
    "properties": {
        "selector": {"type": "object", "required": ["matchLabels"], "properties": {"matchLabels": _LABELS}},
        "targetPorts": {"type": "array", "minItems": 1, "maxItems": 8, "items": _NUMBER},
        "appProtocol": {"type": "string"},
        "endpointPickerRef": _PICKER,
    },
}
CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": f"{PLURAL}.{GROUP}",
        "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in for tests"},
    },
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"kind": KIND, "listKind": f"{KIND}List", "plural": PLURAL, "singular": KIND.lower()},
        "versions": [
            {
                "name": VERSION,
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": _SPEC}}},
            }
        ],
    },
}


def path(namespace: str, name: str = "") -> str:
    """Where the API server has the InferencePools of a namespace."""
    return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}" + (f"/{name}" if name else "")


def teach(api: Api) -> None:
    """The API server knows the kind when this returns."""
    api.apply(CRD_PATH, CRD)
    poll(lambda: _serves(api), within_s=WITHIN_S, what="the kind is served")


def unteach(api: Api) -> None:
    """The API server does not know the kind, and no InferencePool is left."""
    if api.exists(CRD_PATH):
        api.call("DELETE", CRD_PATH)
    poll(lambda: not _serves(api), within_s=WITHIN_S, what="the kind is forgotten")


def _serves(api: Api) -> bool:
    try:
        api.get(path("default"))
    except ApiError as error:
        if error.status in {404, 429, 503}:  # not known, or known and not ready yet
            return False
        raise
    return True


def inference_pool(
    name: str,
    labels: Mapping[str, str],
    *,
    ports: Sequence[int] = (8000,),
    picker: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """An InferencePool; ``picker`` is its ``endpointPickerRef``."""
    spec: dict[str, Any] = {
        "selector": {"matchLabels": dict(labels)},
        "targetPorts": [{"number": port} for port in ports],
        "endpointPickerRef": dict(picker or {"name": "picker", "port": {"number": 9002}}),
    }
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": {"name": name}, "spec": spec}

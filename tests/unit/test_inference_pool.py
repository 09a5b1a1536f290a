"""What is read of an InferencePool and of the pods that it selects."""

from __future__ import annotations

from typing import Any

import pytest
from support.inference_pools import inference_pool

from llmrouter.errors import InvalidConfigError
from llmrouter.inference_pool import PickerRef, read_inference_pool
from router_grpc.adapters.inference_pools import active_ports


def test_pods_ports_and_picker_are_read_and_unknown_fields_are_left_alone() -> None:
    value = inference_pool("chat", {"app": "engine"}, ports=(8001, 8000))
    value["spec"]["appProtocol"] = "kubernetes.io/h2c"
    value["spec"]["endpointPickerRef"]["failureMode"] = "FailOpen"
    found = read_inference_pool(value, "chat")
    assert (found.match_labels, found.ports) == ({"app": "engine"}, (8000, 8001))
    picker = found.endpoint_picker_ref
    assert picker is not None
    assert (picker.name, picker.port.number, picker.failure_mode, picker.is_service) == (
        "picker",
        9002,
        "FailOpen",
        True,
    )


def test_what_a_picker_leaves_out_is_as_the_specification_has_it() -> None:
    picker = PickerRef(name="x")
    assert (picker.kind, picker.port.number, picker.failure_mode) == ("Service", 9002, "FailClose")
    assert not PickerRef(name="x", group="example.com").is_service


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selector": {"matchLabels": {}}}, "spec.selector.matchLabels"),
        ({"targetPorts": []}, "spec.targetPorts"),
        ({"targetPorts": [{"number": 70000}]}, r"spec.targetPorts\[0\].number"),
        ({"endpointPickerRef": {}}, "spec.endpointPickerRef.name"),
    ],
)
def test_what_cannot_be_followed_names_the_field(change: dict[str, Any], message: str) -> None:
    value = inference_pool("chat", {"app": "engine"})
    value["spec"] |= change
    with pytest.raises(InvalidConfigError, match=f"InferencePool chat: {message}") as refusal:
        read_inference_pool(value, "chat")
    assert refusal.value.reason == "InferencePoolInvalid"


@pytest.mark.parametrize(
    ("annotations", "ports"),
    [
        (None, (8000, 8001)),
        ({"other": "8000"}, (8000, 8001)),
        ({"llm-d.ai/active-ports": "8001"}, (8001,)),
        ({"llm-d.ai/active-ports": " 8001 ,8000,x,"}, (8000, 8001)),
        ({"llm-d.ai/active-ports": ""}, ()),
        ({"llm-d.ai/active-ports": "9999"}, ()),
        ({"inference.networking.k8s.io/active-ports": "8000"}, (8000,)),
        ({"inference.networking.k8s.io/active-ports": "8000", "llm-d.ai/active-ports": "8001"}, (8001,)),
    ],
)
def test_pods_say_which_of_their_ports_serve(annotations: dict[str, str] | None, ports: tuple[int, ...]) -> None:
    assert active_ports(annotations, (8000, 8001)) == ports

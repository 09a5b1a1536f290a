"""The plugin against a real API server, through its kubectl and its proxy to pods."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from support.operator_process import llm_router, make_namespace

from llmrouter.console.command import main
from llmrouter.decisions.record import DecisionRecord, PolicyInForce, to_line
from llmrouter.metrics import RouterMetrics
from llmrouter.testbed.cluster.binaries import CONTROL_PLANE, Binaries
from router_grpc.metrics_port import serving_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.operator_process import Space

    from llmrouter.testbed.cluster.control_plane import ControlPlane

pytest_plugins = ["support.control_plane"]


@pytest.fixture(autouse=True)
def kubectl(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    """As whoever runs the plugin has it."""
    program = Binaries().provide(CONTROL_PLANE)["kubectl"]
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(scope="module")
def space(control_plane: ControlPlane) -> Iterator[Space]:
    """An LLMRouter of which an operator has said something."""
    made = make_namespace(control_plane, "t-console")
    made.apply(llm_router("fleet"))
    status = {
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Serving",
                "message": "1/1 routers",
                "lastTransitionTime": "2026-05-04T11:00:00Z",
            }
        ],
        "routers": {"ready": 1, "desired": 1, "summary": "1/1"},
    }
    path = "/apis/llmrouter.dev/v1alpha1/namespaces/t-console/llmrouters/fleet/status"
    body = {
        "apiVersion": "llmrouter.dev/v1alpha1",
        "kind": "LLMRouter",
        "metadata": {"name": "fleet"},
        "status": status,
    }
    control_plane.api.apply(path, body, manager="operator")
    yield made
    control_plane.api.call("DELETE", "/api/v1/namespaces/t-console")


def own_address() -> str:
    """Of this machine: the API server passes nothing on to loopback addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        return str(probe.getsockname()[0])


def run_pod(control_plane: ControlPlane, port: int) -> None:
    """A router's pod as the kubelet would have it, its port this process's."""
    pods = "/api/v1/namespaces/t-console/pods"
    labels = {"llmrouter.dev/router": "fleet"}
    inner = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    outer = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    container = {"name": "router", "image": "router", "ports": [{"containerPort": port}], "securityContext": inner}
    metadata = {"name": "fleet-router-0", "labels": labels}
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [container], "securityContext": outer},
    }
    control_plane.api.call("POST", pods, pod)
    address = own_address()
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
    control_plane.api.apply(f"{pods}/fleet-router-0/status", {**pod, "spec": None, "status": status}, manager="kubelet")


def test_status_of_all_and_of_one(space: Space, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "-n", space.name]) == 0
    assert "fleet" in capsys.readouterr().out
    assert main(["status", "fleet", "-n", space.name]) == 0
    assert "1/1 routers" in capsys.readouterr().out
    assert main(["status", "fleet", "-n", space.name, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["llmrouter"]["metadata"]["name"] == "fleet"
    assert said["held"] is None


def test_one_that_is_not_there(space: Space, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "nobody", "-n", space.name]) == 1
    assert '"nobody" not found' in capsys.readouterr().err


def record(request_id: str) -> DecisionRecord:
    policy = PolicyInForce(name="by-cost", type="WorkloadImpact", digest="0", decided_by="WorkloadImpact")
    return DecisionRecord(
        request_id=request_id,
        router_id="fleet-router-0",
        model="llama",
        arrived_at_s=1.0,
        decided_at_s=1.0,
        prompt_tokens=120,
        predicted_output_tokens=80.0,
        policy=policy,
        reason="lowest cost",
        eligible=2,
        roomy=2,
        chosen="vllm-0",
    )


def test_top_status_and_explain_ask_the_routers_through_the_api_server(
    control_plane: ControlPlane, space: Space, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = CollectorRegistry()
    metrics = RouterMetrics(registry)
    metrics.in_flight_requests.labels("big", "vllm-0").set(7)
    metrics.held_requests.set(3)
    kept = {"a b/1": to_line(record("a b/1"))}
    port = int(control_plane.api.get(space_path("fleet"))["spec"].get("listeners", {}).get("metricsPort", 9090))
    in_space = ["-n", space.name]
    with serving_metrics(registry, own_address(), port, find=kept.get):
        run_pod(control_plane, port)
        assert main(["top", "fleet", *in_space, "--interval", "0.5"]) == 0
        text = capsys.readouterr().out
        assert "fleet-router-0" in text
        assert "vllm-0" in text
        assert main(["status", "fleet", *in_space]) == 0
        assert "3 requests" in capsys.readouterr().out
        assert main(["explain", "a b/1", *in_space]) == 0
        assert "Policy by-cost (WorkloadImpact) decided for vllm-0." in capsys.readouterr().out
        assert main(["explain", "a b/1", "--router", "fleet", "--json", *in_space]) == 0
        assert json.loads(capsys.readouterr().out)["record"]["chosen"] == "vllm-0"
        assert main(["explain", "other", *in_space]) == 1
        assert "no router has a record of 'other'" in capsys.readouterr().err


def space_path(name: str) -> str:
    return f"/apis/llmrouter.dev/v1alpha1/namespaces/t-console/llmrouters/{name}"

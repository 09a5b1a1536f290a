"""The operator with real routers: processes in the place of pods, with the pods' environment and ServiceAccount."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.inference_pools import inference_pool, teach
from support.operator_process import ROOT, Object, OperatorProcess, Space, llm_router, routing_policy, watched

from llmrouter.testbed.cluster.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from llmrouter.testbed.cluster.control_plane import ControlPlane
    from llmrouter.testbed.cluster.redis import RedisServer

pytest_plugins = ["support.control_plane", "support.redis_server"]


@pytest.fixture(scope="module")
def operator(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    log = tmp_path_factory.mktemp("operator") / "operator.log"
    with watched(control_plane, "routers").operator(log, lease_seconds=5) as running:
        yield running


def environment(container: Object, pod: str, kubeconfig: Path) -> dict[str, str]:
    """What a kubelet would make of the container's environment; ports differ because the pods share one address."""
    values = {entry["name"]: entry.get("value", pod) for entry in container["env"]}
    ports = {name: str(free_port()) for name in values if name.endswith("_PORT")}
    machine = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "KUBECONFIG": str(kubeconfig),
        "HOME": "/nonexistent",
    }
    return machine | values | ports


def start_router(space: Space, pod: str, kubeconfig: Path, log: Path) -> subprocess.Popen[bytes]:
    (container,) = space.get("Deployment", "fleet-router")["spec"]["template"]["spec"]["containers"]
    words = [sys.executable, *container["command"][1:]]
    with log.open("wb") as output:
        return subprocess.Popen(words, env=environment(container, pod, kubeconfig), stdout=output, stderr=output)


def remove(space: Space) -> None:
    """The LLMRouter and its pods, for the test after this one."""
    space.delete("LLMRouter", "fleet")
    space.wait(lambda: not space.find("Pod") and not space.exists("Deployment", "fleet-router"), "everything goes")


def await_reason(space: Space, kind: str, reason: str) -> None:
    space.wait(lambda: space.condition("fleet", kind)["reason"] == reason, f"{kind} {reason}")


def acknowledged(space: Space) -> str:
    return str(space.status("fleet").get("activePolicy", {}).get("acknowledged"))


def test_routers_run_what_is_applied_and_say_so(
    control_plane: ControlPlane, operator: OperatorProcess, redis_server: RedisServer, tmp_path: Path
) -> None:
    space = Space(control_plane.api, "routers")
    space.apply(routing_policy("plain"))
    pool = {"name": "fixed", "endpoints": ["127.0.0.1:9"], "profile": {"name": "llama-3.1-8b-rtx4090"}}
    space.apply(llm_router("fleet", pools=[pool], state={"redis": {"address": f"127.0.0.1:{redis_server.port}"}}))
    space.wait(lambda: len(space.find("Pod")) == 2, f"two pods, see {operator.log}")
    kubeconfig = control_plane.service_account_kubeconfig("routers", "fleet-router")
    with ExitStack() as stack:
        for pod in (value["metadata"]["name"] for value in space.find("Pod")):
            router = start_router(space, pod, kubeconfig, tmp_path / f"{pod}.log")
            stack.callback(router.wait)
            stack.callback(router.kill)

        space.wait(lambda: acknowledged(space) == "2/2", f"both acknowledge, see {tmp_path}")
        assert space.condition("fleet", "PolicyReady")["status"] == "True"
        space.wait(lambda: space.condition("fleet", "StateBackendReady")["status"] == "True", "the ledger")
        space.wait(lambda: space.condition("fleet", "PredictorReady")["status"] == "True", "the predictor")

        space.apply(routing_policy("plain", type="Onnx", model={"builtin": "marginal-cost"}))

        space.wait(lambda: space.status("fleet")["activePolicy"]["type"] == "Onnx", "the new policy is announced")
        space.wait(lambda: acknowledged(space) == "2/2", "both run it")
        space.wait(lambda: space.condition("fleet", "PolicyReady")["status"] == "True", "and are well with it")
    remove(space)


def test_a_router_of_an_inference_pool_says_what_is_missing_and_serves(
    control_plane: ControlPlane, operator: OperatorProcess, tmp_path: Path
) -> None:
    space = Space(control_plane.api, "routers")
    teach(space.api)
    space.apply(routing_policy("plain"))
    space.apply(inference_pool("chat", {"app": "engine"}, picker={"name": "picker", "port": {"number": 9002}}))
    pool = {"name": "main", "inferencePoolRef": {"name": "chat"}, "profile": {"name": "llama-3.1-8b-rtx4090"}}
    listeners = {"extProc": {"certificateSecretRef": {"name": "absent"}}}
    space.apply(llm_router("fleet", pools=[pool], listeners=listeners, router={"replicas": 1}, state={}))
    space.wait(lambda: len(space.find("Pod")) == 1, f"a pod, see {operator.log}")
    (pod,) = (value["metadata"]["name"] for value in space.find("Pod"))
    kubeconfig = control_plane.service_account_kubeconfig("routers", "fleet-router")
    router = start_router(space, pod, kubeconfig, tmp_path / f"{pod}.log")
    try:
        space.wait(lambda: acknowledged(space) == "1/1", f"it acknowledges, see {tmp_path}")
        await_reason(space, "CertificateReady", "CertificateMissing")
        await_reason(space, "InstancesAvailable", "NoInstances")
        await_reason(space, "InferencePoolsResolved", "Resolved")
        space.delete("InferencePool", "chat")
        await_reason(space, "InferencePoolsResolved", "InferencePoolNotFound")
        assert router.poll() is None
    finally:
        router.kill()
        router.wait()
    remove(space)

"""The operator as a process of its own, under the chart's real rights, against a real API server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from llmrouter.testbed.cluster.api import Api, ApiError
from llmrouter.testbed.cluster.binaries import Binaries
from llmrouter.testbed.cluster.processes import free_port, poll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from llmrouter.testbed.cluster.control_plane import ControlPlane

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "llmrouter"
SYSTEM = "llmrouter-system"
ACCOUNT = "llmrouter-operator"
WITHIN_S = 60.0
Object = dict[str, Any]

PLURALS = {
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Event": "/api/v1/namespaces/{}/events",
    "Pod": "/api/v1/namespaces/{}/pods",
    "Service": "/api/v1/namespaces/{}/services",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "StatefulSet": "/apis/apps/v1/namespaces/{}/statefulsets",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Lease": "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
    "LLMRouter": "/apis/llmrouter.dev/v1alpha1/namespaces/{}/llmrouters",
    "RoutingPolicy": "/apis/llmrouter.dev/v1alpha1/namespaces/{}/routingpolicies",
    "InferencePool": "/apis/inference.networking.k8s.io/v1/namespaces/{}/inferencepools",
}
OWNED = ("ConfigMap", "ServiceAccount", "Role", "RoleBinding", "Service", "Deployment", "PodDisruptionBudget")


def render_chart(*settings: str, namespace: str = SYSTEM) -> list[Object]:
    """What ``helm template`` makes of the chart."""
    helm = Binaries().provide(("helm",))["helm"]
    words = [str(helm), "template", "llmrouter", str(CHART), "--namespace", namespace, "--kube-version", "1.35.0"]
    for setting in settings:
        words += ["--set", setting]
    rendered = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return [value for value in yaml.safe_load_all(rendered) if value]


def chart_rights(*settings: str, namespace: str = SYSTEM) -> list[Object]:
    """The chart's ServiceAccount, roles and bindings."""
    kinds = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
    return [value for value in render_chart(*settings, namespace=namespace) if value["kind"] in kinds]


@dataclass(frozen=True)
class Space:
    """One namespace, as its administrator sees it."""

    api: Api
    name: str

    def path(self, kind: str, name: str = "") -> str:
        return PLURALS[kind].format(self.name) + (f"/{name}" if name else "")

    def get(self, kind: str, name: str) -> Object:
        return self.api.get(self.path(kind, name))

    def find(self, kind: str, query: str = "") -> list[Object]:
        items: list[Object] = self.api.get(self.path(kind) + query)["items"]
        return items

    def exists(self, kind: str, name: str) -> bool:
        return self.api.exists(self.path(kind, name))

    def apply(self, value: Object, manager: str = "person") -> Object:
        return self.api.apply(self.path(value["kind"], value["metadata"]["name"]), value, manager=manager)

    def create(self, value: Object) -> Object:
        return self.api.call("POST", self.path(value["kind"]), value)

    def delete(self, kind: str, name: str) -> None:
        self.api.call("DELETE", self.path(kind, name))

    def patch(self, kind: str, name: str, body: Object, subresource: str = "") -> Object:
        path = self.path(kind, name) + subresource
        return self.api.call("PATCH", path, body, content_type="application/merge-patch+json")

    def status(self, name: str) -> Object:
        result: Object = self.get("LLMRouter", name).get("status", {})
        return result

    def condition(self, name: str, kind: str) -> Object:
        found = [one for one in self.status(name).get("conditions", []) if one["type"] == kind]
        return found[0] if found else {"status": None, "reason": None, "message": None}

    def events(self, name: str, reason: str) -> list[Object]:
        return [
            event
            for event in self.find("Event")
            if event["reason"] == reason and event["involvedObject"]["name"] == name
        ]

    def owned(self, name: str) -> list[tuple[str, str]]:
        query = f"?labelSelector=llmrouter.dev/router={name}"
        return [(kind, value["metadata"]["name"]) for kind in OWNED for value in self.find(kind, query)]

    def wait(self, condition: Callable[[], bool], what: str, within_s: float = WITHIN_S) -> None:
        def holds() -> bool:
            try:
                return condition()
            except ApiError as error:
                if error.status == 404:
                    return False
                raise

        poll(holds, within_s=within_s, what=what)


@dataclass
class OperatorProcess:
    """A running operator."""

    process: subprocess.Popen[bytes]
    log: Path
    http_port: int

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def says(self, text: str) -> bool:
        return text in self.log.read_text()


def start_operator(
    kubeconfig: Path, log: Path, arguments: Sequence[str], *, namespace: str = SYSTEM
) -> OperatorProcess:
    """Starts an operator as if in a pod of ``namespace``, where its Lease is."""
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(log.parent),
        "KUBECONFIG": str(kubeconfig),
        "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}",
        "LLMROUTER_ROUTER_IMAGE": "example.test/router:1",
        "POD_NAMESPACE": namespace,
        "POD_NAME": log.stem,
    }
    words = [sys.executable, "-m", "llmrouter_operator", f"--http-port={port}", f"--lease-name={ACCOUNT}", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(words, env=environment, stdout=output, stderr=output)
    return OperatorProcess(process, log, port)


@contextmanager
def running_operator(
    kubeconfig: Path, log: Path, arguments: Sequence[str], *, namespace: str = SYSTEM
) -> Iterator[OperatorProcess]:
    """An operator that ends with the block."""
    operator = start_operator(kubeconfig, log, arguments, namespace=namespace)
    try:
        yield operator
    finally:
        operator.kill()


def make_namespace(control_plane: ControlPlane, name: str) -> Space:
    """A namespace of its own, where only pods of the restricted profile may be made."""
    metadata = {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
    control_plane.api.apply(
        f"/api/v1/namespaces/{name}", {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    )
    return Space(control_plane.api, name)


def grant(control_plane: ControlPlane, rights: Sequence[Object], *, namespace: str = SYSTEM) -> Path:
    """Applies the chart's rights; returns a kubeconfig that has exactly these."""
    make_namespace(control_plane, namespace)
    for value in rights:
        path = Space(control_plane.api, value["metadata"].get("namespace", "")).path(
            value["kind"], value["metadata"]["name"]
        )
        control_plane.api.apply(path, value)
    return control_plane.service_account_kubeconfig(namespace, ACCOUNT)


@dataclass(frozen=True)
class Watched:
    """A namespace, and another one whose operators have the chart's rights in it and nowhere else."""

    space: Space
    system: Space
    kubeconfig: Path

    def operator(self, log: Path, *arguments: str, lease_seconds: int = 3) -> AbstractContextManager[OperatorProcess]:
        """An operator of the namespace that ends with the block."""
        words = [f"--namespace={self.space.name}", f"--lease-seconds={lease_seconds}", *arguments]
        return running_operator(self.kubeconfig, log, words, namespace=self.system.name)


def watched(control_plane: ControlPlane, name: str) -> Watched:
    """Makes both namespaces."""
    space, system = make_namespace(control_plane, name), Space(control_plane.api, f"{name}-system")
    rights = chart_rights(f"watchNamespaces={{{name}}}", namespace=system.name)
    return Watched(space, system, grant(control_plane, rights, namespace=system.name))


def llm_router(name: str, **changes: object) -> Object:
    """A small LLMRouter; ``changes`` replace fields of its spec."""
    spec: Object = {
        "models": [{"name": "llama"}],
        "pools": [
            {
                "name": "engines",
                "selector": {"matchLabels": {"app": "engine"}},
                "profile": {"name": "llama-3.1-8b-rtx4090"},
            }
        ],
        "policyRef": {"name": "plain"},
        "state": {"redis": {"address": "redis:6379"}},
    }
    return {
        "apiVersion": "llmrouter.dev/v1alpha1",
        "kind": "LLMRouter",
        "metadata": {"name": name},
        "spec": spec | changes,
    }


def routing_policy(name: str, **spec: object) -> Object:
    """A RoutingPolicy, RoundRobin unless told otherwise."""
    return {
        "apiVersion": "llmrouter.dev/v1alpha1",
        "kind": "RoutingPolicy",
        "metadata": {"name": name},
        "spec": {"type": "RoundRobin"} | spec,
    }

"""The chart installed, upgraded and removed by helm on a real API server."""

from __future__ import annotations

import base64
import subprocess
from typing import TYPE_CHECKING

from support.operator_process import CHART, Space, make_namespace

from llmrouter.testbed.cluster.binaries import Binaries

if TYPE_CHECKING:
    from llmrouter.testbed.cluster.control_plane import ControlPlane

pytest_plugins = ["support.control_plane"]


def helm(control_plane: ControlPlane, *words: str) -> str:
    program = str(Binaries().provide(("helm",))["helm"])
    command = [program, "--kubeconfig", str(control_plane.kubeconfig), "--namespace", "charted", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def password(space: Space) -> str:
    secret = space.api.get("/api/v1/namespaces/charted/secrets/llmrouter-redis")
    return base64.b64decode(secret["data"]["password"]).decode()


def test_install_upgrade_uninstall(control_plane: ControlPlane) -> None:
    space = make_namespace(control_plane, "charted")

    notes = helm(control_plane, "install", "llmrouter", str(CHART))

    assert "kubectl apply" in notes
    first = password(space)
    space.wait(lambda: len(space.find("Pod")) == 2, "pods of the restricted profile")

    helm(control_plane, "upgrade", "llmrouter", str(CHART), "--set", "operator.replicas=2")

    assert password(space) == first
    space.wait(lambda: len(space.find("Pod")) == 3, "a second replica")

    helm(control_plane, "uninstall", "llmrouter")

    space.wait(lambda: space.find("Deployment") == [] and space.find("Pod") == [], "all gone")
    assert not space.exists("ClusterRole", "charted-llmrouter-operator")
    assert [value["metadata"]["name"] for value in space.find("ServiceAccount")] == ["default"]


def test_the_notes_can_be_typed_as_they_are(control_plane: ControlPlane) -> None:
    space = make_namespace(control_plane, "charted")
    notes = helm(control_plane, "install", "llmrouter", str(CHART), "--dry-run=client")

    manifest = notes.split("<<YAML\n")[1].split("\nYAML")[0]
    control_plane.kubectl("apply", "-n", "charted", "-f", "-", stdin=manifest)

    spec = space.get("LLMRouter", "my-router")["spec"]
    assert spec["state"]["redis"]["address"] == "llmrouter-redis.charted.svc:6379"
    assert spec["state"]["redis"]["passwordSecretRef"] == {"name": "llmrouter-redis", "key": "password"}

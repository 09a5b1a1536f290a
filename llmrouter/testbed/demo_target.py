"""The cluster that a demo runs on, whoever made it: kubectl, helm, and the demo's objects in one namespace."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml

from llmrouter.resources import GROUP
from llmrouter.testbed.cluster.errors import ClusterError, PartFailedError
from llmrouter.testbed.cluster.places import repository_root
from llmrouter.testbed.cluster.processes import poll, run
from llmrouter.testbed.comparison import MODEL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

NAMESPACE = "llmrouter-demo"
RELEASE = "llmrouter"
ROUTER = "demo"
ENGINES = 8
FRONT = ("enabled=true", f"router.name={ROUTER}", "replicas=1", "workers=1", "instanceHeader=true")
"""Values of the chart's front: one Envoy of one thread is plenty for the demo's traffic."""
READY_TIMEOUT_S = 240.0
GONE_TIMEOUT_S = 90.0
_ACTIVE = '{.status.activePolicy.digest}{" "}{.status.activePolicy.acknowledged}{"\\n"}'
_ROUTER_PODS = f"llmrouter.dev/router={ROUTER},app.kubernetes.io/component=router"


@dataclass(frozen=True, slots=True)
class ImageChoice:
    """Images of the release; ``None`` leaves the chart's own."""

    operator: str | None = None
    router: str | None = None
    redis: str | None = None
    envoy: str | None = None

    def helm_values(self) -> list[str]:
        """As arguments for helm."""
        chosen = asdict(self)
        return [word for name, image in chosen.items() if image for word in ("--set", f"images.{name}={image}")]


@dataclass(frozen=True, slots=True)
class Switch:
    """How long ``kubectl apply`` took, and how long it took from its start until every router acknowledged."""

    kubectl_apply_s: float
    apply_to_acknowledged_s: float


@dataclass(frozen=True, slots=True)
class DemoTarget:
    """Where the demo runs. ``access`` are the words that tell kubectl which cluster, ``helm_access`` those for helm."""

    kubectl_program: Path
    helm_program: Path
    access: tuple[str, ...]
    helm_access: tuple[str, ...]
    images: ImageChoice
    shared: bool = False
    """Whether others use the cluster: then the operator looks after the demo's namespace alone."""
    namespace: str = NAMESPACE

    def kubectl_words(self, *words: str) -> list[str]:
        """A command line."""
        return [str(self.kubectl_program), *self.access, "--namespace", self.namespace, *words]

    def kubectl(self, *words: str, within_s: float = 60) -> str:
        """Runs kubectl; a refusal raises ClusterError with what it said."""
        return run(self.kubectl_words(*words), within_s=within_s)

    def helm(self, *words: str) -> str:
        """Runs helm."""
        command = [str(self.helm_program), *self.helm_access, "--namespace", self.namespace, *words]
        return run(command, within_s=120)

    def get(self, *what: str) -> dict[str, Any]:
        """Reads an object or a list."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *what, "--output", "json"))
        return found

    def apply(self, documents: Sequence[Mapping[str, Any]]) -> None:
        """Applies objects as a user does."""
        done = subprocess.run(
            self.kubectl_words("apply", "--filename", "-"),
            input=yaml.safe_dump_all(documents, sort_keys=False),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise ClusterError(f"kubectl apply: {done.stderr.strip()}")

    def install(self, *settings: str) -> None:
        """Installs the chart in the demo's namespace, with the CRDs if they are not there."""
        chart = str(repository_root() / "charts" / "llmrouter")
        scope = ["--set", f"watchNamespaces={{{self.namespace}}}"] if self.shared else []
        values = (*(f"frontend.envoy.{setting}" for setting in FRONT), *settings)
        front = [word for setting in values for word in ("--set", setting)]
        self.helm("install", RELEASE, chart, "--create-namespace", *scope, *front, *self.images.helm_values())

    def router_image(self) -> str:
        """Image that carries engines and replay too."""
        if self.images.router:
            return self.images.router
        values = yaml.safe_load((repository_root() / "charts" / "llmrouter" / "values.yaml").read_text())
        return str(values["images"]["router"])

    def router_pods(self) -> list[dict[str, Any]]:
        """Router pods that are neither ending nor ended."""
        pods = self.get("pods", "--selector", _ROUTER_PODS)["items"]
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def status(self) -> dict[str, Any]:
        """Status of the LLMRouter."""
        status: dict[str, Any] = self.get("llmrouter", ROUTER).get("status") or {}
        return status

    def wait_ready(self, *, instances: int = ENGINES, within_s: float = READY_TIMEOUT_S) -> None:
        """Returns once every router acknowledged its policy and sees every engine."""
        try:
            poll(lambda: is_serving(self.status(), instances), within_s=within_s, what="LLMRouter Ready", every_s=0.5)
        except PartFailedError as error:
            raise PartFailedError(f"{error}; {_conditions(self.status())}; {self._unready_pods()}") from error

    def wait_front(self, *, within_s: float = READY_TIMEOUT_S) -> None:
        """Returns once a request through the front comes back from an engine."""
        models = f"/api/v1/namespaces/{self.namespace}/services/{RELEASE}-front:http/proxy/v1/models"

        def answers() -> bool:
            try:
                return MODEL in self.kubectl("get", "--raw", models)
            except ClusterError:  # not yet: asking again is what the caller does
                return False

        try:
            poll(answers, within_s=within_s, what="an answer through Envoy", every_s=0.5)
        except PartFailedError as error:
            raise PartFailedError(f"{error}; {self._unready_pods()}") from error

    def _unready_pods(self) -> str:
        states = [f"{pod['metadata']['name']} {_pod_state(pod)}" for pod in self.get("pods")["items"]]
        return "pods: " + (", ".join(state for state in states if not state.endswith("Running")) or "all run")

    @contextmanager
    def acknowledgements(self) -> Iterator[AcknowledgementWatch]:
        """Watches what the routers acknowledge."""
        words = ("get", "llmrouter", ROUTER, "--watch", "--output", f"jsonpath={_ACTIVE}")
        child = subprocess.Popen(
            self.kubectl_words(*words), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            yield AcknowledgementWatch(child)
        finally:
            child.kill()
            child.communicate()

    def switch_policy(self, policy: str, *, within_s: float = 60.0) -> Switch:
        """Applies another RoutingPolicy and waits until every router acknowledged it."""
        documents = manifest(f"policies/{policy}.yaml")
        before = self.status()["activePolicy"]["digest"]
        with self.acknowledgements() as watch:
            began_s = time.monotonic()
            self.apply(documents)
            applied_s = time.monotonic()
            watch.wait_for_other(before, within_s=within_s)
            return Switch(applied_s - began_s, time.monotonic() - began_s)

    def wait_replaced(self, pod: str, *, within_s: float = 120.0) -> None:
        """Returns once ``pod`` is gone and all its successors acknowledged."""

        def replaced() -> bool:
            pods = self.router_pods()
            names = [one["metadata"]["name"] for one in pods]
            wanted = self.get("llmrouter", ROUTER)["spec"]["router"]["replicas"]
            running = len(pods) == wanted and all(_pod_state(one) == "Running" for one in pods)
            return pod not in names and running and is_serving(self.status())

        poll(replaced, within_s=within_s, what=f"a replacement for {pod}", every_s=0.3)

    def collect_logs(self, into: Path) -> None:
        """Writes the log of every container of the namespace, as far as it can be had."""
        into.mkdir(parents=True, exist_ok=True)
        with suppress(ClusterError):  # a cluster that answers no more has no more logs
            for pod in self.get("pods")["items"]:
                self._collect(pod["metadata"]["name"], into)
            (into / "events.txt").write_text(self.kubectl("get", "events", "--sort-by=.lastTimestamp"))

    def _collect(self, pod: str, into: Path) -> None:
        with suppress(ClusterError):  # a container that never began has no log
            (into / f"{pod}.log").write_text(self.kubectl("logs", pod, "--all-containers", "--prefix=false"))

    def crds(self) -> list[str]:
        """Those of our resource definitions that the cluster has."""
        names = self.kubectl("get", "customresourcedefinitions", "--output", "name").split()
        return [name for name in names if name.endswith(f".{GROUP}")]

    def uninstall(self) -> None:
        """Removes the demo: the LLMRouter first, while its operator still runs, then release and namespace."""
        if f"namespace/{self.namespace}" not in self.kubectl("get", "namespaces", "--output", "name").split():
            return
        if self.crds():
            self.kubectl("delete", "llmrouters,routingpolicies", "--all", "--wait", "--timeout=60s", within_s=90)
        self.helm("uninstall", RELEASE, "--wait", "--ignore-not-found")
        self.kubectl("delete", "namespace", self.namespace, "--wait", f"--timeout={GONE_TIMEOUT_S:g}s", within_s=120)

    def remove_crds(self) -> None:
        """Removes our resource definitions, which helm leaves."""
        if found := self.crds():
            self.kubectl("delete", *found, "--wait", within_s=90)


class AcknowledgementWatch:
    """Lines of a watch on an LLMRouter: digest and how many routers acknowledged it."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def wait_for_other(self, digest: str, *, within_s: float) -> None:
        """Returns once another digest is acknowledged by all routers."""
        ender = threading.Timer(within_s, self._child.kill)
        ender.start()
        try:
            for line in self._child.stdout or ():
                shown, _, acknowledged = line.strip().partition(" ")
                if shown and shown != digest and is_all(acknowledged):
                    return
        finally:
            ender.cancel()
        raise PartFailedError(f"not every router acknowledged the new policy within {within_s:g} s")


def manifest(name: str) -> list[dict[str, Any]]:
    """The documents of a packaged YAML file."""
    text = (resources.files(__package__) / "manifests" / name).read_text(encoding="utf-8")
    return [document for document in yaml.safe_load_all(text) if document]


def with_image(document: dict[str, Any], image: str) -> dict[str, Any]:
    """A workload of ``manifests`` whose containers run this image."""
    spec = document["spec"]
    pod = spec["template"]["spec"] if "template" in spec else spec
    for container in pod.get("containers", ()):
        container["image"] = image
    return document


def engines(image: str) -> list[dict[str, Any]]:
    """The simulated engines."""
    return [with_image(document, image) for document in manifest("cluster/engines.yaml")]


def replay_pod(image: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The pod that replays; ``arguments`` are added to those of its manifest."""
    (pod,) = manifest("cluster/replay.yaml")
    pod["spec"]["containers"][0]["args"] += arguments
    return with_image(pod, image)


def is_all(count: str) -> bool:
    """Whether a count such as ``2/2`` is of all."""
    have, _, want = count.partition("/")
    return bool(have) and have == want


def is_serving(status: Mapping[str, Any], instances: int = ENGINES) -> bool:
    """Whether all routers are there, acknowledged their policy, and see so many engines."""
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))
    active, seen = status.get("activePolicy") or {}, status.get("instances") or {}
    return ready and is_all(str(active.get("acknowledged", ""))) and seen.get("ready") == instances


def _conditions(status: Mapping[str, Any]) -> str:
    texts = [
        f"{c['type']}={c['status']} {c['reason']}: {c['message']}"
        for c in status.get("conditions", ())
        if c["status"] != "True" and c["type"] != "Progressing"
    ]
    return "; ".join(texts) or "no condition speaks against it"


def _pod_state(pod: Mapping[str, Any]) -> str:
    for container in (pod.get("status") or {}).get("containerStatuses", ()):
        waiting = container["state"].get("waiting") or {}
        if waiting:
            return f"{waiting.get('reason')} {waiting.get('message', '')}".strip()
        if not container["ready"]:
            return "not ready"
    return str((pod.get("status") or {}).get("phase", "unknown"))

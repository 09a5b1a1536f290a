"""How long a policy takes from ``kubectl apply`` to where status says that every router runs it.

A real API server with etcd and the controllers, the operator as a process of its own, and whole routers, though all in
one process, that follow the ConfigMap, build, swap and acknowledge. Each round applies another RoutingPolicy of a name,
and waits until status says that all routers run it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shlex
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from kubernetes.aio import client
from rich.console import Console
from rich.progress import track
from rich.table import Table

from llmrouter.acknowledgement import ACKNOWLEDGEMENTS_SUFFIX, CONFIG_SUFFIX
from llmrouter.config import DIGEST_ANNOTATION
from llmrouter.resources import StateSpec
from llmrouter.testbed.cluster.binaries import CONTROL_PLANE, Binaries
from llmrouter.testbed.cluster.control_plane import ControlPlane, Settings
from llmrouter.testbed.cluster.processes import free_port, poll, start
from router_grpc.adapters.kube import AcknowledgementWriter, ConfigMapSource, connect
from router_grpc.composition import Settings as RouterSettings
from router_grpc.composition import compose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from router_grpc.app import RouterApp

ROOT = Path(__file__).resolve().parents[1]
NAMESPACE, NAME, POLICY = "acknowledging", "fleet", "tuned"
TYPES = ("LeastInFlight", "WorkloadImpact", "PowerOfTwo", "LMetric")
WITHIN_S = 60.0
LONGEST_PAUSE_S = 2.0
LOOK_S = 0.002
PARTS = ("configuration", "in force", "acknowledgements", "status")

Object = dict[str, Any]


class Follower:
    """Watches one object in a thread of its own, and says when it was first seen to be as asked."""

    def __init__(self, control_plane: ControlPlane, path: str, name: str) -> None:
        self._url = f"{control_plane.server}{path}?watch=1&fieldSelector=metadata.name={name}"
        self._headers = {"Authorization": f"Bearer {control_plane.admin_token}"}
        trusted = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(control_plane.ca_file)))
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), trusted)
        self._changed = threading.Condition()
        self._seen: list[tuple[float, Object]] = []
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        request = urllib.request.Request(self._url, headers=self._headers)  # noqa: S310 - the server this run started
        with self._opener.open(request) as stream:
            for line in stream:
                now_s, value = time.monotonic(), json.loads(line)["object"]
                with self._changed:
                    self._seen.append((now_s, value))
                    self._changed.notify_all()

    def when(self, condition: Callable[[Object], bool], *, what: str) -> float:
        """When it was first so; waits for that. Raises TimeoutError naming ``what``."""
        end_s, at = time.monotonic() + WITHIN_S, 0
        with self._changed:
            while True:
                for seen_s, value in self._seen[at:]:
                    if condition(value):
                        return seen_s
                at = len(self._seen)
                if not self._changed.wait(end_s - time.monotonic()):
                    raise TimeoutError(f"not within {WITHIN_S:g} s: {what}")

    def forget(self) -> None:
        """What was seen until now is not asked about any more, but the last."""
        with self._changed:
            del self._seen[:-1]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the objects are."""

    control_plane: ControlPlane

    def path(self, kind: str, name: str = "", group: str = "/apis/llmrouter.dev/v1alpha1") -> str:
        """Of an object, or of all of a kind."""
        return f"{group}/namespaces/{NAMESPACE}/{kind}" + (f"/{name}" if name else "")

    def core(self, kind: str, name: str = "") -> str:
        """The same of a core kind."""
        return self.path(kind, name, "/api/v1")

    def apply_policy(self, spec: Object) -> None:
        """What ``kubectl apply --server-side`` sends."""
        body = {"apiVersion": "llmrouter.dev/v1alpha1", "kind": "RoutingPolicy", "metadata": {"name": POLICY}}
        self.control_plane.api.apply(self.path("routingpolicies", POLICY), {**body, "spec": spec}, manager="person")

    def apply_router(self, replicas: int) -> None:
        """One LLMRouter with so many routers."""
        pool = {"name": "fixed", "endpoints": ["127.0.0.1:9"], "profile": {"name": "llama-3.1-8b-rtx4090"}}
        spec = {
            "models": [{"name": "llama"}],
            "pools": [pool],
            "policyRef": {"name": POLICY},
            "router": {"replicas": replicas},
            "state": {"redis": {"address": "redis:6379"}},
            "limits": {"scrapeIntervalSeconds": 60},
        }
        body = {"apiVersion": "llmrouter.dev/v1alpha1", "kind": "LLMRouter", "metadata": {"name": NAME}, "spec": spec}
        self.control_plane.api.apply(self.path("llmrouters", NAME), body, manager="person")

    def pods(self) -> list[str]:
        """Names of the routers' pods, which nothing runs."""
        found = self.control_plane.api.get(self.core("pods"))["items"]
        return sorted(one["metadata"]["name"] for one in found if "deletionTimestamp" not in one["metadata"])


def specs() -> Iterator[Object]:
    """Policies, each with another digest than the one before it."""
    number = 0
    while True:
        number += 1
        yield {"type": TYPES[number % len(TYPES)], "queue": {"maxDepth": 1000 + number}}


async def live(place: Place, pods: Sequence[str], stack: AsyncExitStack) -> list[RouterApp]:
    """The routers of these pods."""
    apps: list[RouterApp] = []
    for pod in pods:
        api = await connect(str(place.control_plane.kubeconfig))
        stack.push_async_callback(api.close)
        core = client.CoreV1Api(api)
        source = ConfigMapSource(core, namespace=NAMESPACE, name=NAME + CONFIG_SUFFIX, on_error=lambda _error: None)
        writer = AcknowledgementWriter(core, namespace=NAMESPACE, name=NAME + ACKNOWLEDGEMENTS_SUFFIX, key=pod)
        settings = RouterSettings(router_id=pod, namespace=NAMESPACE, host="127.0.0.1", grpc_port=0, seed=1)
        router = compose(settings, state=StateSpec(), source=source, core=core, acknowledge=writer.write)
        await router.app.start()
        apps.append(router.app)
        stack.push_async_callback(router.close)
        stack.push_async_callback(router.app.drain, 0.0, settle_s=0.0)
    return apps


def when_in_force(apps: Sequence[RouterApp], digest: str) -> float:
    """When the last of the routers ran a configuration; waits for that."""

    def runs() -> bool:
        return all(app.service.runtime is not None and app.service.runtime.digest == digest for app in apps)

    while not runs():
        time.sleep(LOOK_S)
    return time.monotonic()


async def measured(place: Place, replicas: int, rounds: int, console: Console) -> list[dict[str, float]]:
    """Seconds from the apply call's beginning, by part, of each round."""
    wishes = specs()
    place.apply_policy(next(wishes))
    place.apply_router(replicas)
    await asyncio.to_thread(poll, lambda: len(place.pods()) == replicas, within_s=WITHIN_S, what=f"{replicas} pods")
    watches = {
        "configuration": Follower(place.control_plane, place.core("configmaps"), NAME + CONFIG_SUFFIX),
        "acknowledgements": Follower(place.control_plane, place.core("configmaps"), NAME + ACKNOWLEDGEMENTS_SUFFIX),
        "status": Follower(place.control_plane, place.path("llmrouters"), NAME),
    }
    rng, everyone = random.Random(replicas), f"{replicas}/{replicas}"
    found: list[dict[str, float]] = []
    async with AsyncExitStack() as stack:
        apps = await live(place, place.pods(), stack)
        whole = lambda value: value.get("status", {}).get("activePolicy", {}).get("acknowledged") == everyone  # noqa: E731 - a condition
        await asyncio.to_thread(watches["status"].when, whole, what="all routers acknowledge")
        for _ in track(range(rounds), f"{replicas} routers", console=console, transient=True):
            await asyncio.sleep(rng.uniform(0.3, LONGEST_PAUSE_S))
            found.append(await asyncio.to_thread(one_round, place, watches, next(wishes), apps))
    return found


def one_round(place: Place, watches: dict[str, Follower], spec: Object, apps: Sequence[RouterApp]) -> dict[str, float]:
    """Applies a policy, and when each part was seen."""
    count = len(apps)
    everyone = f"{count}/{count}"
    for one in watches.values():
        one.forget()
    before = config_map(place)["metadata"]["annotations"][DIGEST_ANNOTATION]
    began_s = time.monotonic()
    place.apply_policy(spec)
    digests: list[str] = []

    def is_new(value: Object) -> bool:
        digest = value["metadata"]["annotations"][DIGEST_ANNOTATION]
        digests.append(digest)
        return bool(digest != before)

    configured_s = watches["configuration"].when(is_new, what="the configuration")
    digest = digests[-1]
    in_force_s = when_in_force(apps, digest)
    said_s = watches["acknowledgements"].when(
        lambda value: (
            sum(f'"configDigest": "{digest}"' in said for said in (value.get("data") or {}).values()) == count
        ),
        what="the acknowledgements",
    )
    status_s = watches["status"].when(lambda value: is_acknowledged(value, spec, everyone), what="the status")
    return {
        name: at_s - began_s for name, at_s in zip(PARTS, (configured_s, in_force_s, said_s, status_s), strict=True)
    }


def is_acknowledged(router: Object, spec: Object, everyone: str) -> bool:
    """Whether status says that all routers run the policy."""
    status = router.get("status") or {}
    active = status.get("activePolicy") or {}
    ready = [one["status"] for one in status.get("conditions") or () if one["type"] == "PolicyReady"]
    return bool(active.get("acknowledged") == everyone and active.get("type") == spec["type"] and ready == ["True"])


def config_map(place: Place) -> Object:
    """The configuration as it is."""
    return place.control_plane.api.get(place.core("configmaps", NAME + CONFIG_SUFFIX))


def run_operator(control_plane: ControlPlane, folder: Path, stack: ExitStack) -> None:
    """The operator, with an administrator's rights: what is measured is not what it may do."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "KUBECONFIG": str(control_plane.kubeconfig),
        "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}",
        "LLMROUTER_ROUTER_IMAGE": "example.test/router:1",
        "POD_NAMESPACE": NAMESPACE,
        "POD_NAME": "operator",
    }
    words = [sys.executable, "-m", "llmrouter_operator", f"--http-port={free_port()}", f"--namespace={NAMESPACE}"]
    operator = start("operator", words, log=folder / "operator.log", env=environment)
    stack.callback(operator.stop)


def run(sizes: Sequence[int], rounds: int, console: Console) -> dict[int, list[dict[str, float]]]:
    """All rounds, by number of routers."""
    binaries = Binaries().provide(CONTROL_PLANE)
    crds = tuple(yaml.safe_load(file.read_text()) for file in sorted((ROOT / "crds").glob("*.yaml")))
    found: dict[int, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmrouter-bench-")))
        control_plane = stack.enter_context(ControlPlane(Settings(directory=folder, crds=crds), binaries))
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        control_plane.api.apply(f"/api/v1/namespaces/{NAMESPACE}", body)
        run_operator(control_plane, folder, stack)
        place = Place(control_plane)
        for replicas in sizes:
            found[replicas] = asyncio.run(measured(place, replicas, rounds, console))
    return found


def quantile(values: Sequence[float], fraction: float) -> float:
    """Nearest rank."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, round(fraction * (len(ranked) - 1)))]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.acknowledgement", description=__doc__)
    parser.add_argument("--routers", type=int, nargs="+", default=[2, 50], help="how many (default: 2 50)")
    parser.add_argument("--rounds", type=int, default=20, help="policies applied for each (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/bench/acknowledgement.json"), help="file to write")
    options = parser.parse_args(arguments)
    progress, console = Console(stderr=True, highlight=False), Console(highlight=False)
    found = run(options.routers, options.rounds, progress)
    words = shlex.join(["python", "-m", "bench.acknowledgement", *(arguments or sys.argv[1:])])
    table = Table("routers", *(f"{part}, median / p95" for part in PARTS), title=f"{words}: s", title_justify="left")
    for replicas, rounds in found.items():
        cells = [[one[part] for one in rounds] for part in PARTS]
        table.add_row(str(replicas), *(f"{statistics.median(one):.2f} / {quantile(one, 0.95):.2f}" for one in cells))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    cores = subprocess.run(["uptime"], capture_output=True, text=True, check=False).stdout.strip()
    options.json.write_text(json.dumps({"command": words, "uptime": cores, "rounds": found}, indent=2) + "\n")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

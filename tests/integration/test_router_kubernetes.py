"""Routers against a real API server: policy swaps under load, what is refused, instances from pods, what they say."""

# ruff: noqa: ANN401 - keyword arguments are handed on to values that check them

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from kubernetes.aio import client
from support.router_world import LiveRouter, bundle_of, config_of, live_router, until

from llmrouter.artefacts import builtin_model
from llmrouter.config import (
    CONFIG_KEY,
    DIGEST_ANNOTATION,
    MANIFEST_KEY,
    MODEL_KEY,
    PREDICTOR_MANIFEST_KEY,
    PREDICTOR_MODEL_KEY,
    digest_of,
)
from router_grpc.adapters.kube import AcknowledgementWriter, ConfigMapSource, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llmrouter.config import RouterConfig
    from llmrouter.testbed.cluster.control_plane import ControlPlane

pytest_plugins = ["support.control_plane"]

QUIET = {"maxInFlightPerInstance": 500, "scrapeIntervalSeconds": 60}
MODEL, MANIFEST = builtin_model("policy", "marginal-cost")
SHA256 = str(json.loads(MANIFEST)["sha256"])


@dataclass
class Space:
    """One namespace with the two ConfigMaps of a router, and the operator's hand in it."""

    control_plane: ControlPlane
    name: str = field(default_factory=lambda: f"t-{uuid.uuid4().hex[:8]}")

    def __post_init__(self) -> None:
        self.api = self.control_plane.api
        self.api.apply(
            f"/api/v1/namespaces/{self.name}",
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name}},
        )
        self.put("routers", {})

    def path(self, kind: str, name: str) -> str:
        return f"/api/v1/namespaces/{self.name}/{kind}/{name}"

    def put(self, name: str, data: dict[str, str], *, binary: dict[str, str] | None = None, digest: str = "") -> None:
        metadata = {"name": name, "annotations": {DIGEST_ANNOTATION: digest} if digest else {}}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data, "binaryData": binary or {}}
        self.api.apply(self.path("configmaps", name), body, manager="operator")

    def configure(
        self, config: RouterConfig, *, model: bytes | None = None, manifest: bytes | None = None, filler: int = 0
    ) -> str:
        """What the operator writes; returns the digest."""
        bundle = bundle_of(config)
        data = {CONFIG_KEY: bundle.content.decode()}
        if manifest is not None:
            data[MANIFEST_KEY] = manifest.decode()
        if filler:
            data["filler"] = "x" * filler
        binary = {MODEL_KEY: base64.b64encode(model).decode()} if model is not None else None
        self.put("config", data, binary=binary, digest=bundle.declared_digest or "")
        return bundle.declared_digest or ""

    def configure_lengths(self, config: RouterConfig, model: bytes, manifest: bytes) -> str:
        """The same with a length predictor of one's own."""
        bundle = bundle_of(config)
        data = {CONFIG_KEY: bundle.content.decode(), PREDICTOR_MANIFEST_KEY: manifest.decode()}
        binary = {PREDICTOR_MODEL_KEY: base64.b64encode(model).decode()}
        self.put("config", data, binary=binary, digest=bundle.declared_digest or "")
        return bundle.declared_digest or ""

    def patch_config(self, body: dict[str, Any]) -> None:
        self.api.call("PATCH", self.path("configmaps", "config"), body, content_type="application/merge-patch+json")

    def acknowledged(self, router_id: str = "r1") -> dict[str, Any]:
        data = self.api.get(self.path("configmaps", "routers")).get("data") or {}
        said: dict[str, Any] = json.loads(data.get(router_id, "{}"))
        return said

    async def says(self, **fields: Any) -> dict[str, Any]:
        """The acknowledgement, once it has these fields."""
        said: dict[str, Any] = {}

        async def matches() -> bool:
            said.clear()
            said.update(await asyncio.to_thread(self.acknowledged))
            return all(said.get(name) == value for name, value in fields.items())

        try:
            await until(matches)
        except AssertionError:
            raise AssertionError(f"wanted {fields}, the router says {said}") from None
        return dict(said)

    @asynccontextmanager
    async def router(self, config: RouterConfig, *, kubeconfig: str | None = None) -> AsyncIterator[LiveRouter]:
        """A router that follows this namespace."""
        api = await connect(kubeconfig or str(self.control_plane.kubeconfig))
        try:
            core = client.CoreV1Api(api)
            source = ConfigMapSource(core, namespace=self.name, name="config", on_error=lambda _error: None)
            writer = AcknowledgementWriter(core, namespace=self.name, name="routers", key="r1")
            async with live_router(
                config, source=source, core=core, acknowledge=writer.write, namespace=self.name
            ) as live:
                yield live
        finally:
            await api.close()
            port = int(self.control_plane.server.rsplit(":", 1)[1])
            await until(lambda: not is_connected(port), what="TLS connections have said goodbye")


def is_connected(port: int) -> bool:
    """Whether this process has a connection to a loopback port."""
    remote = f"0100007F:{port:04X}"
    rows = (line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:])
    inodes = {f"socket:[{row[9]}]" for row in rows if row[2] == remote}
    return any(link in inodes for link in map(link_of, Path("/proc/self/fd").iterdir()))


def link_of(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:  # closed since it was listed
        return ""


@pytest.fixture
def space(control_plane: ControlPlane) -> Space:
    return Space(control_plane)


def plain(policy: str = "LeastInFlight", **parts: Any) -> RouterConfig:
    return config_of("127.0.0.1:1", "127.0.0.1:2", policy={"type": policy}, limits=QUIET, **parts)


def embedded(sha256: str = SHA256) -> RouterConfig:
    model = {"configMap": {"name": "m"}, "sha256": sha256}
    return config_of("127.0.0.1:1", policy={"type": "Onnx", "model": model}, model_sha256=sha256, limits=QUIET)


async def test_policies_are_swapped_under_load_without_a_failed_request(space: Space) -> None:
    digest = space.configure(plain())
    async with space.router(plain()) as live:
        said = await space.says(configDigest=digest, policyReady=True)
        assert (said["deciding"], said["instancesReady"], said.get("stateBackendReady")) == ("LeastInFlight", 2, None)
        stop = asyncio.Event()
        policies: list[str] = []

        async def drive(name: str) -> None:
            n = 0
            while not stop.is_set():
                answer = await live.route(f"{name}-{n}")
                policies.append(answer.policy)
                assert await live.finish(answer.request_id)
                n += 1

        drivers = [asyncio.create_task(drive(name)) for name in ("a", "b", "c")]
        await until(lambda: bool(policies), what="requests flow")
        for policy in ("RoundRobin", "PowerOfTwo", "Random"):
            digest = await asyncio.to_thread(space.configure, plain(policy))
            said = await space.says(configDigest=digest, policyReady=True, deciding=policy)
            await until(lambda policy=policy: policies[-1] == policy)  # type: ignore[misc]
        stop.set()
        await asyncio.gather(*drivers)
        assert list(dict.fromkeys(policies)) == ["LeastInFlight", "RoundRobin", "PowerOfTwo", "Random"]
        assert await live.router.app.world.ledger.loads() == {}


async def test_a_configuration_edited_by_hand_is_refused_and_its_repair_is_clean(space: Space) -> None:
    digest = space.configure(plain())
    async with space.router(plain()) as live:
        await space.says(configDigest=digest, policyReady=True)
        edited = bundle_of(plain("Random")).content.decode()
        space.patch_config({"data": {CONFIG_KEY: edited}})
        said = await space.says(policyReady=False, policyReason="DigestMismatch")
        assert said["configDigest"] == digest
        assert said["refusedDigest"]
        assert (await live.route()).policy == "LeastInFlight"
        assert live.count("llmrouter_config_refused_total", reason="DigestMismatch") == 1
        space.configure(plain())
        said = await space.says(configDigest=digest, policyReady=True, policyReason="Active")
        assert "refusedDigest" not in said


async def test_a_configuration_without_its_key_is_refused(space: Space) -> None:
    digest = space.configure(plain())
    async with space.router(plain()):
        await space.says(configDigest=digest)
        space.patch_config({"data": {CONFIG_KEY: None}})
        said = await space.says(policyReason="InvalidConfiguration")
        assert said["configDigest"] == digest


async def test_a_deleted_configuration_stays_in_force(space: Space) -> None:
    digest = space.configure(plain())
    async with space.router(plain()) as live:
        space.api.call("DELETE", space.path("configmaps", "config"))
        assert (await live.route()).policy == "LeastInFlight"
        newer = space.configure(plain("Random"))
        assert newer != digest
        await space.says(configDigest=newer)


BAD_MODELS = {
    "half its bytes": (SHA256, MODEL[: len(MODEL) // 2], MANIFEST),
    "a wrong digest": ("0" * 64, MODEL, MANIFEST),
    "an extra feature": (SHA256, MODEL, MANIFEST.replace(b'"requests"', b'"requests", "star_sign"', 1)),
    "no manifest": (SHA256, MODEL, None),
}


@pytest.mark.parametrize("case", sorted(BAD_MODELS))
async def test_a_bad_model_leaves_the_last_good_policy_in_force(space: Space, case: str) -> None:
    sha256, model, manifest = BAD_MODELS[case]
    digest = space.configure(plain())
    async with space.router(plain()) as live:
        await space.says(configDigest=digest, policyReady=True)
        refused = space.configure(embedded(sha256), model=model, manifest=manifest)
        said = await space.says(policyReady=False, refusedDigest=refused)
        assert (said["configDigest"], said["deciding"]) == (digest, "LeastInFlight")
        assert said["policyMessage"]
        assert (await live.route()).policy == "LeastInFlight"


@pytest.mark.parametrize("case", sorted(BAD_MODELS))
async def test_a_bad_first_model_is_stood_in_for_until_it_is_repaired(space: Space, case: str) -> None:
    sha256, model, manifest = BAD_MODELS[case]
    digest = space.configure(embedded(sha256), model=model, manifest=manifest)
    async with space.router(embedded(sha256)) as live:
        said = await space.says(policyReady=False, configDigest=digest, deciding="LeastInFlight")
        assert said["policyReason"] not in {"", "Active"}
        assert (await live.route()).policy == "LeastInFlight"
        digest = space.configure(
            embedded(), model=MODEL, manifest=MANIFEST
        )  # half its bytes: the same digest as before
        said = await space.says(policyReady=True, configDigest=digest, deciding="Onnx")
        assert said["provider"]
        assert (await live.route()).policy == "Onnx"


async def test_a_predictor_of_ones_own_is_run_and_a_bad_one_stood_in_for(space: Space) -> None:
    model, manifest = builtin_model("output_length", "random-forest")

    def declared(sha256: str) -> RouterConfig:
        return plain(predictor={"type": "RandomForest", "model": {"configMap": {"name": "m"}, "sha256": sha256}})

    config = declared(digest_of(model))
    digest = space.configure_lengths(config, model, manifest)
    async with space.router(config) as live:
        await space.says(configDigest=digest, predictorReady=True, predictorReason="Loaded", policyReady=True)
        digest = space.configure_lengths(declared("0" * 64), model, manifest)
        said = await space.says(configDigest=digest, predictorReady=False, predictorReason="DigestMismatch")
        assert said["policyReady"]
        assert said["predictorMessage"]
        assert (await live.route()).instance_id
        digest = space.configure_lengths(config, model, manifest)
        await space.says(configDigest=digest, predictorReady=True)


async def test_a_large_configuration_comes_through_the_watch(space: Space) -> None:
    space.configure(plain())
    async with space.router(plain()):
        digest = space.configure(plain("Random"), filler=600_000)
        await space.says(configDigest=digest, deciding="Random")
        digest = space.configure(plain("RoundRobin"), filler=500_000)
        await space.says(configDigest=digest, deciding="RoundRobin")


def pod(name: str, app: str) -> dict[str, Any]:
    container = {"name": "engine", "image": "none"}
    metadata = {"name": name, "labels": {"app": app}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}


def make_ready(space: Space, name: str, address: str, *, ready: bool = True) -> None:
    """What the kubelet says of a pod."""
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    status = {"podIP": address, "podIPs": [{"ip": address}], "phase": "Running", "conditions": [condition]}
    space.api.call(
        "PATCH",
        f"{space.path('pods', name)}/status",
        {"status": status},
        content_type="application/merge-patch+json",
    )


def selecting(label: str = "engine") -> RouterConfig:
    pool = {"name": "main", "selector": {"matchLabels": {"app": label}}, "profile": {"name": "llama-3.1-8b-rtx4090"}}
    return config_of(pools=[pool], limits=QUIET)


async def test_instances_are_the_ready_pods_of_the_selector(space: Space) -> None:
    for name in ("e1", "e2", "e3"):
        space.api.apply(space.path("pods", name), pod(name, "engine"))
    space.api.apply(space.path("pods", "other"), pod("other", "database"))
    make_ready(space, "e1", "127.1.0.1")
    make_ready(space, "other", "127.1.0.9")
    space.configure(selecting())
    async with space.router(selecting()) as live:
        await space.says(instancesReady=1, instancesTotal=3)
        assert (await live.route()).endpoint == "127.1.0.1:8000"
        make_ready(space, "e2", "127.1.0.2")
        await space.says(instancesReady=2)
        make_ready(space, "e1", "127.1.0.1", ready=False)
        await space.says(instancesReady=1)
        assert (await live.route()).endpoint == "127.1.0.2:8000"
        space.api.call("DELETE", f"{space.path('pods', 'e2')}?gracePeriodSeconds=0")
        await space.says(instancesReady=0, instancesTotal=2)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await live.route()
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        space.configure(selecting("database"))
        await space.says(instancesReady=1, instancesTotal=1)
        assert (await live.route()).endpoint == "127.1.0.9:8000"


async def test_a_router_that_may_not_acknowledge_keeps_routing(space: Space, control_plane: ControlPlane) -> None:
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{space.name}"
    space.api.apply(
        space.path("serviceaccounts", "router"),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "router"}},
    )
    rule = {"apiGroups": [""], "resources": ["configmaps", "pods"], "verbs": ["get", "list", "watch"]}
    group = "rbac.authorization.k8s.io"
    space.api.apply(
        f"{rbac}/roles/reader",
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": "reader"}, "rules": [rule]},
    )
    space.api.apply(
        f"{rbac}/rolebindings/reader",
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "reader"},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "router", "namespace": space.name}],
        },
    )
    kubeconfig = control_plane.service_account_kubeconfig(space.name, "router")
    space.configure(plain())
    async with space.router(plain(), kubeconfig=str(kubeconfig)) as live:
        await until(lambda: live.count("llmrouter_errors_total", part="acknowledge") > 1, what="counted")
        assert (await live.route()).policy == "LeastInFlight"
        space.configure(plain("Random"))

        async def swapped() -> bool:
            return (await live.route()).policy == "Random"

        await until(swapped)
        assert space.acknowledged() == {}


async def test_the_api_server_goes_and_comes_back(space: Space, control_plane: ControlPlane) -> None:
    digest = space.configure(plain())
    async with space.router(plain()) as live:
        await space.says(configDigest=digest)
        await asyncio.to_thread(control_plane.stop_api_server)
        assert (await live.route()).policy == "LeastInFlight"
        control_plane.start_api_server()
        digest = space.configure(plain("Random"))
        await space.says(configDigest=digest, deciding="Random", policyReady=True)

"""One namespace of a real API server with a router in it, and the hands of the operator and the kubelet."""

# ruff: noqa: ANN401 - fields of acknowledgements are of any type

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubernetes.aio import client
from support.router_world import LiveRouter, bundle_of, live_router, until

from llmrouter.config import (
    CONFIG_KEY,
    DIGEST_ANNOTATION,
    MANIFEST_KEY,
    MODEL_KEY,
    PREDICTOR_MANIFEST_KEY,
    PREDICTOR_MODEL_KEY,
)
from router_grpc.adapters.kube import AcknowledgementWriter, ConfigMapSource, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llmrouter.config import RouterConfig
    from llmrouter.testbed.cluster.control_plane import ControlPlane


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
    async def router(
        self, config: RouterConfig, *, kubeconfig: str | None = None, **changes: Any
    ) -> AsyncIterator[LiveRouter]:
        """A router that follows this namespace; ``changes`` replace its settings."""
        api = await connect(kubeconfig or str(self.control_plane.kubeconfig))
        try:
            core = client.CoreV1Api(api)
            source = ConfigMapSource(core, namespace=self.name, name="config", on_error=lambda _error: None)
            writer = AcknowledgementWriter(core, namespace=self.name, name="routers", key="r1")
            outside: dict[str, Any] = {
                "source": source,
                "core": core,
                "acknowledge": writer.write,
                "namespace": self.name,
            }
            async with live_router(config, **outside, **changes) as live:
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


def pod(
    name: str, app: str, *, labels: dict[str, str] | None = None, annotations: dict[str, str] | None = None
) -> dict[str, Any]:
    container = {"name": "engine", "image": "none"}
    metadata = {"name": name, "labels": {"app": app, **(labels or {})}, "annotations": annotations or {}}
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

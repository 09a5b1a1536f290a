"""Routers as processes of their own: killed, told to stop, started wrongly, and standalone from a file."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.agents import shared_agent
from support.router_world import bundle_of, config_of, until
from support.tokenizer_files import write_tokenizer
from tokenizers import Tokenizer

from llmrouter.artefacts import builtin_model
from llmrouter.config import CONFIG_KEY, DIGEST_ANNOTATION, digest_of
from llmrouter.testbed.cluster.processes import Process, free_port, start
from router_grpc.v1 import router_pb2 as pb
from router_grpc.v1 import router_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from llmrouter.config import RouterConfig
    from llmrouter.testbed.cluster.control_plane import ControlPlane
    from llmrouter.testbed.cluster.redis import RedisServer

pytest_plugins = ["support.control_plane", "support.redis_server"]


class Running:
    """A router process and a client of it."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.stub: Any = pb_grpc.RouterStub(self.channel)  # type: ignore[no-untyped-call]
        self.health = health_pb2_grpc.HealthStub(self.channel)

    async def is_ready(self) -> bool:
        assert self.process.alive, self.process.log.read_text()[-2000:]
        try:
            answer = await self.health.Check(health_pb2.HealthCheckRequest(service="readiness"), timeout=1)
        except grpc.aio.AioRpcError:  # not listening yet: asked again until the time is up
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def route(self, request_id: str) -> pb.RouteResponse:
        request = pb.RouteRequest(model="llama", prompt_tokens=100, request_id=request_id)
        answer: pb.RouteResponse = await self.stub.Route(request, timeout=10, wait_for_ready=True)
        return answer

    async def policy(self) -> str:
        snapshot = await self.stub.GetSnapshot(pb.GetSnapshotRequest(), timeout=10)
        return str(snapshot.deciding)

    async def in_flight(self) -> int:
        snapshot = await self.stub.GetSnapshot(pb.GetSnapshotRequest(), timeout=10)
        return sum(instance.in_flight_requests for instance in snapshot.instances)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    async def ended(self) -> int:
        """The exit status."""
        await until(lambda: not self.process.alive, what="process ended")
        assert self.process.child is not None
        return self.process.child.wait()


@asynccontextmanager
async def running(words: list[str], log: Path, port: int, **environment: str) -> AsyncIterator[Running]:
    process = start("router", [sys.executable, "-m", *words], log=log, env={**os.environ, **environment})
    router = Running(process, port)
    try:
        await until(router.is_ready, what="router ready", within_s=60)
        yield router
    finally:
        await router.channel.close(None)
        process.stop(grace_s=0)


class Place:
    """A namespace of the API server with the configuration of a router."""

    def __init__(self, control_plane: ControlPlane, tmp_path: Path, config: RouterConfig) -> None:
        self.kubeconfig = str(control_plane.kubeconfig)
        self.tmp_path = tmp_path
        self.namespace = f"p-{uuid.uuid4().hex[:8]}"
        api, bundle = control_plane.api, bundle_of(config)
        base = f"/api/v1/namespaces/{self.namespace}"
        api.apply(base, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})
        for name, data in (("config", {CONFIG_KEY: bundle.content.decode()}), ("routers", {})):
            metadata = {"name": name, "annotations": {DIGEST_ANNOTATION: bundle.declared_digest}}
            api.apply(
                f"{base}/configmaps/{name}",
                {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data},
            )

    @asynccontextmanager
    async def router(self, name: str) -> AsyncIterator[Running]:
        port = free_port()
        environment = {
            "KUBECONFIG": self.kubeconfig,
            "POD_NAME": name,
            "LLMROUTER_NAMESPACE": self.namespace,
            "LLMROUTER_CONFIG_MAP": "config",
            "LLMROUTER_ACKNOWLEDGEMENTS_CONFIG_MAP": "routers",
            "LLMROUTER_GRPC_PORT": str(port),
            "LLMROUTER_METRICS_PORT": str(free_port()),
        }
        async with running(["router_grpc"], self.tmp_path / f"{name}.log", port, **environment) as router:
            yield router


async def test_a_killed_routers_100_reservations_are_released_by_another(
    control_plane: ControlPlane, redis_server: RedisServer, tmp_path: Path
) -> None:
    state = {
        "redis": {"address": f"127.0.0.1:{redis_server.port}"},
        "heartbeatSeconds": 0.2,
        "heartbeatTimeoutSeconds": 1.0,
    }
    config = config_of("127.0.0.1:1", "127.0.0.1:2", state=state, limits={"scrapeIntervalSeconds": 60})
    place = Place(control_plane, tmp_path, config)
    async with place.router("r1") as first, place.router("r2") as second:
        await asyncio.gather(*(first.route(f"r{n}") for n in range(100)))
        await second.route("own")

        async def sees(count: int) -> bool:
            return await second.in_flight() == count

        await until(lambda: sees(101), what="the other router sees them")
        first.signal(signal.SIGKILL)
        await until(lambda: sees(1), what="released after the heartbeat timeout")
        found = await second.stub.GetReservation(pb.GetReservationRequest(request_id="own"))
        assert found.router_id == "r2"


async def test_sigterm_lets_calls_end_and_exits_with_0(control_plane: ControlPlane, tmp_path: Path) -> None:
    config = config_of("127.0.0.1:1", limits={"maxInFlightPerInstance": 1, "scrapeIntervalSeconds": 60})
    place = Place(control_plane, tmp_path, config)
    async with place.router("r1") as router:
        await router.route("r")
        waiting = asyncio.ensure_future(router.route("w"))
        watch = router.health.Watch(health_pb2.HealthCheckRequest(service="readiness"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        stream = router.stub.Report()
        await stream.write(pb.ReportEvent(request_id="r", first_token=pb.FirstToken()))
        assert (await stream.read()).known
        router.signal(signal.SIGTERM)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await stream.write(pb.ReportEvent(request_id="r", finished=pb.Finished(output_tokens=3)))
        assert (await stream.read()).known
        assert (await waiting).held_seconds > 0
        await stream.done_writing()
        watch.cancel()
        assert await router.ended() == 0
        assert "Traceback" not in router.process.log.read_text()


def command(*words: str, **environment: str) -> tuple[int, str]:
    """Runs a command to its end: status and standard error."""
    ended = subprocess.run(
        [sys.executable, "-m", *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )
    return ended.returncode, ended.stderr


def test_a_router_without_its_environment_is_one_line_and_status_2() -> None:
    status, said = command("router_grpc", POD_NAME="")
    assert (status, said) == (2, "router_grpc: POD_NAME: must be set in the environment\n")


def test_a_router_without_a_cluster_is_one_line_and_status_2(tmp_path: Path) -> None:
    names = ("POD_NAME", "LLMROUTER_NAMESPACE", "LLMROUTER_CONFIG_MAP", "LLMROUTER_ACKNOWLEDGEMENTS_CONFIG_MAP")
    environment = {**dict.fromkeys(names, "x"), "KUBECONFIG": str(tmp_path / "none")}
    status, said = command("router_grpc", **environment)
    assert status == 2
    assert said.splitlines()[-1].startswith("router_grpc: neither in a cluster nor with a kubeconfig")
    assert "Traceback" not in said


FILE = """
apiVersion: llmrouter.dev/v1alpha1
kind: LLMRouter
metadata: {{name: llm}}
spec:
  models: [{{name: llama}}]
  pools: [{{name: main, endpoints: ["127.0.0.1:1"], profile: {{name: llama-3.1-8b-rtx4090}}}}]
  policyRef: {{name: policy}}
  router: {{replicas: 1}}
  listeners: {{grpcPort: {grpc}, metricsPort: {metrics}}}
  limits: {{scrapeIntervalSeconds: 60}}
---
apiVersion: llmrouter.dev/v1alpha1
kind: RoutingPolicy
metadata: {{name: policy}}
spec: {{type: LeastInFlight}}
"""


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, str, int]:
    """A file, its text, and the port it names."""
    port = free_port()
    text = FILE.format(grpc=port, metrics=free_port())
    path = tmp_path / "router.yaml"
    path.write_text(text)
    return path, text, port


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: LLMRouter", "kind: [", "not YAML"),
        ("kind: RoutingPolicy", "kind: LLMRouter", "exactly one LLMRouter, it holds 2"),
        ('endpoints: ["127.0.0.1:1"]', "selector: {matchLabels: {a: b}}", "selector needs Kubernetes"),
        ("policyRef: {name: policy}", "policyRef: {name: another}", "exactly one RoutingPolicy 'another'"),
    ],
)
def test_a_bad_file_is_one_line_and_status_2(written: tuple[Path, str, int], old: str, new: str, message: str) -> None:
    path, text, _ = written
    path.write_text(text.replace(old, new))
    status, said = command("llmrouter.cli", "serve", "--config", str(path))
    assert status == 2
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["grpc", "metrics"])
def test_a_port_that_is_taken_is_one_line_and_status_2(tmp_path: Path, name: str) -> None:
    import socket  # noqa: PLC0415

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = {"grpc": free_port(), "metrics": free_port(), name: taken.getsockname()[1]}
        path = tmp_path / "router.yaml"
        path.write_text(FILE.format(**ports))
        status, said = command("llmrouter.cli", "serve", "--config", str(path))
    assert status == 2
    assert said.splitlines()[-1].startswith(f"llmrouter serve: listeners.{name}Port: cannot listen on 127.0.0.1:")
    assert "Traceback" not in said


async def test_a_predictor_and_tokenizers_of_ones_own_stand_in_folders(written: tuple[Path, str, int]) -> None:
    path, text, port = written
    text = text.replace("{name: llama}", "{name: llama, tokenizer: llama/tokenizer.json}")
    text = text.replace("{replicas: 1}", "{replicas: 1, tokenizers: {configMap: {name: unused}}}")
    path.write_text(text.replace("  limits:", "  predictor: {deadlineMilliseconds: 100}\n  limits:"))
    content, manifest = builtin_model("output_length", "text")
    (path.parent / "model.onnx").write_bytes(content)
    (path.parent / "manifest.json").write_bytes(manifest)
    tokenizer = Tokenizer.from_file(str(write_tokenizer(path.parent / "llama" / "tokenizer.json")))
    folders = [f"--{what}={path.parent}" for what in ("predictor", "tokenizers")]
    words = ["llmrouter.cli", "serve", "--config", str(path), *folders]
    prompt = "The quick fox calls the dog tomorrow."
    async with running(words, path.with_suffix(".log"), port) as router:

        async def foretold_in_time() -> bool:
            answer = await router.stub.Route(pb.RouteRequest(model="llama", prompt=prompt.encode()), timeout=10)
            counted = (answer.prompt_tokens, answer.predictor_digest)
            return counted == (len(tokenizer.encode(prompt)), digest_of(content))

        await until(foretold_in_time, what="foretold by the model, counted by the tokenizer")


async def test_an_agent_of_ones_own_stands_in_a_folder(written: tuple[Path, str, int]) -> None:
    """It holds the head for a third of a second, which nothing but a timer ends; a broken one changes nothing."""
    path, text, port = written
    path.write_text(text.replace("LeastInFlight", "Learned, model: {builtin: learned}"))
    patient = shared_agent({"requests": -1.0}, {"line/head_age_s": -20.0}, hold=5.0)
    for name, content in zip(("model.onnx", "manifest.json"), patient, strict=True):
        (path.parent / name).write_bytes(content)
    words = ["llmrouter.cli", "serve", "--config", str(path), f"--policy-model={path.parent}"]
    async with running(words, path.with_suffix(".log"), port) as router:
        first, second = await router.route("1"), await router.route("2")
        assert await router.policy() == first.policy == second.policy == "Learned"
        assert first.held_seconds == 0, "an idle instance is never left waiting"
        assert second.held_seconds >= 0.2
        (path.parent / "model.onnx").write_bytes(b"junk")
        path.write_text(path.read_text() + "\n")
        await until(lambda: "configuration refused" in router.process.log.read_text())
        assert await router.policy() == "Learned"


async def test_a_file_rewritten_while_serving_switches_the_policy(written: tuple[Path, str, int]) -> None:
    path, text, port = written
    words = ["llmrouter.cli", "serve", "--config", str(path)]
    async with running(words, path.with_suffix(".log"), port) as router:
        await router.route("r")
        assert await router.policy() == "LeastInFlight"
        path.write_text(text.replace("LeastInFlight", "Onnx, model: {builtin: marginal-cost}"))

        async def decides(policy: str) -> bool:
            return await router.policy() == policy

        await until(lambda: decides("Onnx"))
        path.write_text("a: [")
        await until(lambda: "configuration refused" in router.process.log.read_text())
        assert await router.policy() == "Onnx"
        path.write_text(text.replace("LeastInFlight", "Random"))
        await until(lambda: decides("Random"))
        assert await router.in_flight() == 1
        router.signal(signal.SIGINT)
        assert await router.ended() == 0
        assert "Traceback" not in router.process.log.read_text()

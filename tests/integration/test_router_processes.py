"""A router of several processes: shared ports, a port of each one's own, one set of metrics, a death, the end."""

from __future__ import annotations

import os
import signal
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from support.router_world import until

from llmrouter.testbed.cluster.processes import free_port, start
from router_grpc.v1 import router_pb2 as pb
from router_grpc.v1 import router_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmrouter.testbed.cluster.processes import Process
    from llmrouter.testbed.cluster.redis import RedisServer

pytest_plugins = ["support.redis_server"]

PROCESSES = 2
FILE = """
apiVersion: llmrouter.dev/v1alpha1
kind: LLMRouter
metadata: {{name: llm}}
spec:
  models: [{{name: llama}}]
  pools: [{{name: main, endpoints: ["127.0.0.1:1", "127.0.0.1:2"], profile: {{name: llama-3.1-8b-rtx4090}}}}]
  policyRef: {{name: policy}}
  router: {{replicas: 1}}
  state: {{redis: {{address: "127.0.0.1:{redis}"}}, heartbeatSeconds: 0.2, heartbeatTimeoutSeconds: 1.0}}
  predictor: {{type: Constant}}
  listeners: {{grpcPort: {grpc}, metricsPort: {metrics}, extProc: {{port: {picker}, secureServing: false}}}}
  limits: {{scrapeIntervalSeconds: 60}}
---
apiVersion: llmrouter.dev/v1alpha1
kind: RoutingPolicy
metadata: {{name: policy}}
spec: {{type: LeastInFlight}}
"""


def free_ports(count: int) -> int:
    """The first of so many ports in a row that are free, as far as one can say."""
    import socket  # noqa: PLC0415

    while True:
        first = free_port()
        try:
            for port in range(first, first + count):
                with socket.socket() as tried:
                    tried.bind(("127.0.0.1", port))
        except OSError:  # taken, or beyond the last port: others are tried
            continue
        return first


def runs(process_id: int) -> bool:
    return Path(f"/proc/{process_id}").exists()


class Pod:
    """The processes of one router, seen from outside."""

    def __init__(self, process: Process, *, grpc_port: int, picker_port: int, metrics_port: int) -> None:
        self.process = process
        self.grpc_port, self.picker_port, self.metrics_port = grpc_port, picker_port, metrics_port

    def children(self) -> list[int]:
        """Process ids of those that serve."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(one) for one in found.split() if b"llmrouter" in Path(f"/proc/{one}/cmdline").read_bytes()]

    def sample(self, name: str, **labels: str) -> float | None:
        """A sample of the pod's metrics; ``None`` where there is none, or nobody answers yet."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        except OSError:  # not listening yet
            return None
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return None

    async def is_ready(self, port: int) -> bool:
        assert self.process.alive, self.process.log.read_text()[-2000:]
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
        ) as to:
            try:
                asked = health_pb2.HealthCheckRequest(service="readiness")
                answer = await health_pb2_grpc.HealthStub(to).Check(asked, timeout=2)
            except grpc.aio.AioRpcError:  # not listening yet
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def all_ready(self) -> bool:
        """Each process answers on the port that is its own."""
        own = [self.picker_port + 1 + number for number in range(PROCESSES)]
        return all([await self.is_ready(port) for port in own])

    async def route(self, request_id: str) -> str:
        """Routes over a connection of its own: any of the processes may have it. Returns the instance."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.grpc_port}", options=options) as channel:
            stub = pb_grpc.RouterStub(channel)  # type: ignore[no-untyped-call]
            request = pb.RouteRequest(model="llama", prompt_tokens=100, request_id=request_id)
            answer: pb.RouteResponse = await stub.Route(request, timeout=10, wait_for_ready=True)
        return str(answer.instance_id)


@contextmanager
def pod(tmp_path: Path, redis: RedisServer) -> Iterator[Pod]:
    grpc_port, metrics_port, picker_port = free_port(), free_port(), free_ports(1 + PROCESSES)
    path = tmp_path / "router.yaml"
    path.write_text(FILE.format(grpc=grpc_port, metrics=metrics_port, picker=picker_port, redis=redis.port))
    words = ["-m", "llmrouter.cli", "serve", "--config", str(path), "--processes", str(PROCESSES)]
    process = start("router", [sys.executable, *words], log=tmp_path / "router.log", env=dict(os.environ))
    try:
        yield Pod(process, grpc_port=grpc_port, picker_port=picker_port, metrics_port=metrics_port)
    finally:
        process.stop(grace_s=10)


async def test_processes_share_the_load_survive_a_death_and_end_together(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    with pod(tmp_path, redis_server) as router:
        await until(router.all_ready, what="every process ready", within_s=120)
        placed = [await router.route(f"r{number}") for number in range(40)]
        assert abs(placed.count(placed[0]) - 20) <= 2, "they count as one"
        routed = [router.sample("llmrouter_requests_total", process=str(n), outcome="Routed") for n in range(PROCESSES)]
        assert None not in routed
        assert sum(one or 0 for one in routed) == 40
        assert all(one for one in routed), "each took some of the connections"
        killed, other = router.children()
        os.kill(killed, signal.SIGKILL)
        await router.route("after")
        await until(
            lambda: any(router.sample("llmrouter_process_restarts_total", process=str(n)) for n in range(PROCESSES)),
            what="started anew",
            within_s=60,
        )
        await until(router.all_ready, what="every process ready again", within_s=120)
        left = router.children()
        assert other in left
        assert killed not in left
        assert len(left) == PROCESSES
        os.kill(router.process.pid, signal.SIGTERM)
        await until(lambda: not router.process.alive, what="ended", within_s=60)
        assert router.process.child is not None
        assert router.process.child.wait() == 0
        assert not any(map(runs, left))
        assert "Traceback" not in router.process.log.read_text()


@pytest.mark.parametrize(
    ("number", "message"),
    [("2", "--processes: above 1 needs state.redis"), ("0", "must be at least 1"), ("17", "not within 1 and 16")],
)
async def test_processes_that_cannot_be_are_one_line_and_status_2(tmp_path: Path, number: str, message: str) -> None:
    text = FILE.format(grpc=free_port(), metrics=free_port(), picker=free_port(), redis=1)
    path = tmp_path / "router.yaml"
    path.write_text("\n".join(line for line in text.splitlines() if "redis" not in line))
    words = ["-m", "llmrouter.cli", "serve", "--config", str(path), "--processes", number]
    process = start("router", [sys.executable, *words], log=tmp_path / "router.log", env=dict(os.environ))
    await until(lambda: not process.alive, what="ended", within_s=60)
    assert process.child is not None
    assert process.child.wait() == 2
    said = process.log.read_text().splitlines()
    assert len(said) == 1
    assert message in said[0]

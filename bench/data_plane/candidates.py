"""Who is measured: what its programs are told, and how they are started, paused and read."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import urllib.request
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

import grpc
import yaml

from bench.data_plane.gateway import alone, with_picker
from bench.data_plane.usage import Usage, usage_of
from llmrouter.testbed.cluster.errors import ClusterError, PartFailedError
from llmrouter.testbed.cluster.processes import Process, free_port, poll, start
from llmrouter.testbed.cluster.redis import library_path, provide_redis
from llmrouter.testbed.envoy import start_envoy
from router_grpc.v1 import router_pb2 as messages
from router_grpc.v1.router_pb2_grpc import RouterStub

if TYPE_CHECKING:
    from pathlib import Path

    from bench.data_plane.programs import Programs

READY_S = 60.0
HOST = "127.0.0.1"
PROXY_LIMIT = "4096"
PROFILE = "llama-3-8b-h100"

_FALLBACK = re.compile(r"^llmrouter_length_fallbacks_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)

Kind = Literal["fixed", "peer", "ours", "vllm-router", "sglang-router"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way from a client to the engines. ``options`` are the picker's own."""

    name: str
    kind: Kind
    instances: int = 8
    options: tuple[tuple[str, str], ...] = ()
    tls: bool = False
    """Whether Envoy speaks to the picker over TLS, with the certificate that the picker makes for itself."""
    processes: int = 1
    """Of ours; several have a Redis."""
    is_shared: bool = False
    """Whether Envoy knows several processes by the port that they share, or each by its own."""

    @property
    def is_proxy(self) -> bool:
        """Whether it stands alone, without an Envoy."""
        return self.kind in {"vllm-router", "sglang-router"}


@dataclass(frozen=True, slots=True)
class Fleet:
    """The engines, and where they listen."""

    process: Process
    endpoints: tuple[str, ...]

    def counts(self, instances: int) -> list[dict[str, int]]:
        """What each of the first engines has counted."""
        with urllib.request.urlopen(f"http://{self.endpoints[0]}/counts", timeout=10) as answer:
            found: list[dict[str, int]] = json.load(answer)
        return found[:instances]


@dataclass
class Stack:
    """A candidate's programs."""

    candidate: Candidate
    target: str
    processes: dict[str, Process] = field(default_factory=dict)
    router: str | None = None
    """Of ours: where its own interface answers."""
    metrics: str = ""
    """Of ours: where its metrics are."""

    def pause(self) -> None:
        """Takes it off the processors; its connections stay."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends it."""
        self.resume()
        for process in reversed(self.processes.values()):
            process.stop()

    def usage(self) -> dict[str, Usage]:
        """What each of its programs has used."""
        return {name: usage_of(process.pid) for name, process in self.processes.items()}

    def reserved(self) -> int | None:
        """Requests that the router counts as under way; ``None`` where it does not say, as others do not."""
        if self.router is None:
            return None
        with (
            suppress(grpc.RpcError),
            grpc.insecure_channel(self.router, options=(("grpc.enable_http_proxy", 0),)) as channel,
        ):
            stub = RouterStub(channel)
            answer = stub.GetSnapshot(messages.GetSnapshotRequest(), timeout=10, wait_for_ready=True)
            return sum(one.in_flight_requests for one in answer.instances)
        return None

    def not_foretold(self) -> int | None:
        """Requests so far whose answer's length was not foretold by the model; ``None`` for others than ours."""
        if not self.metrics:
            return None
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            return sum(int(float(value)) for value in _FALLBACK.findall(answer.read().decode()))

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes.values():
            with suppress(ProcessLookupError):  # gone already: nothing to hold or to let go
                os.killpg(process.pid, number)


def start_fleet(programs: Programs, folder: Path, *, count: int, first_port: int, gap_ms: float) -> Fleet:
    """Engines on consecutive ports, all of one process."""
    words = ["engines", "--port", str(first_port), "--count", str(count), "--gap-ms", str(gap_ms)]
    process = start("engines", [programs.traffic, *words], log=folder / "engines.log")
    process.ready(lambda: "ready" in process.log.read_text(), within_s=READY_S)
    return Fleet(process, tuple(f"{HOST}:{first_port + index}" for index in range(count)))


def start_stack(candidate: Candidate, programs: Programs, fleet: Fleet, folder: Path) -> Stack:
    """Starts a candidate before the first of the engines, and returns when it answers.

    Raises:
        ClusterError: it does not; nothing of it is left running.
    """
    folder.mkdir(parents=True, exist_ok=True)
    endpoints = list(fleet.endpoints[: candidate.instances])
    port = free_port()
    stack = Stack(candidate, f"{HOST}:{port}")
    try:
        _start(stack, programs, endpoints, folder, port)
        for process in stack.processes.values():
            process.ready(lambda: _answers(stack.target), within_s=READY_S)
    except ClusterError:
        stack.stop()
        raise
    return stack


def _start(stack: Stack, programs: Programs, endpoints: list[str], folder: Path, port: int) -> None:
    candidate = stack.candidate
    if candidate.is_proxy:
        stack.processes["proxy"] = _proxy(candidate, programs, endpoints, folder, port)
    elif candidate.kind == "fixed":
        config = alone(port=port, admin_port=free_port(), endpoints=endpoints)
        stack.processes["envoy"] = start_envoy(folder, config)
    else:
        picker = _peer if candidate.kind == "peer" else _ours
        addresses = picker(candidate, programs, endpoints, folder, stack)
        config = with_picker(port=port, pickers=addresses, admin_port=free_port(), tls=candidate.tls)
        stack.processes["envoy"] = start_envoy(folder, config)


def _answers(target: str) -> bool:
    body = json.dumps({"model": "llama", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1})
    request = urllib.request.Request(
        f"http://{target}/v1/chat/completions", body.encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - as above
            return bool(answer.status == HTTPStatus.OK)
    except OSError:  # not listening, or not ready to answer
        return False


def _peer(candidate: Candidate, programs: Programs, endpoints: list[str], folder: Path, stack: Stack) -> list[str]:
    listed = folder / "endpoints.yaml"
    named = [_named_endpoint(index, one) for index, one in enumerate(endpoints)]
    listed.write_text(yaml.safe_dump({"endpoints": named}))
    weights = {"queue-scorer": 2, "kv-cache-utilization-scorer": 2, "prefix-cache-scorer": 3, "max-score-picker": None}
    plugins = [{"name": "disc", "type": "file-discovery", "parameters": {"path": str(listed.absolute())}}]
    plugins += [{"type": name} for name in (*weights, "single-profile-handler")]
    chosen = [{"pluginRef": name, **({"weight": weight} if weight else {})} for name, weight in weights.items()]
    config = {
        "plugins": plugins,
        "schedulingProfiles": [{"name": "default", "plugins": chosen}],
        "dataLayer": {"discovery": {"pluginRef": "disc"}},
    }
    (folder / "epp.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    port = free_port()
    flags = {"pool-name": "epp", "config-file": folder / "epp.yaml", "tracing": "false"}
    flags |= {"secure-serving": str(candidate.tls).lower()}
    flags |= {"metrics-endpoint-auth": "false", "grpc-port": port, "grpc-health-port": free_port()}
    flags |= {"metrics-port": free_port(), **dict(candidate.options)}
    words = [f"--{name}={value}" for name, value in flags.items()]
    stack.processes["picker"] = start("picker", [str(programs.peer), *words, "-v", "0"], log=folder / "picker.log")
    return [f"{HOST}:{port}"]


def _named_endpoint(index: int, address: str) -> dict[str, str]:
    host, _, port = address.rpartition(":")
    return {"name": f"engine-{index}", "address": host, "port": port}


def resources_of(candidate: Candidate, endpoints: list[str], ports: dict[str, int]) -> list[dict[str, Any]]:
    """An LLMRouter with the defaults of everything that is not the listener's, and the default policy."""
    picker = {"port": ports["extProc"], "secureServing": candidate.tls, **dict(candidate.options)}
    router = {
        "apiVersion": "llmrouter.dev/v1alpha1",
        "kind": "LLMRouter",
        "metadata": {"name": "bench"},
        "spec": {
            "models": [{"name": "llama"}],
            "pools": [{"name": "main", "endpoints": endpoints, "profile": {"name": PROFILE}}],
            "policyRef": {"name": "default"},
            "router": {"replicas": 1},
            "listeners": {"grpcPort": ports["grpc"], "metricsPort": ports["metrics"], "extProc": picker},
        },
    }
    policy = {
        "apiVersion": "llmrouter.dev/v1alpha1",
        "kind": "RoutingPolicy",
        "metadata": {"name": "default"},
        "spec": {"type": "WorkloadImpact"},
    }
    return [router, policy]


def _ours(candidate: Candidate, _programs: Programs, endpoints: list[str], folder: Path, stack: Stack) -> list[str]:
    ports = {"grpc": free_port(), "metrics": free_port(), "extProc": _ports_in_a_row(1 + candidate.processes)}
    resources = resources_of(candidate, endpoints, ports)
    if candidate.processes > 1:
        resources[0]["spec"]["state"] = {"redis": {"address": _redis(folder, stack)}}
        resources[0]["spec"]["router"]["processes"] = candidate.processes
    config = folder / "router.yaml"
    config.write_text(yaml.safe_dump_all(resources, sort_keys=False))
    command = [sys.executable, "-m", "llmrouter.cli", "serve", "--config", str(config)]
    command += ["--processes", str(candidate.processes)]
    stack.processes["picker"] = start("picker", command, log=folder / "picker.log")
    stack.router, stack.metrics = f"{HOST}:{ports['grpc']}", f"{HOST}:{ports['metrics']}"
    alone_or_shared = candidate.processes == 1 or candidate.is_shared
    behind = [0] if alone_or_shared else range(1, 1 + candidate.processes)
    return [f"{HOST}:{ports['extProc'] + offset}" for offset in behind]


def _ports_in_a_row(count: int) -> int:
    """The first of so many ports that nobody listens on at this moment."""
    while True:
        first = free_port()
        with ExitStack() as probes, suppress(OSError):  # one is taken, or there is none so high: others are tried
            for offset in range(count):
                probes.enter_context(socket.socket()).bind((HOST, first + offset))
            return first


def _redis(folder: Path, stack: Stack) -> str:
    program, port = provide_redis(), free_port()
    words = ["--bind", HOST, "--port", str(port), "--dir", str(folder), "--save", "", "--appendonly", "no"]
    environment = {**os.environ, "LD_LIBRARY_PATH": library_path(program)}
    stack.processes["redis"] = start("redis", [program, *words], log=folder / "redis.log", env=environment)
    return f"{HOST}:{port}"


def _proxy(candidate: Candidate, programs: Programs, endpoints: list[str], folder: Path, port: int) -> Process:
    if programs.proxies is None:
        raise AssertionError("a candidate whose program is not there is left out before it is started")
    words = [str(programs.proxies / candidate.kind), *(["launch"] if candidate.kind == "sglang-router" else [])]
    words += ["--host", HOST, "--port", str(port), "--prometheus-port", str(free_port()), "--log-level", "error"]
    words += ["--max-concurrent-requests", PROXY_LIMIT]
    if candidate.kind == "vllm-router":  # its default asks engines for every prompt's tokens, which these do not know
        words += ["--policy", "power_of_two"]
    words += ["--worker-urls", *(f"http://{one}" for one in endpoints)]
    return start("proxy", words, log=folder / "proxy.log")


def wait_free(stack: Stack, *, within_s: float) -> int | None:
    """Waits until the router counts nothing as under way; what it still counts when the time is up."""
    if stack.router is None:
        return None
    with suppress(PartFailedError):  # what is left is the answer
        poll(lambda: stack.reserved() == 0, within_s=within_s, what="reservations released")
    return stack.reserved()

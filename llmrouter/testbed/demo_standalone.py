"""The comparison without Kubernetes: eight simulated engines, one router from a file, two policies, about a minute."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import yaml

from llmrouter.testbed.cluster.errors import PartFailedError
from llmrouter.testbed.cluster.places import repository_root
from llmrouter.testbed.cluster.processes import Process, free_port, poll, start
from llmrouter.testbed.comparison import MODEL, SWITCH, Facts, Timing, summary
from llmrouter.testbed.comparison_run import conclude, run_to_exit_status, watch_replay
from llmrouter.testbed.demo_target import manifest
from llmrouter.testbed.envoy import Front, configuration, pickers_known, start_envoy
from llmrouter.testbed.live_view import LiveView
from router_grpc.v1 import router_pb2 as messages
from router_grpc.v1.router_pb2_grpc import RouterStub

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from rich.console import Console

ENGINES_PER_POOL = 4
START_TIMEOUT_S = 60.0
SWITCH_TIMEOUT_S = 30.0
TIMING = Timing(window_s=20.0, warm_up_s=4.0, switch_s=20.0)
_ENGINE_PORT = re.compile(r"on http://127\.0\.0\.1:(\d+)")


def router_resource(ports: Mapping[str, Sequence[int]], listeners: Mapping[str, Any]) -> dict[str, Any]:
    """The LLMRouter of ``manifests/standalone``, with the addresses that this run has."""
    (resource,) = manifest("standalone/router.yaml")
    for pool in resource["spec"]["pools"]:
        pool["endpoints"] = [f"127.0.0.1:{port}" for port in ports[pool["profile"]["name"]]]
    resource["spec"]["listeners"] = dict(listeners)
    return resource


def write_config(path: Path, router: dict[str, Any], policy: str) -> None:
    """Replaces the router's file in one step, so that it never reads half of one."""
    new = path.with_suffix(".new")
    new.write_text(yaml.safe_dump_all([router, *manifest(f"policies/{policy}.yaml")], sort_keys=False))
    new.replace(path)


@dataclass(frozen=True)
class Standalone:
    """The running parts: where the router listens (``picker`` for gateways), its file, the folder of all written."""

    folder: Path
    config: Path
    resource: dict[str, Any]
    address: str
    picker: str

    def digest(self) -> str:
        """Digest of the policy that the router runs."""
        with grpc.insecure_channel(self.address, options=(("grpc.enable_http_proxy", 0),)) as channel:
            stub = RouterStub(channel)  # type: ignore[no-untyped-call]
            answer: messages.GetSnapshotResponse = stub.GetSnapshot(messages.GetSnapshotRequest(), timeout=5)
            return answer.policy_digest

    def switch(self) -> float:
        """Rewrites the file and waits until the router runs the other policy; returns the seconds it took."""
        before = self.digest()
        began_s = time.monotonic()
        write_config(self.config, self.resource, "marginal-cost")
        poll(lambda: self.digest() != before, within_s=SWITCH_TIMEOUT_S, what="the router runs the new policy")
        return time.monotonic() - began_s


def start_standalone(folder: Path, stack: ExitStack) -> Standalone:
    """Starts engines and router below ``folder``; ``stack`` ends them."""
    logs = folder / "logs"
    ports = _start_engines(logs, stack)
    grpc_port, picker_port = free_port(), free_port()
    listeners = {"grpcPort": grpc_port, "metricsPort": free_port(), "extProc": {"port": picker_port}}
    resource = router_resource(ports, listeners)
    config = folder / "router.yaml"
    write_config(config, resource, "round-robin")
    router = _start("router", ["llmrouter.cli", "serve", "--config", str(config)], logs, stack)
    running = Standalone(folder, config, resource, f"127.0.0.1:{grpc_port}", f"127.0.0.1:{picker_port}")
    router.ready(lambda: _answers(running), within_s=START_TIMEOUT_S)
    return running


def start_front(running: Standalone, stack: ExitStack) -> str:
    """Starts an Envoy before the router; returns where it listens, once it knows the router; ``stack`` ends it."""
    port, admin_port = free_port(), free_port()
    front = Front((running.picker,), port, admin_port, picker_tls=True, show_instance=True)
    envoy = start_envoy(running.folder / "logs", configuration(front))
    stack.callback(envoy.stop)
    envoy.ready(lambda: pickers_known(admin_port) == 1, within_s=START_TIMEOUT_S)
    return f"127.0.0.1:{port}"


def compare(console: Console, *, through_front: bool) -> int:
    """Runs the demo; returns its exit status."""
    folder = repository_root() / "build" / "demo-standalone"
    shutil.rmtree(folder, ignore_errors=True)
    with ExitStack() as stack:
        began_s = time.monotonic()
        console.print(f"starting eight simulated engines, one router{' and Envoy' if through_front else ''} …")
        running = start_standalone(folder, stack)
        front = start_front(running, stack) if through_front else None
        ready_s = time.monotonic() - began_s
        console.print(f"ready after {ready_s:.1f} s; logs: {folder / 'logs'}", soft_wrap=True)
        values = _measure(running, ready_s, stack, console=console, front=front)
    status = conclude(values, folder / "summary.json", console)
    console.print("next: make demo, the same on a real Kubernetes with two routers and a shared ledger")
    return status


def _measure(
    running: Standalone, ready_s: float, stack: ExitStack, *, console: Console, front: str | None
) -> dict[str, Any]:
    way = ["--router", running.address, *(("--front", front) if front else ())]
    arguments = ["llmrouter.testbed.replay", *way, *TIMING.replay_arguments()]
    lines = running.folder / "replay.jsonl"
    replay = _start("replay", arguments, running.folder, stack, log=lines)
    executor = stack.enter_context(ThreadPoolExecutor(1))
    switched: list[Future[float]] = []

    def on_stretch(name: str) -> None:
        if name == SWITCH:
            switched.append(executor.submit(running.switch))

    with LiveView("standalone", console) as view:
        state = watch_replay(lines, alive=lambda: replay.alive, view=view, on_stretch=on_stretch)
    if not switched:
        raise PartFailedError("the replay ended before the policy was switched")
    return summary(state, Facts(ready_s, switched[0].result(), {}))


def _start_engines(logs: Path, stack: ExitStack) -> dict[str, list[int]]:
    processes = {}
    (resource,) = manifest("standalone/router.yaml")
    for pool in resource["spec"]["pools"]:
        profile = pool["profile"]["name"]
        words = ["llmrouter.testbed.engine_server", "--profile", profile, "--model", MODEL]
        words += ["--instances", str(ENGINES_PER_POOL), "--port", "0"]
        processes[profile] = _start(f"engines-{pool['name']}", words, logs, stack)
    return {profile: _ports(process) for profile, process in processes.items()}


def _ports(engines: Process) -> list[int]:
    def listening() -> list[int]:
        return [int(port) for port in _ENGINE_PORT.findall(engines.log.read_text())]

    engines.ready(lambda: len(listening()) == ENGINES_PER_POOL, within_s=START_TIMEOUT_S)
    return listening()


def _start(name: str, module: Sequence[str], logs: Path, stack: ExitStack, *, log: Path | None = None) -> Process:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = start(name, [sys.executable, "-m", *module], log=log or logs / f"{name}.log", env=environment)
    stack.callback(process.stop)
    return process


def _answers(running: Standalone) -> bool:
    try:
        return bool(running.digest())
    except grpc.RpcError:  # not up yet: asking again is what the caller does
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m llmrouter.testbed.demo_standalone", description=__doc__)
    parser.add_argument(
        "--front", action="store_true", help="send the traffic through an Envoy, as OpenAI clients do (default: native)"
    )
    options = parser.parse_args(arguments)
    return run_to_exit_status(lambda console: compare(console, through_front=options.front))


if __name__ == "__main__":
    sys.exit(main())

"""Who passes the black-box suite of the endpoint-picker protocol: this router over both transports, and llm-d's picker.

Every target of the suite is a process of its own, with two simulated engines behind it where it is to have any. One
that ends because of a case is started anew for the next one, and that is said. ``LLMROUTER_PEER_EPP`` names the binary
of llm-d-router's picker; without it, it is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio
import yaml
from rich.console import Console

from bench.data_plane.programs import PEER_VARIABLE
from llmrouter.profiles import PROFILES
from llmrouter.testbed.cluster.processes import free_port, start
from llmrouter.testbed.cluster.redis import RedisServer, provide_redis
from llmrouter.testbed.engine_server import EngineServer, EngineServerConfig
from llmrouter.testbed.epp.case import chat, placed
from llmrouter.testbed.epp.cases import CASES
from llmrouter.testbed.epp.command import OPTIONS, judge, needed_by
from llmrouter.testbed.epp.stream import Deviation, Target, ask
from llmrouter.testbed.epp.trust import tunnel

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.testbed.cluster.processes import Process

PROFILE = "llama-3.1-8b-rtx4090"
HOST = "127.0.0.1"
READY_S = 60.0
ENDS_S = 1.0
"""So long a process takes to end that ends because of a case."""

NOBODY = f"{HOST}:1"
WEIGHTS = {"queue-scorer": 2, "kv-cache-utilization-scorer": 2, "prefix-cache-scorer": 3, "max-score-picker": None}


@dataclass(slots=True)
class Running:
    """A target's process, and where it answers."""

    process: Process
    address: str
    health: str = ""


def ours(folder: Path, *, transport: str, engines: list[str], **more: Any) -> Running:  # noqa: ANN401 - fields of the spec
    ports = {name: free_port() for name in ("grpc", "metrics", "ext_proc")}
    picker = {"port": ports["ext_proc"], "transport": transport, "secureServing": more.pop("tls", False)}
    spec = {
        "models": [{"name": "llama"}],
        "pools": [{"name": "main", "endpoints": engines, "profile": {"name": PROFILE}}],
        "policyRef": {"name": "p"},
        "router": {"replicas": 1},
        "limits": {"maxPromptTokens": 1_000_000},
        "listeners": {"grpcPort": ports["grpc"], "metricsPort": ports["metrics"], "extProc": picker},
        **more,
    }
    hold = {"hold": {"enabled": False}} if "limits" in more else {}
    kinds = (("LLMRouter", "r", spec), ("RoutingPolicy", "p", {"type": "LeastInFlight", **hold}))
    objects = [
        {"apiVersion": "llmrouter.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": part}
        for kind, name, part in kinds
    ]
    (folder / "router.yaml").write_text(yaml.safe_dump_all(objects, sort_keys=False))
    command = [sys.executable, "-m", "llmrouter.cli", "serve", "--config", str(folder / "router.yaml")]
    process = start("picker", command, log=folder / "picker.log")
    return Running(process, f"{HOST}:{ports['ext_proc']}", f"{HOST}:{ports['grpc']}")


def peer(folder: Path, *, engines: list[str], tls: bool = False) -> Running:
    named = [{"name": one.replace(":", "-"), "address": HOST, "port": one.rpartition(":")[2]} for one in engines]
    (folder / "endpoints.yaml").write_text(yaml.safe_dump({"endpoints": named}))
    plugins = [{"name": "disc", "type": "file-discovery", "parameters": {"path": str(folder / "endpoints.yaml")}}]
    chosen = [{"pluginRef": name, **({"weight": weight} if weight else {})} for name, weight in WEIGHTS.items()]
    config = {
        "plugins": plugins + [{"type": name} for name in (*WEIGHTS, "single-profile-handler")],
        "schedulingProfiles": [{"name": "default", "plugins": chosen}],
        "dataLayer": {"discovery": {"pluginRef": "disc"}},
    }
    (folder / "epp.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    port, health = free_port(), free_port()
    flags = {"pool-name": "epp", "config-file": folder / "epp.yaml", "tracing": "false", "metrics-port": free_port()}
    flags |= {"secure-serving": str(tls).lower(), "metrics-endpoint-auth": "false"}
    flags |= {"grpc-port": port, "grpc-health-port": health}
    words = [os.environ[PEER_VARIABLE], *(f"--{name}={value}" for name, value in flags.items()), "-v", "0"]
    return Running(start("picker", words, log=folder / "picker.log"), f"{HOST}:{port}", f"{HOST}:{health}")


def launches(candidate: str, engines: list[str], redis: str) -> dict[str, Callable[[Path], Running]]:
    """How each target of the suite is started."""
    if candidate == "llm-d":
        return {
            "serving": partial(peer, engines=engines),
            "empty": partial(peer, engines=[]),
            "tls": partial(peer, engines=engines, tls=True),
            "drain": partial(peer, engines=engines),
        }
    make = partial(ours, transport=candidate)
    one = {"limits": {"maxInFlightPerInstance": 1}}
    shared = {**one, "state": {"redis": {"address": redis}}}
    profile = {"name": PROFILE}
    stages = [
        {"name": role.lower(), "role": role, "endpoints": [endpoint], "profile": profile}
        for role, endpoint in zip(("Prefill", "Decode"), engines, strict=True)
    ]
    return {
        "serving": partial(make, engines=engines),
        "empty": partial(make, engines=[NOBODY]),
        "full": partial(make, engines=engines[:1], **one),
        "one": partial(make, engines=engines[:1], **shared),
        "second": partial(make, engines=engines[:1], **shared),
        "stages": partial(make, engines=engines, pools=stages),
        "tls": partial(make, engines=engines, tls=True),
        "drain": partial(make, engines=engines),
    }


class Targets:
    """The targets of one candidate; each is started with the first case that needs it, and again if it has ended."""

    def __init__(self, stack: AsyncExitStack, folder: Path, how: dict[str, Callable[[Path], Running]]) -> None:
        self._stack, self._folder, self._how = stack, folder, how
        self._running: dict[str, tuple[Running, Target]] = {}
        self.count = 0

    async def of(self, need: str) -> dict[str, Target]:
        """What a case needs is among these, if the candidate has it."""
        found = {name: target for name in self._parts(need) if (target := await self._target(name)) is not None}
        if need == "health" and "serving" in found:
            found["health"] = found["serving"]
        found = needed_by(found)
        if need == "drain" and "drain" in found:
            process = self._running["drain"][0].process
            found["drain"] = replace(found["drain"], drain=partial(_stop, process.pid))
        return found

    def serves(self, need: str) -> bool:
        """Whether all processes of a target run."""
        return all(self._running[one][0].process.alive for one in self._parts(need) if one in self._running)

    @staticmethod
    def _parts(need: str) -> tuple[str, ...]:
        return {"second": ("one", "second"), "health": ("serving",)}.get(need, (need,))

    async def _target(self, name: str) -> Target | None:
        if name not in self._how:
            return None
        known = self._running.get(name)
        if known is None or not known[0].process.alive:
            known = self._running[name] = await self._start(name)
        return known[1]

    async def _start(self, name: str) -> tuple[Running, Target]:
        self.count += 1
        folder = self._folder / f"{name}-{self.count}"
        folder.mkdir(parents=True)
        running = self._how[name](folder)
        self._stack.callback(running.process.stop)
        await _until_it_answers(running, name)
        reached = await self._stack.enter_async_context(tunnel(running.address)) if name == "tls" else running.address
        channels = [grpc.aio.insecure_channel(one, options=OPTIONS) for one in (reached, running.health)]
        for channel in channels:
            self._stack.push_async_callback(channel.close, None)
        target = Target(channels[0], "llama", answer_s=10.0, health=channels[1], address=running.address)
        if name == "full":
            await self._stack.enter_async_context(placed(target, "the only place"))
        return running, target


async def _stop(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


async def _until_it_answers(running: Running, name: str) -> None:
    async with asyncio.timeout(READY_S):
        while True:
            host, _, port = running.address.rpartition(":")
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:  # not yet
                await asyncio.sleep(0.2)
                continue
            writer.close()
            break
        if name == "tls":
            await asyncio.sleep(2.0)
            return
        channel = grpc.aio.insecure_channel(running.address, options=OPTIONS)
        target = Target(channel, "llama", answer_s=2.0)
        while True:  # an empty one is ready when it refuses, the others when they pick
            try:
                found = await ask(target, chunks=[chat(target)])
            except Deviation:
                found = None
            if found is not None and (found.status is not None) == (name == "empty"):
                break
            await asyncio.sleep(0.5)
        await channel.close(None)


async def put(candidate: str, folder: Path, redis: str, only: str) -> dict[str, str]:
    """What came of each case."""
    async with AsyncExitStack() as stack:
        engines = [EngineServer(EngineServerConfig(profile=PROFILES[PROFILE], model="llama")) for _ in range(2)]
        for engine in engines:
            await engine.start(HOST, 0)
            stack.push_async_callback(engine.close)
        how = launches(candidate, [f"{HOST}:{engine.port}" for engine in engines], redis)
        targets = Targets(stack, folder, how)
        found = {}
        for case in CASES:
            if only in case.name:
                verdict = await judge(case, await targets.of(case.needs))
                await asyncio.sleep(ENDS_S if verdict.outcome == "failed" else 0.0)
                ended = case.needs != "drain" and verdict.outcome == "failed" and not targets.serves(case.needs)
                found[case.name] = " ".join((verdict.outcome, verdict.detail, "(its process ended)" * ended)).strip()
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/bench/epp_conformance.json"))
    parser.add_argument("--only", default="", metavar="WORDS", help="only cases whose names hold these words")
    parser.add_argument("--candidate", action="append", choices=["Fast", "Grpc", "llm-d"], help="repeatable")
    given = parser.parse_args()
    candidates = given.candidate or ["Fast", "Grpc", *(["llm-d"] if os.environ.get(PEER_VARIABLE) else [])]
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as name, RedisServer(provide_redis(), Path(name) / "redis") as redis:
        for candidate in candidates:
            found[candidate] = asyncio.run(put(candidate, Path(name) / candidate, f"{HOST}:{redis.port}", given.only))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"command": shlex.join(["python", *sys.argv]), "verdicts": found}
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    console = Console(soft_wrap=True)
    for case in next(iter(found.values())):
        said = [f"{one}: {verdicts[case]}" for one, verdicts in found.items() if verdicts[case] != "passed"]
        if said:
            console.print(f"{case}\n  " + "\n  ".join(said), markup=False, highlight=False)
    for one, verdicts in found.items():
        kinds = [verdict.partition(" ")[0] for verdict in verdicts.values()]
        console.print(f"{one}: " + ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("passed", "failed", "skipped")))


if __name__ == "__main__":
    main()

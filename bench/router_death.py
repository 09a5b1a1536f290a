"""What clients see when one of two routers behind Envoy is killed: streams under way, and requests that come just then.

Twice: with bodies as full-duplex streams, as the protocol for endpoint pickers asks of gateways, and with the modes of
the chart's front. No client tries anything again. Real processes: two engines, two routers that know nothing of each
other, one Envoy.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.table import Table

from llmrouter.testbed.cluster.processes import Process, free_port, poll, start
from llmrouter.testbed.completion_stream import CompletionError, completion_request, open_completion
from llmrouter.testbed.demo_target import manifest
from llmrouter.testbed.envoy import Front, configuration, pickers_known, start_envoy

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL, PROFILE = "llama-3.1-8b", "llama-3.1-8b-rtx4090"
STREAMS, STREAM_TOKENS = 20, 250
SHORT, SHORT_TOKENS, GAP_S = 120, 20, 0.05
KILL_AFTER_S = 1.5
SETTLE_S = 60.0
IN_A_ROW = 8
ENDS = ("whole", "broken", "503")


def router_file(folder: Path, engine_port: int, *, port: int) -> Path:
    (policy,) = manifest("policies/round-robin.yaml")
    engines = [f"127.0.0.1:{engine_port}", f"127.0.0.1:{engine_port + 1}"]
    spec = {
        "models": [{"name": MODEL}],
        "policyRef": {"name": policy["metadata"]["name"]},
        "pools": [{"name": "engines", "profile": {"name": PROFILE}, "endpoints": engines}],
        "listeners": {
            "grpcPort": free_port(),
            "metricsPort": free_port(),
            "extProc": {"port": port, "secureServing": False},
        },
        "router": {"replicas": 1},
    }
    router = {"apiVersion": policy["apiVersion"], "kind": "LLMRouter", "metadata": {"name": "death"}, "spec": spec}
    path = folder / f"router-{port}.yaml"
    path.write_text(yaml.safe_dump_all([router, policy]))
    return path


def command(folder: Path, stack: AsyncExitStack, name: str, words: Sequence[str]) -> Process:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = start(name, [sys.executable, "-m", "llmrouter.cli", *words], log=folder / f"{name}.log", env=environment)
    stack.callback(process.stop)
    return process


async def one(front: str, tokens: int) -> str:
    """How a request ends."""
    request = completion_request(endpoint=front, model=MODEL, request_id="", prompt_tokens=50, output_tokens=tokens)
    stream = await open_completion(front, request, timeout_s=5)
    await stream.closed.wait()
    try:
        return "whole" if stream.usage().output_tokens == tokens else "broken"
    except CompletionError:
        return "broken" if stream.status == 200 else str(stream.status)  # noqa: PLR2004 - OK
    finally:
        stream.abort()


async def run_once(folder: Path, *, as_gateways_do: bool) -> dict[str, int]:
    async with AsyncExitStack() as stack:
        engine_port = free_port()
        engine = ["engine", "--model", MODEL, "--profile", PROFILE, "--instances", "2", "--port", str(engine_port)]
        command(folder, stack, "engines", engine)
        ports = [free_port(), free_port()]
        routers = [
            command(folder, stack, f"router-{p}", ["serve", "--config", str(router_file(folder, engine_port, port=p))])
            for p in ports
        ]
        front_port, admin_port = free_port(), free_port()
        pickers = tuple(f"127.0.0.1:{port}" for port in ports)
        front = Front(pickers, front_port, admin_port, as_gateways_do=as_gateways_do)
        envoy = start_envoy(folder, configuration(front))
        stack.callback(envoy.stop)
        address = f"127.0.0.1:{front_port}"
        known = lambda: pickers_known(admin_port) == len(ports)  # noqa: E731 - a condition
        await asyncio.to_thread(poll, known, within_s=SETTLE_S, what="Envoy knows both routers")
        async with asyncio.timeout(SETTLE_S):
            # both routers know the engines
            while {await one(address, 1) for _ in range(IN_A_ROW)} != {"whole"}:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(GAP_S)
        tasks = [asyncio.create_task(one(address, STREAM_TOKENS)) for _ in range(STREAMS)]
        for number in range(SHORT):
            if number == round(KILL_AFTER_S / GAP_S):
                os.kill(routers[0].pid, signal.SIGKILL)
            tasks.append(asyncio.create_task(one(address, SHORT_TOKENS)))
            await asyncio.sleep(GAP_S)
        ends = await asyncio.gather(*tasks)
        return {end: ends.count(end) for end in sorted({*ENDS, *ends})}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.router_death", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="kills in each mode (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/bench/router_death.json"), help="file to write")
    options = parser.parse_args(arguments)
    console = Console(highlight=False)
    runs: dict[str, list[dict[str, int]]] = {"as gateways do": [], "the front's": []}
    for _ in range(options.repeats):
        for modes, found in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                found.append(asyncio.run(run_once(Path(folder), as_gateways_do=modes == "as gateways do")))
    words = shlex.join(["python", "-m", "bench.router_death", *(arguments or sys.argv[1:])])
    table = Table(
        "modes", *ENDS, title=f"{words}: of {options.repeats * (STREAMS + SHORT)} requests", title_justify="left"
    )
    total: dict[str, Any] = {}
    for modes, found in runs.items():
        total[modes] = {end: sum(run.get(end, 0) for run in found) for end in ENDS}
        table.add_row(modes, *(str(total[modes][end]) for end in ENDS))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"command": words, "total": total, "runs": runs}, indent=2) + "\n")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

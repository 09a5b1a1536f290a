"""What the OpenAI front does for requests, and what it costs: simulated engines in processes of their own, a router
from a file, clients over HTTP.

Questions, some rows each. ``slices``: long and short answers mixed; what ``sliceTokens`` does to waits and times.
Engines have no prefix cache here: a slice computes its whole prompt again, so that what slices cost is an upper bound.
``cost``: CPU seconds of the router in two modes, what it does beside (scrapes, heartbeats) among them. ``events``: CPU
time of one event of a stream within the front, without a network, passed on and as mode ``Tokens`` has it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np

from llmrouter.listener_specs import OpenAISpec
from router_grpc.openai.intent import intent_of

if TYPE_CHECKING:
    from collections.abc import Iterator

PROFILE = "llama-3.1-8b-rtx4090"
ENGINES = 4
MEDIAN_TOKENS, SIGMA = 60, 1.0
PROMPT_CHARACTERS = (800, 6_000)
CONFIG = """
apiVersion: llmrouter.dev/v1alpha1
kind: RoutingPolicy
metadata: {{name: by-cost}}
spec: {{type: WorkloadImpact}}
---
apiVersion: llmrouter.dev/v1alpha1
kind: LLMRouter
metadata: {{name: bench}}
spec:
  models: [{{name: m}}]
  policyRef: {{name: by-cost}}
  pools:
    - name: engines
      endpoints: {endpoints}
      profile: {{name: {profile}}}
      continuesChat: true
  listeners:
    grpcPort: {grpc}
    metricsPort: {metrics}
    openai: {openai}
  router: {{replicas: 1}}
"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Ask:
    """One request: when it comes, how long its prompt and its answer are."""

    at_s: float
    characters: int
    tokens: int


def asks_of(rate: float, seconds: float, seed: int) -> list[Ask]:
    """A Poisson stream of chats whose answers are log-normal."""
    rng, at_s = random.Random(seed), 0.0
    found: list[Ask] = []
    while True:
        at_s += rng.expovariate(rate)
        if at_s > seconds:
            return found
        tokens = max(4, min(1_000, round(rng.lognormvariate(np.log(MEDIAN_TOKENS), SIGMA))))
        found.append(Ask(at_s, rng.randint(*PROMPT_CHARACTERS), tokens))


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def ready(url: str) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        while True:
            try:
                async with session.get(url) as response:
                    if response.ok:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


async def ask(session: aiohttp.ClientSession, url: str, one: Ask, begun_s: float) -> tuple[float, float] | None:
    """Seconds to the first token and to the end; ``None`` where the answer is not whole."""
    await asyncio.sleep(max(0.0, begun_s + one.at_s - time.monotonic()))
    sent_s = time.monotonic()
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "x" * one.characters}],
        "max_tokens": one.tokens,
        "ignore_eos": True,
        "stream": True,
    }
    first_s, last = None, b""
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            async for line in response.content:
                if first_s is None and b"tok" in line:
                    first_s = time.monotonic() - sent_s
                last = line.strip() or last
    except aiohttp.ClientError:
        return None
    whole = first_s is not None and last == b"data: [DONE]"
    return (first_s, time.monotonic() - sent_s) if whole and first_s is not None else None


def cpu_of(process: subprocess.Popen[bytes]) -> float:
    """CPU seconds that a process has taken."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def counted(port: int, names: tuple[str, ...]) -> dict[str, float]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as response:
        lines = (await response.text()).splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith(names) and "created" not in line
    }


async def play(asks: list[Ask], openai: dict[str, Any], *, speed: float) -> Row:
    """One run of everything."""
    ports = [free_port() for _ in range(ENGINES + 3)]
    engines, (grpc, metrics, front) = ports[:ENGINES], ports[ENGINES:]
    url = f"http://127.0.0.1:{front}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "router.yaml"
        endpoints = json.dumps([f"127.0.0.1:{port}" for port in engines])
        rules = json.dumps({"port": front, **openai})
        text = CONFIG.format(endpoints=endpoints, profile=PROFILE, grpc=grpc, metrics=metrics, openai=rules)
        path.write_text(text)
        engine = [sys.executable, "-m", "llmrouter.testbed.engine_server", "--profile", PROFILE, "--model", "m"]
        with ExitStack() as stack:
            for port in engines:
                stack.enter_context(running(*engine, "--speed", str(speed), "--port", str(port)))
            command = (str(Path(sys.executable).parent / "llmrouter"), "serve", "--config", str(path))
            router = stack.enter_context(running(*command))
            await asyncio.gather(*(ready(f"http://127.0.0.1:{port}/health") for port in (*engines, front)))
            begun_s, cpu_s = time.monotonic(), cpu_of(router)
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector, read_bufsize=1 << 20) as session:
                done = await asyncio.gather(*(ask(session, url, one, begun_s) for one in asks))
            cpu_s = cpu_of(router) - cpu_s
            counts = await counted(metrics, ("llmrouter_resumes_total", "llmrouter_slices_total"))
    tokens = sum(one.tokens for one in asks)
    return {**summary(done), "tokens": tokens, "router_cpu_s": round(cpu_s, 2), "counts": counts}


def summary(done: list[tuple[float, float] | None]) -> Row:
    whole = np.array([one for one in done if one is not None])
    row: Row = {"requests": len(done), "whole": len(whole)}
    for column, name in enumerate(("ttft", "e2e")):
        for share in (50, 95, 99):
            row[f"{name}_p{share}_s"] = round(float(np.percentile(whole[:, column], share)), 3)
    return row


def event_cost() -> Row:
    """CPU microseconds of one event within the front."""
    row: Row = {}
    for name, rules in (
        ("passed on", OpenAISpec(resume="BeforeFirstToken")),
        ("in parts", OpenAISpec(resume="Tokens")),
    ):
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
        asked = intent_of("POST", "/v1/chat/completions", {}, json.dumps(body).encode(), rules)
        answer = asked.answer("text/event-stream")
        answer.begin_part(None)
        said = {
            "id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1_700_000_000,
            "model": "llama-3.1-8b",
            "choices": [{"index": 0, "delta": {"content": " word"}, "logprobs": None, "finish_reason": None}],
        }  # fmt: skip
        if name == "in parts":
            said["usage"] = {"prompt_tokens": 100, "total_tokens": 200, "completion_tokens": 100}
        event = b"data: " + json.dumps(said, separators=(",", ":")).encode() + b"\n\n"
        count, began_s = 50_000, time.process_time()
        for _ in range(count):
            answer.feed(event)
        row[name] = round(1e6 * (time.process_time() - began_s) / count, 1)
    return row


QUESTIONS: dict[str, list[dict[str, Any]]] = {
    "cost": [{"resume": "BeforeFirstToken"}, {"resume": "Tokens"}],
    "slices": [{"sliceTokens": size, "resume": "Tokens"} for size in (0, 64, 256)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=[*QUESTIONS, "events"], default=[*QUESTIONS, "events"])
    parser.add_argument("--rate", type=float, default=3.0, help="requests per second (default: %(default)s)")
    parser.add_argument(
        "--speed", type=float, default=0.3, help="of the engines, of their profile's (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("build/bench/openai_front.json"))
    options = parser.parse_args()
    rows: list[Row] = []
    for question in options.only:
        if question == "events":
            rows.append({"question": question, "cpu_us": event_cost()})
            continue
        for seed in range(options.seeds):
            asks = asks_of(options.rate, options.seconds, seed)
            for openai in QUESTIONS[question]:
                row = asyncio.run(play(asks, openai, speed=options.speed))
                rows.append({"question": question, "seed": seed, "openai": openai, **row})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    command = shlex.join([Path(sys.executable).name, "-m", "bench.openai_front", *sys.argv[1:]])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"command": command, "cpus": os.cpu_count(), "rows": rows}, indent=1))
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

"""What is measured: the loads, who meets them, and one measurement."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bench.data_plane.candidates import Candidate, Fleet, Stack, wait_free
from bench.data_plane.programs import library_environment
from llmrouter.testbed.cluster.processes import run

if TYPE_CHECKING:
    from pathlib import Path

    from bench.data_plane.programs import Programs
    from bench.data_plane.prompts import PromptFiles

SETTLE_S = 0.5
WARM_UP_S = 1.0
FIRST_S = 4.0
FREE_WITHIN_S = 10.0

FIXED = Candidate("fixed route", "fixed")
PEER = Candidate("llm-d", "peer")
FAST = Candidate("ours, Fast", "ours", options=(("transport", "Fast"),))
GRPC = Candidate("ours, Grpc", "ours", options=(("transport", "Grpc"),))
BLIND = Candidate(
    "ours, Fast, answers unseen", "ours", options=(("transport", "Fast"), ("responseObservation", "None"))
)
PROXIES = (Candidate("vllm-router", "vllm-router"), Candidate("sglang-router", "sglang-router"))
OVER_TLS = (
    FIXED,
    Candidate("llm-d, TLS", "peer", tls=True),
    Candidate("ours, Fast, TLS", "ours", options=(("transport", "Fast"),), tls=True),
)
TWO = (
    Candidate("ours, Fast, 2 processes, one port", "ours", options=FAST.options, processes=2, is_shared=True),
    Candidate("ours, Fast, 2 processes, a port each", "ours", options=FAST.options, processes=2),
)


def _many(instances: int) -> tuple[Candidate, ...]:
    calm = (("refresh-metrics-interval", "1s"), ("metrics-staleness-threshold", "10s"))
    return (
        Candidate(f"fixed route, {instances}", "fixed", instances),
        Candidate(f"llm-d, {instances}", "peer", instances),
        Candidate(f"llm-d, {instances}, metrics every 1 s", "peer", instances, calm),
        Candidate(f"ours, Fast, {instances}", "ours", instances, (("transport", "Fast"),)),
    )


@dataclass(frozen=True, slots=True)
class Cell:
    """One load: ``size`` is requests per second of an open loop, else connections. The base is ``against`` ratios."""

    name: str
    title: str
    load: Literal["open", "saturate", "streams"]
    prompts: Literal["short", "long", "streams"]
    size: float
    candidates: tuple[Candidate, ...]


EQUAL = (FIXED, PEER, FAST)
CELLS = (
    Cell("a", "200-token prompts, {size:g} requests/s", "open", "short", 500, (*EQUAL, *PROXIES)),
    Cell("b32", "200-token prompts, {size:g} connections, closed", "saturate", "short", 32, (*EQUAL, GRPC, *PROXIES)),
    Cell("b128", "200-token prompts, {size:g} connections, closed", "saturate", "short", 128, (*EQUAL, *PROXIES)),
    Cell("t32", "TLS to the picker, {size:g} connections, closed", "saturate", "short", 32, OVER_TLS),
    Cell("p32", "several processes, {size:g} connections, closed", "saturate", "short", 32, (FAST, *TWO)),
    Cell("c", "100,000-token prompts, {size:g} requests/s", "open", "long", 20, (*EQUAL, GRPC)),
    Cell("c8", "100,000-token prompts, {size:g} connections, closed", "saturate", "long", 8, EQUAL),
    Cell("d", "{size:g} streams of 200 chunks, 10 ms apart", "streams", "streams", 32, (*EQUAL, GRPC, BLIND)),
    Cell("e64", "64 instances, {size:g} connections, closed", "saturate", "short", 32, _many(64)),
    Cell("e512", "512 instances, {size:g} connections, closed", "saturate", "short", 32, _many(512)),
    Cell("e512r", "512 instances, {size:g} requests/s", "open", "short", 100, _many(512)),
)


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measurement needs."""

    programs: Programs
    prompts: PromptFiles
    fleet: Fleet


WARMING = Cell("warm", "", "saturate", "short", 32, ())


def warm(bench: Bench, stack: Stack) -> None:
    """Lets a candidate that has just begun learn what it learns in a burst at its start."""
    _load(bench, stack, WARMING, seconds=FIRST_S, seed=0)


def saturation(bench: Bench, stack: Stack, *, seconds: float, seed: int) -> float:
    """Requests per second that so many connections get through at most, after a warm-up."""
    warm(bench, stack)
    return float(_load(bench, stack, WARMING, seconds=seconds, seed=seed)["per_s"])


def measure(bench: Bench, stack: Stack, cell: Cell, *, seconds: float, seed: int) -> dict[str, Any]:
    """One measurement: the load for a moment uncounted, then for ``seconds``.

    Latencies are in ms, CPU in seconds, memory in bytes; ``engines`` counts what reached them in the counted time.
    """
    time.sleep(SETTLE_S)
    _load(bench, stack, cell, seconds=WARM_UP_S, seed=seed + 1_000)
    instances = stack.candidate.instances
    missed = stack.not_foretold()
    before, used, began_s = bench.fleet.counts(instances), stack.usage(), time.monotonic()
    seen = _load(bench, stack, cell, seconds=seconds, seed=seed)
    took_s, usage, after = time.monotonic() - began_s, stack.usage(), bench.fleet.counts(instances)
    requests = [now["requests"] - then["requests"] for now, then in zip(after, before, strict=True)]
    return {
        **seen,
        "wall_s": round(took_s, 3),
        "cpu_s": {name: round(one.cpu_s - used[name].cpu_s, 2) for name, one in usage.items()},
        "rss_bytes": {name: one.rss_bytes for name, one in usage.items()},
        "engines": {
            "requests": sum(requests),
            "reached": sum(1 for count in requests if count),
            "most": max(requests),
            **{
                name: sum(now[name] - then[name] for now, then in zip(after, before, strict=True))
                for name in ("scrapes", "others")
            },
        },
        "not_foretold": None if missed is None else (stack.not_foretold() or 0) - missed,
        "is_asked": stack.router is not None,
        "reserved_after": wait_free(stack, within_s=FREE_WITHIN_S),
    }


def _load(bench: Bench, stack: Stack, cell: Cell, *, seconds: float, seed: int) -> dict[str, Any]:
    prompts: Path = getattr(bench.prompts, cell.prompts)
    if cell.load == "saturate":
        return _wrk(bench, stack.target, prompts, connections=int(cell.size), seconds=seconds, seed=seed)
    words = ["--target", stack.target, "--prompts", str(prompts), "--seconds", str(seconds)]
    words += (
        ["--rate", str(cell.size), "--seed", str(seed)] if cell.load == "open" else ["--connections", f"{cell.size:g}"]
    )
    said = json.loads(run([bench.programs.traffic, cell.load, *words], within_s=seconds + 120))
    return _named(said)


def _named(said: dict[str, Any]) -> dict[str, Any]:
    """What the client says, under the names that all loads share."""
    good = {"plain 200", "stream 200"}
    errors = {name: count for name, count in said["outcomes"].items() if name not in good}
    answered = sum(said["outcomes"].values()) - sum(errors.values())
    kept = {key: said[key] for key in ("chunks", "chunks_per_s", "send_lag_ms") if key in said}
    if "delay_ms" in said:
        kept |= {"latency_ms": said["delay_ms"], "gap_ms": said["gap_ms"], "first_ms": said["first_ms"]}
    else:
        kept["latency_ms"] = said["latency_ms"]
    return {"answered": answered, "per_s": answered / said["seconds"], "errors": errors, **kept}


def _wrk(bench: Bench, target: str, prompts: Path, *, connections: int, seconds: float, seed: int) -> dict[str, Any]:
    script = os.path.join(os.path.dirname(__file__), "saturate.lua")  # noqa: PTH118, PTH120 - a string for wrk
    words = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "60s", "-s", script]
    environment = {**library_environment(bench.programs.wrk), "PROMPTS": str(prompts), "SEED": str(seed)}
    printed = run([bench.programs.wrk, *words, f"http://{target}"], env=environment, within_s=seconds + 120)
    line = next(one for one in printed.splitlines() if one.startswith("@"))
    said = json.loads(line[1:])
    errors = {name: said[name] for name in ("status", "connect", "read", "write", "timeout") if said[name]}
    return {
        "answered": said["requests"] - errors.get("status", 0),
        "per_s": (said["requests"] - errors.get("status", 0)) / said["seconds"],
        "errors": errors,
        "latency_ms": {name: said[name] for name in ("p50", "p95", "p99", "max")},
    }

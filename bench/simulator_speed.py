"""How fast the simulator is: simulated requests a second for every compiled rule and for policies as served.

Requests of the cell h100-mix at 0.9 of its capacity, four instances, one router with exact loads, predictions of 200
tokens. Speeds are per second of CPU time of one core, the best of several runs, so that other work on the machine
counts as little as it can. Memory is the peak of a run beyond the workload itself, by request, as tracemalloc sees it.
Last, one long run under round-robin. Writes build/bench/simulator_speed.json.

    .venv/bin/python bench/simulator_speed.py [--requests 50000] [--asked 10000] [--long 1000000] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from llmrouter.arrivals.cells import cell
from llmrouter.artefacts import builtin_model
from llmrouter.domain import ObjectiveWeights
from llmrouter.routing.catalogue import make_policy
from llmrouter.routing.marginal_cost import FormulaScorer
from llmrouter.routing.policies import LeastInFlight, Scored, kv_gate, request_bound
from llmrouter.routing.rules import Rule
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy
from router_grpc.adapters.onnx_model import load_scorer

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.routing.policies import Policy
    from llmrouter.sim.setup import Setup
    from llmrouter.sim.workload import Workload

LOAD = 0.9
PREDICTED_TOKENS = 200.0
CELL = cell("h100-mix")


def requests(count: int) -> Workload:
    made = CELL.workload(LOAD * (CELL.capacity_rps or 1.0), count)
    return made.with_predictions(np.full(count, PREDICTED_TOKENS))


def onnx_policy() -> Policy:
    model, manifest = builtin_model("policy", "marginal-cost")
    return Scored(kv_gate(1.0), load_scorer(model, manifest, expected_sha256=None), ObjectiveWeights())


ASKED: dict[str, Callable[[], Policy]] = {
    "LeastInFlight": lambda: LeastInFlight(request_bound(512)),
    "WorkloadImpact, KV gate": lambda: make_policy("WorkloadImpact", kv_gate(1.0)),
    "marginal cost as a formula, KV gate": lambda: Scored(kv_gate(1.0), FormulaScorer(), ObjectiveWeights()),
    "marginal cost as ONNX, KV gate": onnx_policy,
}


def speed_rps(setup: Setup, workload: Workload, policy: Policy | CompiledPolicy, *, repeats: int) -> float:
    """Simulated requests per CPU second, the best of so many runs."""
    best_s = float("inf")
    for _ in range(repeats):
        started_s = time.process_time()
        simulate(setup, workload, policy)
        best_s = min(best_s, time.process_time() - started_s)
    return len(workload) / best_s


def long_run(setup: Setup, count: int) -> dict[str, float]:
    """One run of many requests: seconds and peak memory."""
    workload, policy = requests(count), CompiledPolicy(rule=Rule.ROUND_ROBIN)
    tracemalloc.start()
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    outcomes = simulate(setup, workload, policy)
    elapsed_s, cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "requests": count,
        "simulated_s": round(outcomes.makespan_s, 1),
        "elapsed_s": round(elapsed_s, 2),
        "cpu_s": round(cpu_s, 2),
        "peak_bytes_per_request": round(peak_bytes / count),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=50_000, help="of a run under a compiled rule")
    parser.add_argument("--asked", type=int, default=10_000, help="of a run under a policy as served")
    parser.add_argument("--long", type=int, default=1_000_000, help="of the long run")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    console = Console(stderr=True)
    setup = CELL.setup
    with console.status("compiling"):
        started_s = time.process_time()
        simulate(setup, requests(10), CompiledPolicy(rule=Rule.ROUND_ROBIN))
        ready_s = time.process_time() - started_s
    workload, asked = requests(options.requests), requests(options.asked)
    found: dict[str, float] = {}
    with console.status("") as status:
        for rule in Rule:
            status.update(f"rule {rule.name}")
            policy = CompiledPolicy(rule=rule)
            found[f"rule {rule.name}"] = speed_rps(setup, workload, policy, repeats=options.repeats)
        for name, make in ASKED.items():
            status.update(name)
            found[name] = speed_rps(setup, asked, make(), repeats=options.repeats)
        status.update(f"{options.long:,} requests")
        last = long_run(setup, options.long)
    table = Table("policy", "simulated requests per CPU second")
    for name, value in found.items():
        table.add_row(name, f"{value:,.0f}")
    Console().print(table)
    result = {
        "command": " ".join(sys.argv),
        "requests": options.requests,
        "asked_requests": options.asked,
        "instances": len(setup.engines),
        "load_of_capacity": LOAD,
        "machine_load_1min": os.getloadavg()[0],
        "ready_cpu_s": round(ready_s, 1),
        "requests_per_cpu_s": {name: round(value) for name, value in found.items()},
        "long_run": last,
    }
    Console().print_json(json.dumps(result["long_run"]))
    path = Path("build/bench/simulator_speed.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""What the guard does to policies that need none: how often it acts, what that changes, and what it costs.

Every cell is run twice on the same requests and seeds, the policy alone and behind its guard: answers that the guard
changed by reason, and mean E2E behind the guard against without, in %, with a 95 % interval (Student). Then the time
that the guard adds to a decision, in microseconds of one core.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.models import pool
from llmrouter.domain import Request
from llmrouter.routing.catalogue import make_policy
from llmrouter.routing.guard import Guard
from llmrouter.routing.rooms import kv_gate, request_bound
from llmrouter.sim.guarded import GuardedPolicy
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import RouterSide
from llmrouter.study import bench_options
from llmrouter.study.cells import build_cell
from llmrouter.study.statistics import paired_change

if TYPE_CHECKING:
    from llmrouter.routing.policies import Policy
    from llmrouter.sim.outcomes import Outcomes
    from llmrouter.sim.setup import Setup
    from llmrouter.sim.workload import Workload

CAPACITY_RPS = {"paper-v100": 13.5, "h100-mix": 44.5, "h100-prod": 22.5, "azure-unequal": 23.1}
"""The highest rate that round-robin sustains: docs/benchmark.md, and ``llmrouter.testbed.comparison`` for the last."""

SIDES = {"exact": RouterSide(), "4 routers, 0.5 s": RouterSide(routers=4, refresh_s=0.5)}
POLICIES = ("LeastInFlight", "WorkloadImpact")
INSTANCES = (4, 16, 64)
FIRST_SEED = 3_000
ASKED = Request("r", "m", prompt_tokens=800, predicted_output_tokens=200.0, arrived_at_s=0.0)


def policy_of(name: str) -> Policy:
    return make_policy(name, kv_gate(1.0) if name == "WorkloadImpact" else request_bound(512))


def guard_of(name: str) -> Guard:
    return Guard(policy_of(name), make_policy("LeastInFlight", request_bound(512)), budget_s=0.02, clock=lambda: 0.0)


def both(name: str, setup: Setup, workload: Workload, seed: int) -> tuple[Outcomes, Outcomes, Counter[str]]:
    """Alone, guarded, and what the guard did."""
    guarded = GuardedPolicy(guard_of(name))
    alone = simulate(setup, workload, policy_of(name), seed=seed)
    return alone, simulate(setup, workload, guarded, seed=seed), guarded.reasons


def acts(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for cell_name in options.cells:
        cell = build_cell(bench_options.parse(["--cells", cell_name]).plan.cells[0])
        for load in options.loads:
            for side_name, side in SIDES.items():
                setup = replace(cell.setup, routers=side)
                for name in POLICIES:
                    reasons: Counter[str] = Counter()
                    means = []
                    for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
                        workload = cell.workload_at(load * CAPACITY_RPS[cell_name], options.requests, seed)
                        alone, guarded, did = both(name, setup, workload, seed)
                        reasons += did
                        means.append([float(np.nanmean(one.e2e_s)) for one in (alone, guarded)])
                    columns = np.array(means).T
                    change = paired_change(columns[1], columns[0])
                    row = {"cell": cell_name, "load": load, "side": side_name, "policy": name, **dict(reasons)}
                    rows.append(row | {"e2e_percent": change.percent, "half_width": change.half_width})
                    said = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "nothing"
                    print(f"{cell_name:14} {load:4} {side_name:18} {name:16} {said:24} {shown(change)}", flush=True)
    return rows


def shown(change: Any) -> str:  # noqa: ANN401 - a Change
    """In %."""
    if change.percent is None or change.half_width is None:
        return "–"
    return f"mean E2E {change.percent:+.2f} ± {change.half_width:.2f} %"


def costs(runs: int) -> list[dict[str, Any]]:
    """Median microseconds of a decision, alone and guarded, on a pool whose instances are all alike."""
    rows = []
    for instances in INSTANCES:
        views = pool(1, random.Random(1)).views
        alike = tuple(
            replace(views[0], instance=replace(views[0].instance, instance_id=f"i{n:03}")) for n in range(instances)
        )
        for name in POLICIES:
            snapshot = replace(pool(1, random.Random(1)), views=alike)
            policy, guard, rng = policy_of(name), guard_of(name), random.Random(1)
            took_us = np.empty((2, runs))
            for run in range(runs):
                now = replace(snapshot, taken_at_s=run * 0.01)
                for column, decide in enumerate((policy.decide, guard.decide)):
                    started_ns = time.perf_counter_ns()
                    decide(ASKED, now, rng)
                    took_us[column, run] = (time.perf_counter_ns() - started_ns) / 1_000
            alone, guarded = np.percentile(took_us, 25, axis=1)
            rows.append({"instances": instances, "policy": name, "alone_us": alone, "guarded_us": guarded})
            print(f"{instances:4} instances {name:16} {alone:7.1f} µs alone, the guard adds {guarded - alone:.1f} µs")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=list(CAPACITY_RPS), choices=list(CAPACITY_RPS))
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.95], help="of what round-robin sustains")
    parser.add_argument("--requests", type=int, default=2_000, help="of each run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=4_000, help="timed decisions (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/bench/guards.json"), help="file to write")
    options = parser.parse_args()
    if options.seeds < 2 or options.requests < 1 or options.runs < 1 or min(options.loads) <= 0:  # noqa: PLR2004
        parser.error("--seeds must be at least 2, --requests and --runs at least 1, --loads above 0")
    print(f"$ {(command := shlex.join(['python', *sys.argv]))}")
    report = {"command": command, "acts": acts(options), "costs": costs(options.runs)}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How long one decision takes under every policy that needs no model, on one core, in microseconds.

A decision is everything from a snapshot to ordered candidates: eligibility, room by KV, features, scores, order. In the
row of two stages every second instance computes prompts for the others (``routing/stages.py``).
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.models import pool
from llmrouter.domain import ObjectiveWeights, Request, Role
from llmrouter.routing.catalogue import POLICIES, make_policy
from llmrouter.routing.rooms import kv_gate
from llmrouter.routing.stages import Staged

if TYPE_CHECKING:
    from llmrouter.domain import PoolSnapshot
    from llmrouter.routing.policies import Policy

INSTANCES = (4, 16, 64, 256)
SEED = 1
IN_STAGES = "WorkloadImpact"
ASKED = Request("r", "m", prompt_tokens=800, predicted_output_tokens=200.0, arrived_at_s=0.0)

Row = dict[str, str | int | float]


def staged(name: str) -> Policy:
    """A policy that chooses for both stages."""
    decode = make_policy(name, kv_gate(1.0), replace(ObjectiveWeights(), reuse=0.0))
    return Staged(make_policy(name, kv_gate(1.0)), decode=decode, weights=ObjectiveWeights())


def in_stages(snapshot: PoolSnapshot) -> PoolSnapshot:
    """The same with every second instance for prompts alone."""
    roles = Role.DECODE, Role.PREFILL
    views = [
        replace(view, instance=replace(view.instance, role=roles[place % 2]))
        for place, view in enumerate(snapshot.views)
    ]
    return replace(snapshot, views=tuple(views))


def measured(name: str, policy: Policy, snapshot: PoolSnapshot, runs: int) -> Row:
    rng = random.Random(SEED)
    took_us = np.empty(runs)
    for run in range(-50, runs):
        started_ns = time.perf_counter_ns()
        policy.decide(ASKED, snapshot, rng)
        if run >= 0:
            took_us[run] = (time.perf_counter_ns() - started_ns) / 1_000
    p50, p99 = np.percentile(took_us, (50, 99))
    size = len(snapshot.views)
    return {"policy": name, "instances": size, "runs": runs, "p50_us": round(p50, 1), "p99_us": round(p99, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1_000, help="timed decisions per row (default: 1000)")
    parser.add_argument("--json", type=Path, default=Path("build/bench/decisions.json"), help="file to write")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs must be at least 1")
    rng = random.Random(SEED)
    snapshots = [pool(instances, rng) for instances in INSTANCES]
    policies = {name: make_policy(name, kv_gate(1.0)) for name in POLICIES}
    rows = [[measured(name, one, shown, arguments.runs) for shown in snapshots] for name, one in policies.items()]
    two = f"{IN_STAGES}, two stages", staged(IN_STAGES)
    rows.append([measured(*two, in_stages(shown), arguments.runs) for shown in snapshots])
    command = shlex.join(["python", *sys.argv])
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    report = {"command": command, "machine": platform.machine(), "python": platform.python_version(), "rows": rows}
    arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"$ {command}")
    print(f"{'p50 µs (p99) at so many instances':36}" + "".join(f"{instances:>18}" for instances in INSTANCES))
    for row in rows:
        print(f"{row[0]['policy']:36}" + "".join(f"{one['p50_us']:>10} ({one['p99_us']})".rjust(18) for one in row))
    return 0


if __name__ == "__main__":
    sys.exit(main())

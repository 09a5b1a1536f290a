"""How long one decision takes under every policy that needs no model, on one core, in microseconds.

A decision is everything from a snapshot to ordered candidates: eligibility, room by KV, features, scores, order.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.models import pool
from llmrouter.domain import Request
from llmrouter.routing.catalogue import POLICIES, make_policy
from llmrouter.routing.rooms import kv_gate

if TYPE_CHECKING:
    from llmrouter.domain import PoolSnapshot

INSTANCES = (4, 16, 64, 256)
SEED = 1
ASKED = Request("r", "m", prompt_tokens=800, predicted_output_tokens=200.0, arrived_at_s=0.0)

Row = dict[str, str | int | float]


def measured(name: str, snapshot: PoolSnapshot, runs: int) -> Row:
    policy, rng = make_policy(name, kv_gate(1.0)), random.Random(SEED)
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
    rows = [[measured(name, snapshot, arguments.runs) for snapshot in snapshots] for name in POLICIES]
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

"""How much of the tokens still expected to count against KV now: the default policy at shares r, paired by seed.

Mean E2E of each r against that of the first, in %, with a 95 % interval (Student), and preemptions. The cells of the
benchmark, lengths predicted by ``--predictor``; requests and seeds are the same for all r.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.routing.rules import Rule
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy
from llmrouter.study import bench_options
from llmrouter.study.cells import build_cell
from llmrouter.study.predictors import Predictor, predicted
from llmrouter.study.statistics import paired_change

if TYPE_CHECKING:
    from llmrouter.study.cells import Cell
    from llmrouter.study.statistics import Change

CAPACITY_RPS = {"paper-v100": 13.5, "h100-mix": 44.5, "h100-prod": 22.5}
"""The highest rate that round-robin sustains: docs/benchmark.md."""

FORETELLING = (Predictor.TASK_MEAN, Predictor.BUCKET, Predictor.FOREST, Predictor.ORACLE)
FIRST_SEED = 1_000
ANOTHER_RUN = 5_000
"""Added to a seed for the history that the task's mean is taken of."""


def policy(share: float) -> CompiledPolicy:
    return CompiledPolicy(
        rule=Rule.MARGINAL_COST,
        max_requests=None,
        kv_fraction=1.0,
        decode_reserve_fraction=share,
    )


def runs(cell: Cell, rate_rps: float, options: argparse.Namespace, seed: int) -> list[tuple[float, int]]:
    """Mean E2E in seconds and preemptions for each share."""
    history = cell.workload_at(rate_rps, options.requests, seed + ANOTHER_RUN)
    requests = cell.workload_at(rate_rps, options.requests, seed)
    workload = predicted(requests, Predictor(options.predictor), history, seed=seed)
    outcomes = [simulate(cell.setup, workload, policy(share), seed=seed) for share in options.shares]
    return [(float(np.nanmean(one.e2e_s)), int(np.sum(one.preemptions))) for one in outcomes]


def shown(change: Change) -> str:
    """In %."""
    if change.percent is None or change.half_width is None:
        return "–"
    return f"{change.percent:+6.2f} ± {change.half_width:.2f} %"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.15, 0.3, 0.5], help="r, what is compared with first"
    )
    parser.add_argument("--cells", nargs="+", choices=CAPACITY_RPS, default=list(CAPACITY_RPS), help="of the benchmark")
    parser.add_argument("--predictor", choices=[str(one) for one in FORETELLING], default=str(Predictor.TASK_MEAN))
    parser.add_argument("--loads", type=float, nargs="+", default=[0.95, 1.1, 1.3], help="of what round-robin sustains")
    parser.add_argument("--requests", type=int, default=3_000, help="of each run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=20, help="runs of each (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/bench/kv_reserve.json"), help="file to write")
    options = parser.parse_args()
    if options.seeds < 2 or options.requests < 1 or min(options.loads) <= 0:  # noqa: PLR2004 - an interval needs two
        parser.error("--seeds must be at least 2, --requests at least 1, --loads above 0")
    print(f"$ {(command := shlex.join(['python', *sys.argv]))}")
    rows = []
    for name in options.cells:
        capacity_rps = CAPACITY_RPS[name]
        cell = build_cell(bench_options.parse(["--cells", name]).plan.cells[0])
        for load in options.loads:
            seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
            found = [runs(cell, load * capacity_rps, options, seed) for seed in seeds]
            e2e_s, preemptions = np.moveaxis(np.array(found), -1, 0)
            for place, share in enumerate(options.shares):
                change = paired_change(e2e_s[:, place].tolist(), e2e_s[:, 0].tolist())
                preempted = float(preemptions[:, place].mean())
                rows.append({"cell": name, "load": load, "r": share, "e2e": asdict(change), "preemptions": preempted})
                print(f"{name:11}{load:6g} C  r {share:<5g}{shown(change)}  preemptions {preempted:.0f}", flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"command": command, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What batch-hold is worth: the default policy with and without it, paired by seed, on engines that prefill first.

Mean E2E, mean and p99 TTFT and p95 TPOT of each setting (requests/seconds) against those of the first, in %, with 95 %
intervals (Student). Lengths are predicted by the mean of the task; requests and seeds are the same for all settings.
Below capacity the first fifth of a run is not measured. `--cell paper-own` decides every 20 ms, from empty.
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

from llmrouter.domain import BatchHold
from llmrouter.objectives import DEFAULT_PRESET, PRESETS
from llmrouter.routing.rules import Rule
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy
from llmrouter.study.cells import CellSpec, build_cell
from llmrouter.study.predictors import Predictor, predicted
from llmrouter.study.statistics import paired_change

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrouter.study.cells import Cell
    from llmrouter.study.statistics import Change

CAPACITY_RPS = {"paper-v100": 13.5, "paper-own": 13.5, "h100-mix": 44.5, "h100-prod": 22.5}
"""The highest rate that round-robin sustains on four instances: docs/benchmark.md."""

FIRST_SEED = 1_000
ANOTHER_RUN = 5_000
"""Added to a seed for the history that the task's mean is taken of."""

HISTORY = 2_000
FIGURES = ("mean E2E", "mean TTFT", "p99 TTFT", "p95 TPOT")


def hold_of(text: str) -> BatchHold:
    """``size/seconds``."""
    size, wait_s = text.split("/")
    return BatchHold(int(size), float(wait_s))


def figures(
    cell: Cell, rate_rps: float, policies: list[CompiledPolicy], *, requests: int, seed: int
) -> NDArray[np.float64]:
    """Seconds by setting and figure (H, F)."""
    history = cell.workload_at(rate_rps, HISTORY, seed + ANOTHER_RUN)
    workload = predicted(cell.workload_at(rate_rps, requests, seed), Predictor.TASK_MEAN, history, seed=seed)
    load = rate_rps / (CAPACITY_RPS[cell.spec.name] * len(cell.setup.engines) / 4)
    first = int(cell.warm_up_fraction(load) * requests)
    rows = []
    for policy in policies:
        one = simulate(cell.setup, workload, policy, seed=seed)
        e2e_s, ttft_s, tpot_s = one.e2e_s[first:], one.ttft_s[first:], one.tpot_s[first:]
        rows.append([np.nanmean(e2e_s), np.nanmean(ttft_s), np.nanpercentile(ttft_s, 99), np.nanpercentile(tpot_s, 95)])
    return np.array(rows)


def shown(change: Change) -> str:
    """In %."""
    if change.percent is None or change.half_width is None:
        return "–"
    return f"{change.percent:+.1f} ± {change.half_width:.1f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=sorted(CAPACITY_RPS), default="paper-v100")
    parser.add_argument("--preset", choices=sorted(PRESETS), default=DEFAULT_PRESET, help="whose weights")
    parser.add_argument("--instances", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--loads", type=float, nargs="+", default=[0.8, 0.95, 1.1, 1.48], help="of capacity")
    parser.add_argument("--holds", nargs="+", default=["1/0", "2/0.05", "2/0.15", "4/0.5", "6/1"], metavar="N/S")
    parser.add_argument("--requests", type=int, default=500, help="of each run for each instance")
    parser.add_argument("--seeds", type=int, default=8, help="runs of each (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/bench/batch_hold.json"), help="file to write")
    options = parser.parse_args()
    if options.seeds < 2 or min(options.requests, *options.instances) < 1 or min(options.loads) <= 0:  # noqa: PLR2004
        parser.error("--seeds must be at least 2, --requests and --instances at least 1, --loads above 0")
    return options


def main() -> int:
    options = arguments()
    print(f"$ {(command := shlex.join(['python', *sys.argv]))}\n")
    holds, weights = [hold_of(text) for text in options.holds], PRESETS[options.preset].in_order
    policies = [
        CompiledPolicy(rule=Rule.MARGINAL_COST, weights=weights, max_requests=None, kv_fraction=1.0, batch_hold=hold)
        for hold in holds
    ]
    print(f"| instances, load | size, s | {' % | '.join(FIGURES)} % |\n|{'---|' * (2 + len(FIGURES))}")
    rows = []
    for instances in options.instances:
        cell = build_cell(CellSpec(name=options.cell, instances=instances))
        for load in options.loads:
            rate_rps, requests = load * CAPACITY_RPS[options.cell] * instances / 4, options.requests * instances
            seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
            found_SHF = np.array([figures(cell, rate_rps, policies, requests=requests, seed=seed) for seed in seeds])
            for place, hold in enumerate(holds):
                changes = [
                    paired_change(found_SHF[:, place, k].tolist(), found_SHF[:, 0, k].tolist())
                    for k in range(len(FIGURES))
                ]
                named = {name: asdict(change) for name, change in zip(FIGURES, changes, strict=True)}
                seconds = found_SHF[:, place].mean(axis=0).tolist()
                rows.append({"instances": instances, "load": load, "hold": options.holds[place], "s": seconds, **named})
                cells = " | ".join(
                    f"{shown(change)} ({value:.3g} s)" for change, value in zip(changes, seconds, strict=True)
                )
                print(f"| {instances}, {load:g} | {hold.size}, {hold.wait_s:g} | {cells} |", flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"command": command, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

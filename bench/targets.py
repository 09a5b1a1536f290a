"""What the default policy and its presets are to reach, and what they reach: every target with its measured change.

Changes are paired over seeds, ± the half-width of the Student-t 95 % interval, in simulation. ``--final`` opens the
final seeds, on record.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from llmrouter.errors import InvalidInputError
from llmrouter.sim.setup import RouterSide
from llmrouter.study.bench_command import open_final
from llmrouter.study.cells import CellSpec
from llmrouter.study.plan import Plan, Point, capacity_task, points_of, run_task
from llmrouter.study.pool import do_tasks
from llmrouter.study.progress import make_ready, progress
from llmrouter.study.result import capacities
from llmrouter.study.seeds import FINAL, SELECTION, ledger_path
from llmrouter.study.statistics import Change, paired_change
from llmrouter.study.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BASE = "RoundRobin"
JSQ = "LeastInFlight"
LMETRIC = "LMetric"
BALANCED = "WorkloadImpact"
SLO = "WorkloadImpact-SLO"
E2E = "WorkloadImpact-E2E"
POLICIES = (BASE, JSQ, LMETRIC, BALANCED, SLO, E2E)

OTHER_SIZES = (2, 8, 16, 64)
MAIN = ("paper-v100", "h100-mix", "h100-prod", "azure", "paper-own")
LOADS = (0.5, 0.8, 0.95, 1.1)
MOST_WORSE_PERCENT = 0.5
LEAST_KEPT, BEST_KEPT = 0.7, 0.85
"""Of a gain, with eight routers whose views are half a second old."""

SEVERAL = RouterSide(routers=8, refresh_s=0.5)


@dataclass(frozen=True, slots=True)
class Target:
    """A change in percent that a policy is to reach at a point: at most ``must``, better ``aim``."""

    what: str
    cell: str
    load: float
    policy: str
    against: str
    metric: str
    must: float
    aim: float | None = None


def targets() -> Iterator[Target]:
    """Those of single points."""
    for load in (0.8, 0.95):
        yield Target("E2E preset, mean E2E", "h100-mix", load, E2E, BASE, "e2e_mean_s", -10.0, -13.0)
        yield Target("E2E preset, p99 E2E", "h100-mix", load, E2E, BASE, "e2e_p99_s", -12.0, -20.0)
        yield Target("Balanced, mean E2E", "h100-mix", load, BALANCED, BASE, "e2e_mean_s", -9.0, -11.0)
        yield Target("Balanced, mean TTFT", "h100-mix", load, BALANCED, BASE, "ttft_mean_s", -20.0, -26.0)
        yield Target("Balanced, p99 TTFT", "h100-mix", load, BALANCED, BASE, "ttft_p99_s", -20.0, -26.0)
        yield Target("Balanced, p95 TPOT", "h100-mix", load, BALANCED, BASE, "tpot_p95_s", 15.0, 8.0)
        yield Target("SLO, p99 TTFT", "h100-mix", load, SLO, LMETRIC, "ttft_p99_s", 0.0)
        yield Target("SLO, p95 TPOT", "h100-mix", load, SLO, LMETRIC, "tpot_p95_s", -5.0)
    for policy in (BALANCED, E2E):
        yield Target(f"{policy}, mean E2E", "h100-prod", 0.95, policy, BASE, "e2e_mean_s", -20.0, -25.0)
        yield Target(f"{policy}, mean E2E", "h100-prod", 0.95, policy, LMETRIC, "e2e_mean_s", -5.0, -8.0)
        yield Target(f"{policy}, mean E2E", "paper-v100", 0.95, policy, BASE, "e2e_mean_s", -4.0, -7.0)
        yield Target(f"{policy}, mean E2E", "paper-v100", 1.1, policy, BASE, "e2e_mean_s", -18.0, -24.0)
        yield Target(f"{policy}, preemptions", "paper-v100", 1.1, policy, BASE, "preemptions", -95.0, -100.0)
        yield Target(f"{policy}, makespan", "paper-own", 0.0, policy, BASE, "makespan_s", -7.0, -11.43)
        yield Target(f"{policy}, mean E2E", "paper-own", 0.0, policy, BASE, "e2e_mean_s", -14.0)


class Measured:
    """Figures of every policy at every point, seed by seed."""

    def __init__(self, store: Store, *, first_seed: int, seeds: int, jobs: int) -> None:
        self._store = store
        self._seeds = first_seed, seeds
        self._jobs = jobs

    def plan(self, cells: Sequence[CellSpec], loads: Sequence[float], policies: Sequence[str]) -> Plan:
        """A plan on this measurement's seeds."""
        first, count = self._seeds
        block = FINAL if first in FINAL else SELECTION
        return Plan(
            cells=tuple(cells),
            loads=tuple(loads),
            policies=tuple(policies),
            first_seed=first,
            seeds=count,
            block=block,
        )

    def points(self, plan: Plan) -> list[Point]:
        """All points of a plan, run."""
        searches = [capacity_task(cell) for cell in plan.cells]
        with progress("capacity", len(searches), unit="cells") as advance:
            do_tasks(searches, self._store, jobs=self._jobs, on_done=lambda _task: advance(1))
        points = points_of(plan, capacities(plan, self._store))
        tasks = [
            run_task(plan, point, policy, seed)
            for point in points
            for seed in plan.seed_range
            for policy in plan.policies
        ]
        with progress("runs", len(tasks)) as advance:
            do_tasks(tasks, self._store, jobs=self._jobs, on_done=lambda _task: advance(1))
        return points

    def change(self, plan: Plan, point: Point, policy: str, against: str, metric: str) -> Change:
        """Of a policy against another at a point."""
        return paired_change(self._values(plan, point, policy, metric), self._values(plan, point, against, metric))

    def _values(self, plan: Plan, point: Point, policy: str, metric: str) -> list[float | None]:
        results = (self._store.get(run_task(plan, point, policy, seed).key) for seed in plan.seed_range)
        return [one["figures"][metric] for one in results]


def single_points(measured: Measured) -> list[dict[str, Any]]:
    plan = measured.plan([CellSpec(name=name) for name in MAIN], LOADS, POLICIES)
    points = {(one.cell.name, 0.0 if one.cell.name == "paper-own" else one.load): one for one in measured.points(plan)}
    rows = []
    for one in targets():
        change = measured.change(plan, points[one.cell, one.load], one.policy, one.against, one.metric)
        rows.append(row(one.what, f"{one.cell} {one.load or ''}".strip(), one.against, change, one.must, one.aim))
    worst: dict[str, tuple[float, str, Change]] = {}
    for (cell, load), point in points.items():
        for policy in (BALANCED, SLO, E2E):
            change = measured.change(plan, point, policy, JSQ, "e2e_mean_s")
            if change.percent is not None and (policy not in worst or change.percent > worst[policy][0]):
                worst[policy] = change.percent, f"{cell} {load or ''}".strip(), change
    for policy, (_, where, change) in worst.items():
        rows.append(row(f"{policy}, mean E2E, its worst cell", where, JSQ, change, MOST_WORSE_PERCENT, 0.0))
    return rows


def other_sizes(measured: Measured) -> list[dict[str, Any]]:
    """What is lost of the gain against round-robin with other numbers of instances, in points."""
    rows, gains = [], {}
    for instances in (4, *OTHER_SIZES):
        plan = measured.plan([CellSpec(name="h100-mix", instances=instances)], (0.95,), (BASE, BALANCED))
        (point,) = measured.points(plan)
        gains[instances] = measured.change(plan, point, BALANCED, BASE, "e2e_mean_s")
    here = gains[4].percent or 0.0
    for instances in OTHER_SIZES:
        change = gains[instances]
        lost = Change(None if change.percent is None else change.percent - here, change.half_width)
        rows.append(
            row(f"Balanced, {instances} instances: points lost", "h100-mix 0.95", "4 instances", lost, 1.0, 0.0)
        )
    return rows


def several_routers(measured: Measured) -> list[dict[str, Any]]:
    """What is kept of the gain by eight routers whose views are half a second old."""
    found = []
    for routers in (RouterSide(), SEVERAL):
        plan = measured.plan([CellSpec(name="h100-mix", routers=routers)], (0.95,), (BASE, BALANCED))
        (point,) = measured.points(plan)
        found.append(measured.change(plan, point, BALANCED, BASE, "e2e_mean_s"))
    one, eight = found
    must = LEAST_KEPT * (one.percent or 0.0)
    return [
        row("Balanced, 8 routers, views 500 ms old", "h100-mix 0.95", BASE, eight, must, 0.85 * (one.percent or 0.0))
    ]


def row(what: str, where: str, against: str, change: Change, must: float, aim: float | None) -> dict[str, Any]:  # noqa: PLR0917
    """One line of the table. A target is reached where the mean is, and missed for sure where the interval says so."""
    reached = change.percent is not None and change.percent <= must
    return {
        "what": what,
        "where": where,
        "against": against,
        "percent": change.percent,
        "half_width": change.half_width,
        "must": must,
        "aim": aim,
        "reached": reached,
        "aim_reached": None if aim is None or change.percent is None else change.percent <= aim,
    }


def shown(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("target", "where", "against", "change %", "must", "aim", "reached")
    for one in rows:
        change = "–" if one["percent"] is None else f"{one['percent']:+.1f} ± {one['half_width'] or 0.0:.1f}"
        mark = "aim" if one["aim_reached"] else "must" if one["reached"] else "no"
        style = {"aim": "green", "must": "green", "no": "red"}[mark]
        aim = "" if one["aim"] is None else f"{one['aim']:+.1f}"
        table.add_row(one["what"], one["where"], one["against"], change, f"{one['must']:+.1f}", aim, mark, style=style)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="of every point (default: 20)")
    parser.add_argument("--final", action="store_true", help="open the final seeds, on record")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--out", type=Path, default=Path("build/bench/targets"), help="folder of results")
    given = parser.parse_args()
    if given.seeds < 2:  # noqa: PLR2004 - an interval needs two
        parser.error("--seeds must be at least 2")
    command = shlex.join(["python", "-m", "bench.targets", *sys.argv[1:]])
    make_ready()
    with Store(given.out, fresh=False) as store:
        first = (FINAL if given.final else SELECTION).first
        measured = Measured(store, first_seed=first, seeds=given.seeds, jobs=given.jobs)
        if given.final:
            plan = measured.plan([CellSpec(name=name) for name in MAIN], LOADS, POLICIES)
            try:
                open_final(plan, command, ledger=ledger_path(given.out), now=dt.datetime.now(dt.UTC))
            except InvalidInputError as error:
                parser.error(str(error))
        rows = [*single_points(measured), *other_sizes(measured), *several_routers(measured)]
    report = {"command": command, "seeds": {"first": first, "count": given.seeds}, "rows": rows}
    (given.out / "targets.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console = Console()
    console.width = max(console.width, 130)
    console.print(f"$ {command}")
    console.print(shown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

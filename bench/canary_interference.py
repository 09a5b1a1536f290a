"""What a canary shows of a policy, and what the policy does once it serves all: arms share instances.

Simulated, with the very policies that routers run, four llama-3.1-8b-rtx4090 and four llama-3.1-8b-rtx-pro-6000, the
packaged Azure trace, lengths foretold by the shipped forest, one router. ``WorkloadImpact`` is current. Each candidate
first serves all requests of a run of its own: ``at 100 %`` is the ratio of geometric means of that run's times to those
of the current policy's own run, which no canary can see. Then it decides for ``percent`` of the requests beside the
current policy, on the same instances: ``seen`` is the same ratio between the arms. Over several seeds, medians.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from llmrouter.arrivals.cells import azure
from llmrouter.profiles import PROFILES
from llmrouter.rollout.arms import CANDIDATE, arm_of
from llmrouter.routing.catalogue import make_policy
from llmrouter.routing.policies import request_bound
from llmrouter.sim.model import EngineModel
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import Setup
from llmrouter.study.predictors import Predictor, predicted

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from numpy.typing import NDArray

    from llmrouter.domain import Decision, InstanceView, PoolSnapshot, Request, Room
    from llmrouter.routing.policies import Policy
    from llmrouter.sim.outcomes import Outcomes
    from llmrouter.sim.workload import Workload

CURRENT = "WorkloadImpact"
CANDIDATES = ("RoundRobin", "PowerOfTwo", "LeastInFlight", "TokenLoad", "LMetric")
ENGINES = ("llama-3.1-8b-rtx4090", "llama-3.1-8b-rtx-pro-6000")
CAPACITY_RPS = 23.1
"""The rate that round-robin sustains on them: ``bench/capacity.py``."""
MAX_REQUESTS = 256
METRICS = ("ttft", "tpot", "e2e")

Row = dict[str, Any]


@dataclass
class Arms:
    """Two policies as one: each decides for the requests of its arm."""

    current: Policy
    candidate: Policy
    percent: float
    salt: str
    name: str = "Arms"

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        """The decision of the request's arm."""
        one = self.candidate if is_candidates(request.request_id, self.salt, self.percent) else self.current
        return one.decide(request, snapshot, rng)

    def room_of(self, view: InstanceView) -> Room:
        """The same for both."""
        return self.current.room_of(view)


def is_candidates(request_id: str, salt: str, percent: float) -> bool:
    """Whether a request is the candidate's."""
    return arm_of(request_id, salt=salt, percent=percent) == CANDIDATE


def made(name: str) -> Policy:
    """A policy with room by requests alone: none holds, so that arms differ in where they place alone."""
    rule: Callable[[InstanceView], Room] = request_bound(MAX_REQUESTS)
    return make_policy(name, rule)


def log_means(outcomes: Outcomes, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean logarithms of the times of some requests, shape (3,)."""
    columns = (outcomes.ttft_s, outcomes.tpot_s, outcomes.e2e_s)
    return np.array([np.nanmean(np.log(one[rows & np.isfinite(one) & (one > 0)])) for one in columns])


def measured(workload: Workload, percents: list[int], seed: int, advance: Callable[[], None]) -> list[Row]:
    """The ratios of one seed."""
    setup = Setup(engines=tuple(EngineModel(PROFILES[name]) for name in ENGINES for _ in range(4)))
    every = np.ones(len(workload), dtype=bool)
    every[: len(workload) // 5] = False
    current = log_means(simulate(setup, workload, made(CURRENT), seed=seed), every)
    rows: list[Row] = []
    for name in CANDIDATES:
        alone = log_means(simulate(setup, workload, made(name), seed=seed), every) - current
        advance()
        for percent in percents:
            salt = f"{name}-{seed}"
            outcomes = simulate(setup, workload, Arms(made(CURRENT), made(name), percent, salt), seed=seed)
            its = np.array([is_candidates(f"r{row}", salt, percent) for row in range(len(workload))])
            both = log_means(outcomes, every & its) - log_means(outcomes, every & ~its)
            others = log_means(outcomes, every & ~its) - current
            rows.append({"candidate": name, "percent": percent, "alone": alone, "seen": both, "others": others})
            advance()
    return rows


def summary(found: list[Row], load: float, seeds: int) -> Row:
    """Medians over seeds, as ratios."""
    first = found[0]
    ratios = {
        part: dict(zip(METRICS, np.exp(np.median([one[part] for one in found], axis=0)).round(3).tolist(), strict=True))
        for part in ("alone", "seen", "others")
    }
    return {"candidate": first["candidate"], "percent": first["percent"], "load": load, "seeds": seeds, **ratios}


def table(rows: list[Row]) -> Table:
    """As people read it."""
    title = f"candidate against {CURRENT}, load {rows[0]['load']:g}: ttft / tpot / e2e"
    shown = Table("candidate", "percent", "at 100 %", "seen", "current's arm against no canary", title=title)
    for row in rows:
        cells = (" / ".join(f"{row[part][name]:.2f}" for name in METRICS) for part in ("alone", "seen", "others"))
        shown.add_row(row["candidate"], str(row["percent"]), *cells)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/bench/canary_interference.json"))
    parser.add_argument("--requests", type=int, default=4_000, help="of each run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--load", type=float, default=0.7, help="of round-robin's capacity (default: %(default)s)")
    parser.add_argument("--percent", type=int, action="append", help="repeatable (default: 10 50)")
    given = parser.parse_args()
    percents = given.percent or [10, 50]
    cell = azure()
    found: list[Row] = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("runs", total=given.seeds * len(CANDIDATES) * (1 + len(percents)))
        for seed in range(given.seeds):
            bare = cell.workload(given.load * CAPACITY_RPS, given.requests, seed)
            workload = predicted(bare, Predictor.FOREST, cell.history(), seed=seed)
            found += measured(workload, percents, seed, lambda: progress.advance(task))
    rows = [
        summary([one for one in found if (one["candidate"], one["percent"]) == pair], given.load, given.seeds)
        for pair in dict.fromkeys((one["candidate"], one["percent"]) for one in found)
    ]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"command": shlex.join(["python", *sys.argv]), "rows": rows}, indent=1) + "\n")
    Console(width=130).print(table(rows))


if __name__ == "__main__":
    main()

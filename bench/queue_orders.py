"""What the orders of the router's queue are worth: the same requests in every order, seed by seed.

``--part orders``: every order against first come first served, at loads around capacity, with perfect, task-mean and
noisy predictions (log-normal, σ = 1). Nothing is shed. Half of the requests have a deadline of 5 s and six times what
they would take alone. ``--part tenants``: one tenant sends 70 % of the requests, three send 10 % each, nobody is held
for more than 10 s; with fairness and without. ``--part routers``: the same queue split over several routers that read
the ledger every 100 ms, and leave places to each other or do not. ``--part aging``: shortest predicted with other aging
times.

Changes are mean paired differences in percent with 95 % intervals (Student's t).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import Progress
from scipy.stats import t as student

from llmrouter.arrivals import predictions
from llmrouter.arrivals.cells import cell
from llmrouter.routing.fairness import OUTPUT_WEIGHT, PROMPT_WEIGHT
from llmrouter.routing.orders import Order
from llmrouter.routing.rules import Rule
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy, RouterSide
from llmrouter.study.alone import alone_on_best_s
from llmrouter.study.seeds import SELECTION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from llmrouter.sim.outcomes import Outcomes
    from llmrouter.sim.workload import Workload

CELLS = ("paper-v100", "h100-mix")
LOADS = (0.95, 1.1, 1.3)
PREDICTIONS = ("perfect", "task-mean", "noisy")
NOISE_SIGMA = 1.0
DEFAULT = CompiledPolicy(rule=Rule.MARGINAL_COST, max_requests=None, kv_fraction=1.0)
WARM_UP_FRACTION = 0.2
NAMES = {order: order.name.title().replace("_", "") for order in Order}
FLOOD = (0.7, 0.1, 0.1, 0.1)
LONGEST_HOLD_S = 10.0
CHANGES = ("e2e_mean_s", "e2e_p99_s", "ttft_mean_s", "ttft_p99_s")

Figures = dict[str, float]
Row = dict[str, str | float]


@dataclass(frozen=True)
class Scene:
    """A cell at a load with somebody who predicts."""

    name: str
    load: float
    predictor: str

    def workload(self, seed: int) -> Workload:
        """The requests of a seed, with predictions and deadlines."""
        source = cell(self.name)
        rate_rps = self.load * (source.capacity_rps or 1.0)
        plain = source.workload(rate_rps, source.requests, seed)
        rng = np.random.default_rng((seed, 0x6F72))
        alone_s = alone_on_best_s(source.setup.engines, plain)
        within_s = np.where(rng.random(len(plain)) < 1 / 2, 5.0 + 6.0 * alone_s, np.inf)
        tenant = rng.choice(len(FLOOD), len(plain), p=FLOOD)
        names = tuple(f"t{place}" for place in range(len(FLOOD)))
        plain = replace(plain, deadline_s=within_s, tenant=tenant, tenants=names)
        if self.predictor == "perfect":
            tokens = predictions.oracle(plain)
        elif self.predictor == "noisy":
            tokens = predictions.noisy(plain, rng, sigma=NOISE_SIGMA)
        else:
            tokens = predictions.task_mean(plain, source.history())
        return plain.with_predictions(tokens)

    def run(self, workload: Workload, side: RouterSide, seed: int) -> Outcomes:
        """One run of the default policy."""
        return simulate(replace(cell(self.name).setup, routers=side), workload, DEFAULT, seed=seed)


def figures(scene: Scene, outcomes: Outcomes) -> Figures:
    """What is compared, over requests that finished; below capacity the first fifth is left out."""
    count = len(outcomes.status)
    counts = np.arange(count) >= (WARM_UP_FRACTION * count if scene.load < 1.0 else 0)
    done = counts & outcomes.finished
    within_s = outcomes.workload.deadline_s
    if within_s is None:
        raise RuntimeError("a scene's requests have deadlines")
    dated = counts & np.isfinite(within_s)
    late = dated & ~(outcomes.finished & (outcomes.e2e_s <= within_s))
    return {
        "e2e_mean_s": float(outcomes.e2e_s[done].mean()),
        "e2e_p99_s": float(np.percentile(outcomes.e2e_s[done], 99)),
        "ttft_mean_s": float(outcomes.ttft_s[done].mean()),
        "ttft_p99_s": float(np.percentile(outcomes.ttft_s[done], 99)),
        "wait_mean_s": float(outcomes.wait_s[done].mean()),
        "wait_max_s": float(outcomes.wait_s[done].max()),
        "late_pct": 100.0 * float(late.sum() / max(1, dated.sum())),
        "shed_pct": 100.0 * float((counts & ~outcomes.finished).sum() / counts.sum()),
    }


def jain(values: NDArray[np.float64]) -> float:
    """Jain's index: 1 where all are equal, 1/n where one has all."""
    return float(values.sum() ** 2 / (len(values) * (values**2).sum()))


def max_min(total: float, demands: NDArray[np.float64]) -> NDArray[np.float64]:
    """``total`` shared so that nobody gets more than it asks for and the least get as much as can be."""
    shares = np.zeros(len(demands))
    left = total
    for place, index in enumerate(np.argsort(demands)):
        shares[index] = min(demands[index], left / (len(demands) - place))
        left -= shares[index]
    return shares


def tenant_figures(scene: Scene, outcomes: Outcomes) -> Figures:
    """``figures``, and how evenly tenants were served for what they asked."""
    work = outcomes.workload
    tokens = PROMPT_WEIGHT * work.prompt_tokens + OUTPUT_WEIGHT * work.output_tokens
    asked = np.bincount(work.tenant, weights=tokens).astype(np.float64)
    served = np.bincount(work.tenant, weights=tokens * outcomes.finished)
    few = work.tenant > 0
    return figures(scene, outcomes) | {
        "jain": jain(served / max_min(float(served.sum()), asked)),
        "few_ttft_mean_s": float(outcomes.ttft_s[few & outcomes.finished].mean()),
        "few_shed_pct": 100.0 * float((~outcomes.finished[few]).mean()),
        "many_shed_pct": 100.0 * float((~outcomes.finished[~few]).mean()),
    }


def router_figures(scene: Scene, outcomes: Outcomes, count: int) -> Figures:
    """``figures``, and the mean waits of the routers that wait least and most: arrivals go to them in turn."""
    router = np.arange(len(outcomes.status)) % count
    waits = [float(outcomes.wait_s[(router == one) & outcomes.finished].mean()) for one in range(count)]
    return figures(scene, outcomes) | {"wait_least_s": min(waits), "wait_most_s": max(waits)}


def changes(base: Sequence[Figures], other: Sequence[Figures]) -> Row:
    """Mean paired differences in percent, and the means of what is no difference."""
    row: Row = {}
    for name in CHANGES:
        percent = np.array([100.0 * (b[name] / a[name] - 1.0) for a, b in zip(base, other, strict=True)])
        spread = 0.0
        if len(percent) > 1:
            spread = float(student.ppf(0.975, len(percent) - 1) * percent.std(ddof=1) / np.sqrt(len(percent)))
        row[name.removesuffix("_s") + "_pct"] = float(percent.mean())
        row[name.removesuffix("_s") + "_ci"] = spread
    for name in other[0]:
        row[name] = float(np.mean([one[name] for one in other]))
    return row


@dataclass(frozen=True)
class Part:
    """Scenes, and what is compared in each; the first side is the base."""

    scenes: tuple[Scene, ...]
    sides: dict[str, RouterSide]
    measure: Callable[[Scene, Outcomes, RouterSide], Figures]


def orders(given: argparse.Namespace) -> Part:
    scenes = [Scene(name, load, who) for name in given.cells for load in given.loads for who in given.predictions]
    return Part(
        tuple(scenes), {NAMES[order]: RouterSide(order=order) for order in Order}, lambda *one: figures(*one[:2])
    )


def tenants(given: argparse.Namespace) -> Part:
    scenes = [Scene(name, load, "task-mean") for name in given.cells for load in given.loads if load > 1.0]
    sides = {
        f"{NAMES[order]}{', fair' if fair else ''}": RouterSide(order=order, fair=fair, max_wait_s=LONGEST_HOLD_S)
        for order in (Order.FIRST_COME_FIRST_SERVED, Order.SHORTEST_PREDICTED)
        for fair in (False, True)
    }
    return Part(tuple(scenes), sides, lambda *one: tenant_figures(*one[:2]))


def routers(given: argparse.Namespace) -> Part:
    scenes = [Scene(name, load, "perfect") for name in given.cells for load in given.loads if load > 1.0]
    sides = {
        f"{NAMES[order]}, {count} routers{'' if even else ' that do not yield'}": RouterSide(
            order=order, routers=count, refresh_s=0.1 if count > 1 else 0.0, even=even
        )
        for order in (Order.FIRST_COME_FIRST_SERVED, Order.SHORTEST_PREDICTED)
        for count, even in ((1, True), (2, False), (2, True), (4, False), (4, True), (8, False), (8, True))
    }
    return Part(tuple(scenes), sides, lambda *one: router_figures(one[0], one[1], one[2].routers))


def aging(given: argparse.Namespace) -> Part:
    scenes = [
        Scene(name, load, who)
        for name in given.cells
        for load in given.loads
        if load > 1.0
        for who in given.predictions
        if who != "noisy"
    ]
    sides = {"FirstComeFirstServed": RouterSide()} | {
        f"ShortestPredicted, τ = {aging_s:g} s": RouterSide(order=Order.SHORTEST_PREDICTED, aging_s=aging_s)
        for aging_s in (3.0, 10.0, 30.0, 100.0, 3600.0)
    }
    return Part(tuple(scenes), sides, lambda *one: figures(*one[:2]))


PARTS = {"orders": orders, "aging": aging, "tenants": tenants, "routers": routers}


def rows_of(part: Part, seeds: range) -> Iterator[Row]:
    """One row for each scene and side."""
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("runs", total=len(part.scenes) * len(seeds) * len(part.sides))
        for scene in part.scenes:
            found: dict[str, list[Figures]] = {name: [] for name in part.sides}
            for seed in seeds:
                workload = scene.workload(seed)
                workload = replace(workload, predicted_rank=workload.predicted_output_tokens)
                for name, side in part.sides.items():
                    found[name].append(part.measure(scene, scene.run(workload, side, seed), side))
                    progress.advance(task)
            base = next(iter(found.values()))
            for name, others in found.items():
                said: Row = {"cell": scene.name, "load": scene.load, "predictions": scene.predictor, "queue": name}
                yield said | changes(base, others)


def show(rows: Sequence[Row]) -> None:
    """The rows as a table in Markdown."""
    extra = [name for name in rows[0] if name not in ("cell", "load", "predictions", "queue", *CHANGES)]
    extra = [name for name in extra if not name.endswith(("_pct", "_ci")) or name in ("late_pct", "shed_pct")]
    extra += [name for name in rows[0] if name in ("few_shed_pct", "many_shed_pct")]
    head = ["cell", "load", "predictions", "queue", *(name.removesuffix("_s") + " %" for name in CHANGES), *extra]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        cells = [str(row[name]) for name in ("cell", "load", "predictions", "queue")]
        for name in CHANGES:
            stem = name.removesuffix("_s")
            cells.append(f"{row[stem + '_pct']:+.1f} ± {row[stem + '_ci']:.1f}")
        cells += [f"{row[name]:.3g}" for name in extra]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=list(PARTS), default="orders")
    parser.add_argument("--seeds", type=int, default=20, help="paired runs (default: %(default)s)")
    parser.add_argument("--cells", nargs="+", default=CELLS)
    parser.add_argument("--loads", nargs="+", type=float, default=LOADS)
    parser.add_argument("--predictions", nargs="+", choices=PREDICTIONS, default=PREDICTIONS)
    parser.add_argument("--out", type=Path, help="default: build/bench/queue_PART.json")
    given = parser.parse_args()
    seeds = range(SELECTION.first, SELECTION.first + given.seeds)
    out = given.out or Path(f"build/bench/queue_{given.part}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for row in rows_of(PARTS[given.part](given), seeds):
        rows.append(row)
        result = {"command": shlex.join(["python", *sys.argv]), "seeds": [seeds[0], seeds[-1]], "rows": rows}
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(rows)


if __name__ == "__main__":
    main()

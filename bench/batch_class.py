"""What a batch class costs those who are waited for, what it gets, and what grouping by common beginnings is worth.

``--part gaps``: the requests of a cell, with perfect predictions, alone and beside a backlog of batch requests of the
same kind that never ends: as the batch class with several fill fractions, and as plain requests of the lowest priority
of which nothing is shed. ``--part prefixes``: batch requests alone, each with one of many common beginnings of its
prompt, all there from the start in random order, on engines that cache prefixes: taken as they came, and grouped.

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
from llmrouter.arrivals.transform import merged
from llmrouter.routing.batch import BatchRules
from llmrouter.routing.rules import Rule
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy, RouterSide
from llmrouter.sim.workload import Workload
from llmrouter.study.seeds import SELECTION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from llmrouter.sim.outcomes import Outcomes

CELLS = ("paper-v100", "h100-mix")
LOADS = (0.5, 0.8, 0.95, 1.1)
FILLS = (0.05, 0.1, 0.2, 0.3, 0.5)
BATCH_PART = 0.5
"""Batch requests per request that is waited for: a backlog at every load."""

WARM_UP_FRACTION = 0.2
POLICY = CompiledPolicy(rule=Rule.MARGINAL_COST, max_requests=None, kv_fraction=1.0)
FOREVER = RouterSide(max_held=1_000_000)
CHANGES = ("ttft_mean_s", "ttft_p99_s", "tpot_mean_s", "e2e_mean_s", "e2e_p99_s")
BLOCK_TOKENS = 16

Figures = dict[str, float]
Row = dict[str, str | float]


def batch_side(fill: float, queued: int = 0) -> RouterSide:
    """A router whose batch class fills instances so far, and waits for gaps for ever."""
    return replace(FOREVER, batch=BatchRules(fraction=fill, most_queued_tokens=queued, least_share=0.0))


@dataclass(frozen=True)
class Scene:
    """A cell at a load."""

    name: str
    load: float

    def waited_for(self, seed: int) -> Workload:
        """The requests that somebody waits for."""
        source = cell(self.name)
        plain = source.workload(self.load * (source.capacity_rps or 1.0), source.requests // 2, seed)
        return plain.with_predictions(predictions.oracle(plain))

    def batch(self, seed: int) -> Workload:
        """The batch requests: there from the start."""
        source = cell(self.name)
        plain = source.workload(source.capacity_rps or 1.0, int(BATCH_PART * source.requests // 2), seed + 500_000)
        plain = replace(plain, arrived_at_s=np.zeros(len(plain)), batch=np.ones(len(plain), np.int64))
        return plain.with_predictions(predictions.oracle(plain))

    def run(self, work: Workload, side: RouterSide, seed: int) -> Outcomes:
        """One run of the default policy's form."""
        return simulate(replace(cell(self.name).setup, routers=side), work, POLICY, seed=seed)


def figures(outcomes: Outcomes, ours: NDArray[np.bool_], until_s: float) -> Figures:
    """Of those who are waited for, the first fifth left out; and what the batch class got until their last arrival."""
    count = int(ours.sum())
    rank = np.cumsum(ours) - 1
    done = ours & outcomes.finished & (rank >= WARM_UP_FRACTION * count)
    work = outcomes.workload
    tokens = (work.prompt_tokens + work.output_tokens)[~ours & outcomes.finished & (outcomes.finished_at_s <= until_s)]
    return {
        "ttft_mean_s": float(outcomes.ttft_s[done].mean()),
        "ttft_p99_s": float(np.percentile(outcomes.ttft_s[done], 99)),
        "tpot_mean_s": float(np.nanmean(outcomes.tpot_s[done])),
        "e2e_mean_s": float(outcomes.e2e_s[done].mean()),
        "e2e_p99_s": float(np.percentile(outcomes.e2e_s[done], 99)),
        "batch_tokens_per_s": float(tokens.sum() / until_s),
        "tokens_per_s": float((work.prompt_tokens + work.output_tokens)[ours].sum() / until_s),
    }


def spread(values: NDArray[np.float64]) -> float:
    """Half of a 95 % interval of a mean."""
    if len(values) < 2:  # noqa: PLR2004 - no spread of one
        return 0.0
    return float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def changes(base: list[Figures], other: list[Figures], names: tuple[str, ...]) -> Row:
    """Mean paired differences in percent, and means of the rest."""
    row: Row = {}
    for name in names:
        percent = np.array([100.0 * (b[name] / a[name] - 1.0) for a, b in zip(base, other, strict=True)])
        row[name] = f"{percent.mean():+.1f} ± {spread(percent):.1f}"
    for name in other[0]:
        if name not in names:
            row[name] = float(np.mean([one[name] for one in other]))
    return row


def gap_rows(given: argparse.Namespace, seeds: range, progress: Progress) -> Iterator[Row]:
    """What the batch class costs and gets."""
    sides = {f"batch class, fill {fill:g}": batch_side(fill) for fill in given.fills}
    scenes = [Scene(name, load) for name in given.cells for load in given.loads]
    task = progress.add_task("runs", total=len(scenes) * len(seeds) * (len(sides) + 2))
    for scene in scenes:
        alone: list[Figures] = []
        found: dict[str, list[Figures]] = {name: [] for name in (*sides, "lowest priority")}
        for seed in seeds:
            ours = scene.waited_for(seed)
            until_s = float(ours.arrived_at_s[-1])
            alone.append(figures(scene.run(ours, FOREVER, seed), np.ones(len(ours), bool), until_s))
            both = merged([ours, scene.batch(seed)])
            if both.batch is None:
                raise RuntimeError("a merged workload has a batch class")
            mine = both.batch == 0
            progress.advance(task)
            for name, side in sides.items():
                found[name].append(figures(scene.run(both, side, seed), mine, until_s))
                progress.advance(task)
            low = replace(both, batch=None, priority=np.where(mine, 0, -100))
            found["lowest priority"].append(figures(scene.run(low, FOREVER, seed), mine, until_s))
            progress.advance(task)
        for name, others in found.items():
            said: Row = {"cell": scene.name, "load": scene.load, "batch": name}
            yield said | changes(alone, others, CHANGES)


def families(seed: int, count: int, groups: int, *, shared: int, own: int, output: int) -> Workload:
    """Batch requests with ``groups`` common beginnings of ``shared`` tokens, there from the start in random order."""
    rng = np.random.default_rng(seed)
    family = rng.integers(0, groups, count)
    blocks = shared // BLOCK_TOKENS
    outputs = np.maximum(1, rng.poisson(output, count))
    return Workload.of(
        np.zeros(count),
        shared + rng.integers(own // 2, 2 * own, count),
        outputs,
        predicted_output_tokens=outputs,
        batch=np.ones(count, np.int64),
        prefix_start=np.arange(count + 1) * blocks,
        prefix_blocks=(family[:, None] * blocks + np.arange(blocks)).ravel(),
        prefix_block_tokens=BLOCK_TOKENS,
    )


def prefix_rows(given: argparse.Namespace, seeds: range, progress: Progress) -> Iterator[Row]:
    """What grouping is worth."""
    scenes = [(name, groups) for name in given.cells for groups in given.groups]
    task = progress.add_task("runs", total=2 * len(scenes) * len(seeds))
    for name, groups in scenes:
        source, found = cell(name), {False: list[Figures](), True: list[Figures]()}
        shared = 1024 if source.engine.profile.kv_tokens > 100_000 else 256  # noqa: PLR2004 - of the cells' two sizes
        setup = replace(source.setup, engines=(replace(source.engine, prefix_caching=True),) * source.instances)
        for seed in seeds:
            work = families(seed, given.requests, groups, shared=shared, own=shared // 4, output=64)
            for grouped, figures_so_far in found.items():
                side = replace(FOREVER, batch=BatchRules(fraction=1.0, most_queued_tokens=4096, grouped=grouped))
                outcomes = simulate(replace(setup, routers=side), work, POLICY, seed=seed)
                figures_so_far.append(
                    {
                        "makespan_s": outcomes.makespan_s,
                        "hit_pct": 100.0 * float(outcomes.cached_tokens.sum() / work.prompt_tokens.sum()),
                        "most_pct": 100.0 * shared * (len(work) - groups) / float(work.prompt_tokens.sum()),
                    }
                )
                progress.advance(task)
        for grouped, others in found.items():
            said: Row = {"cell": name, "groups": groups, "order": "grouped" if grouped else "as they came"}
            yield said | changes(found[False], others, ("makespan_s",))


def show(rows: list[Row]) -> None:
    """The rows as a table in Markdown."""
    print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(one if isinstance(one, str) else f'{one:.4g}' for one in row.values())} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("gaps", "prefixes"), default="gaps")
    parser.add_argument("--seeds", type=int, default=10, help="paired runs (default: %(default)s)")
    parser.add_argument("--cells", nargs="+", default=CELLS)
    parser.add_argument("--loads", nargs="+", type=float, default=LOADS)
    parser.add_argument("--fills", nargs="+", type=float, default=FILLS)
    parser.add_argument("--groups", nargs="+", type=int, default=(20, 100, 400))
    parser.add_argument("--requests", type=int, default=2_000, help="of --part prefixes (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="default: build/bench/batch_PART.json")
    given = parser.parse_args()
    seeds = range(SELECTION.first, SELECTION.first + given.seeds)
    out = given.out or Path(f"build/bench/batch_{given.part}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with Progress(console=Console(stderr=True)) as progress:
        for row in (gap_rows if given.part == "gaps" else prefix_rows)(given, seeds, progress):
            rows.append(row)
            result = {"command": shlex.join(["python", *sys.argv]), "seeds": [seeds[0], seeds[-1]], "rows": rows}
            out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(rows)


if __name__ == "__main__":
    main()

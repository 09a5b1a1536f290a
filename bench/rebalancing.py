"""Traffic that shifts from chat to summaries and back, and a flash crowd: what moving replicas is worth.

    python -m bench.rebalancing [--gpus 8] [--seeds 5] [--json FILE] [--svg FILE]

One pool computes prompts, one makes the answers. Ways to split the GPUs between them, on the same traffic:

- ``Off, for the first phase``: the split that is best for the traffic of the first phase; nothing moves.
- ``Off, best for all``: the split that does best over the whole trace, found afterwards; nothing moves.
- ``Auto``: what the operator does. Every 15 s the plan is made (``planning/split.py``) of the mix as routers measure it
  and of its forecast; replicas move one step at a time (``planning/steps.py``). Once with the defaults of
  ``spec.rebalance``, once with ``stabilizationSeconds`` 30, ``cooldownSeconds`` 0 and ``maxStep`` 4.
- ``Oracle``: is told the best split of each phase the moment that phase begins. It starts and drains as anybody must.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.role_traffic import CHAT, PROFILE, SUMMARY, Stretch, Targets, engine, policy, routers, traffic
from bench.stepping import Stepping
from llmrouter.domain import Role
from llmrouter.lengths.distribution import LEVELS, LengthDistribution
from llmrouter.planning.demand import demand_of_mix
from llmrouter.planning.forecast import RateHistory, growth_of
from llmrouter.planning.inputs import PlanInputs, PoolOption, Slo
from llmrouter.planning.mix import Dispatched, MixMeter
from llmrouter.planning.split import propose
from llmrouter.planning.steps import Rules
from llmrouter.plots import theme
from llmrouter.plots.charts import Axis, Series, line_chart
from llmrouter.plots.markup import el
from llmrouter.sim.outcomes import Status
from llmrouter.sim.replicas import Lifetimes, ReplicaPool, Replicas
from llmrouter.sim.run import simulate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from llmrouter.plots.markup import Markup
    from llmrouter.sim.outcomes import Outcomes
    from llmrouter.sim.replicas import Moment
    from llmrouter.sim.workload import Workload

TARGETS = Targets(ttft_s=1.5, tpot_s=0.025)
ATTAINMENT = 0.9
DEFAULTS: dict[str, Any] = {"stabilization_s": 120.0, "cooldown_s": 60.0, "max_step": 1}
QUICK: dict[str, Any] = {"stabilization_s": 30.0, "cooldown_s": 0.0, "max_step": 4}
PLAN_EVERY_S = 15.0
TIMES = Lifetimes(start_s=60.0, drain_s=120.0, stop_s=5.0, look_every_s=5.0)
BIN_S = 30.0
FIRST, BEST = "Off, for the first phase", "Off, best for all"
AUTO, AUTO_QUICK, ORACLE = "Auto, defaults", "Auto, quick", "Oracle"
SELECTION_SEED = 1_000
Split = tuple[int, int]
"""Replicas that compute prompts, and that answer."""


def trace(gpus: int) -> list[Stretch]:
    """Chat, summaries, chat, a flash crowd, chat: rates in proportion to the GPUs."""
    of_8 = (
        *((CHAT, 62.0, 420.0), (SUMMARY, 9.2, 720.0), (CHAT, 62.0, 420.0)),
        *((CHAT, 90.0, 90.0), (CHAT, 62.0, 390.0)),
    )
    return [Stretch(kind, rate * gpus / 8.0, seconds) for kind, rate, seconds in of_8]


class Told(Stepping):
    """Whoever knows what is wanted from when on."""

    def __init__(self, gpus: int, wanted: Sequence[tuple[float, Split]]) -> None:
        super().__init__(Rules(gpu_budget=gpus, stabilization_s=0.0, cooldown_s=0.0, max_step=gpus))
        self._wanted = wanted

    def wanted(self, replicas: Replicas, now_s: float) -> Mapping[str, int]:  # noqa: ARG002 - planners that measure do
        """The last split that was wanted by now."""
        prefill, decode = next(split for at_s, split in reversed(self._wanted) if at_s <= now_s)
        return {"prefill": prefill, "decode": decode}


class Measuring(Stepping):
    """The operator: plans on what routers measured and what is forecast of it."""

    def __init__(self, rules: Rules, workload: Workload) -> None:
        super().__init__(rules)
        self.reasons: list[tuple[float, str]] = []
        self._meter = _Meter(workload)
        self._history = RateHistory()
        self._next_plan_s = PLAN_EVERY_S
        self._last: Mapping[str, int] | None = None

    def wanted(self, replicas: Replicas, now_s: float) -> Mapping[str, int]:
        """What the last plan says."""
        self._meter.follow(replicas, now_s)
        if now_s >= self._next_plan_s:
            self._next_plan_s = now_s + PLAN_EVERY_S
            self._plan(replicas, now_s)
        return self._last or {state.pool: state.declared for state in replicas.observed()}

    def _plan(self, replicas: Replicas, now_s: float) -> None:
        mix = self._meter.meter.mix(now_s)
        if mix is None:
            return
        self._history.note((mix.requests_per_s, mix.prefill_tokens_per_s, mix.decode_tokens_per_s), at_s=now_s)
        bands = self._history.bands(TIMES.start_s + self._rules.stabilization_s)
        demand = demand_of_mix("", mix, times=growth_of(bands or ()))
        if demand is None:
            return
        pools = tuple(
            PoolOption(
                name=state.pool,
                profile=PROFILE,
                role=Role.PREFILL if state.pool == "prefill" else Role.DECODE,
                min_replicas=1,
                max_replicas=self._rules.gpu_budget - 1,
                current=state.declared,
            )
            for state in replicas.observed()
        )
        slo = Slo(ttft_s=TARGETS.ttft_s, tpot_s=TARGETS.tpot_s, attainment=ATTAINMENT)
        proposal = propose(PlanInputs(demands=(demand,), pools=pools, slo=slo, gpu_budget=self._rules.gpu_budget))
        if proposal.replicas != self._last:
            self.reasons.append((now_s, proposal.reason))
        self._last = proposal.replicas


class _Meter:
    """The meter of the traffic's mix, told what a router would tell it."""

    def __init__(self, workload: Workload) -> None:
        self.meter = MixMeter()
        self._workload = workload
        self._known: dict[int, Dispatched] = {}
        self._seen_s = -1.0

    def follow(self, replicas: Replicas, now_s: float) -> None:
        """Counts what was dispatched and what was finished since the last time."""
        busy = sum(state.ready for state in replicas.observed() if state.pool == "decode")
        sharers = max(1, round(replicas.in_flight("decode") / max(1, busy)))
        for row, at_s in replicas.dispatched_since(self._seen_s):
            one = Dispatched(
                _law(float(self._workload.predicted_output_tokens[row])),
                int(self._workload.prompt_tokens[row]),
                PROFILE,
                sharers,
            )
            self._known[row] = one
            self.meter.dispatched(one, now_s=at_s)
        for row, at_s in replicas.finished_since(self._seen_s):
            self.meter.finished(
                self._known.pop(row), output_tokens=float(self._workload.output_tokens[row]), now_s=at_s
            )
        self._seen_s = now_s


_NORMAL_Q = (-1.645, -1.282, -0.674, 0.0, 0.674, 1.282, 1.645)


def _law(predicted: float) -> LengthDistribution:
    """A predictor's law: log-normal, of σ 0.5, of the mean that was predicted."""
    middle = max(1.0, predicted * float(np.exp(-0.125)))
    quantiles = tuple(middle * float(np.exp(0.5 * z)) for z, _ in zip(_NORMAL_Q, LEVELS, strict=True))
    return LengthDistribution(tuple(max(1.0, one) for one in quantiles), max(1.0, predicted), None, "simulated")


@dataclass(frozen=True)
class Run:
    """What came of one way on one trace."""

    name: str
    seed: int
    goodput_rps: float
    attainment: float
    by_stretch: list[float]
    by_bin: list[float] = field(repr=False)
    replicas: list[tuple[float, int, int]] = field(repr=False)
    moves: int = 0
    reversals: int = 0
    gpu_fraction: float = 1.0
    most_gpus: int = 0
    lost: int = 0
    shed: int = 0
    reasons: list[tuple[float, str]] = field(default_factory=list, repr=False)


def pools_of(split: Split, gpus: int) -> tuple[ReplicaPool, ReplicaPool]:
    """The two pools at the beginning; either may have all places."""
    prefill, decode = split
    return (
        ReplicaPool(name="prefill", engine=engine(Role.PREFILL), replicas=prefill, most=gpus, min_replicas=1),
        ReplicaPool(name="decode", engine=engine(Role.DECODE), replicas=decode, most=gpus, min_replicas=1),
    )


@dataclass(frozen=True, slots=True)
class Scene:
    """One trace."""

    stretches: Sequence[Stretch]
    seed: int
    workload: Workload

    @classmethod
    def of(cls, gpus: int, seed: int) -> Scene:
        """That of a seed."""
        stretches = trace(gpus)
        return cls(stretches, seed, traffic(stretches, seed))


def play(name: str, split: Split, planner: Stepping, scene: Scene) -> Run:
    """One run."""
    stretches, seed, workload = scene.stretches, scene.seed, scene.workload
    replicas = Replicas(pools_of(split, sum(split)), planner, TIMES)
    outcomes = simulate(replicas.setup(routers()), workload, policy(), seed=seed, replicas=replicas)
    ends_s = np.cumsum([one.duration_s for one in stretches])
    history = replicas.history
    if (most := max(one.gpus for one in history)) > sum(split):
        raise RuntimeError(f"{name}: {most} GPUs were taken, the budget is {sum(split)}")
    moves, reversals = counted(history, ends_s)
    met_N = TARGETS.met(outcomes)
    return Run(
        name=name,
        seed=seed,
        goodput_rps=float(met_N.sum() / ends_s[-1]),
        attainment=float(met_N.mean()),
        by_stretch=_shares(outcomes, met_N, np.concatenate(([0.0], ends_s))),
        by_bin=_shares(outcomes, met_N, np.arange(0.0, ends_s[-1] + 0.5, BIN_S)),
        replicas=[(one.at_s, one.pools[0].ready, one.pools[1].ready) for one in history],
        moves=moves,
        reversals=reversals,
        gpu_fraction=_gpu_fraction(history, float(ends_s[-1]), sum(split)),
        most_gpus=most,
        lost=int((outcomes.status == Status.LOST).sum()),
        shed=int(np.isin(outcomes.status, (Status.SHED, Status.REFUSED)).sum()),
        reasons=planner.reasons if isinstance(planner, Measuring) else [],
    )


def counted(history: Sequence[Moment], ends_s: NDArray[np.float64]) -> tuple[int, int]:
    """Changes of a pool's declared replicas, and how many of them undid one of the same stretch of traffic."""
    moves, reversals = 0, 0
    last: dict[tuple[str, int], int] = {}
    for before, after in pairwise(history):
        for old, new in zip(before.pools, after.pools, strict=True):
            if change := new.declared - old.declared:
                key = new.pool, int(np.searchsorted(ends_s, after.at_s))
                moves += 1
                reversals += last.get(key, change) * change < 0
                last[key] = change
    return moves, reversals


def _gpu_fraction(history: Sequence[Moment], until_s: float, budget: int) -> float:
    ends = [one.at_s for one in history[1:]] + [until_s]
    spent = sum(one.gpus * max(0.0, min(end_s, until_s) - one.at_s) for one, end_s in zip(history, ends, strict=True))
    return float(spent / (until_s * budget))


def _shares(outcomes: Outcomes, met_N: NDArray[np.bool_], edges_s: NDArray[np.float64]) -> list[float]:
    """Share of the requests that arrived between two edges and met their targets; 1 where none did."""
    place_N = np.searchsorted(edges_s, outcomes.arrived_at_s, side="right") - 1
    count = np.bincount(place_N, minlength=len(edges_s))[: len(edges_s) - 1]
    met = np.bincount(place_N, weights=met_N, minlength=len(edges_s))[: len(edges_s) - 1]
    return [float(one) for one in np.where(count > 0, met / np.maximum(count, 1), 1.0)]


def static(split: Split, scene: Scene, name: str = "") -> Run:
    """One run in which nothing moves."""
    return play(name, split, Told(sum(split), [(0.0, split)]), scene)


def best_splits(gpus: int) -> tuple[Split, list[Split]]:
    """The split in eighths that does best over all, and that of each stretch, on traffic of its own seed."""
    scene = Scene.of(gpus, SELECTION_SEED)
    eighth = max(1, gpus // 8)
    splits = [(prefill, gpus - prefill) for prefill in range(eighth, gpus, eighth)]
    runs = [static(split, scene) for split in track(splits, "static splits", console=Console(stderr=True))]
    overall = splits[int(np.argmax([run.goodput_rps for run in runs]))]
    each = []
    for one in scene.stretches:
        alone = Scene([one], SELECTION_SEED, traffic([one], SELECTION_SEED))
        each.append(splits[int(np.argmax([static(split, alone).goodput_rps for split in splits]))])
    return overall, each


def compare(gpus: int, seeds: Sequence[int]) -> tuple[list[Run], dict[str, Any]]:
    """Every way on the traffic of every seed."""
    overall, each = best_splits(gpus)
    stretches = trace(gpus)
    begins_s = np.concatenate(([0.0], np.cumsum([one.duration_s for one in stretches])[:-1])).tolist()
    oracle = list(zip(begins_s, each, strict=True))
    runs = []
    for seed in track(seeds, f"{gpus} GPUs", console=Console(stderr=True)):
        scene = Scene.of(gpus, seed)
        runs += [
            static(each[0], scene, FIRST),
            static(overall, scene, BEST),
            *(
                play(name, each[0], Measuring(Rules(gpu_budget=gpus, **rules), scene.workload), scene)
                for name, rules in ((AUTO, DEFAULTS), (AUTO_QUICK, QUICK))
            ),
            play(ORACLE, each[0], Told(gpus, oracle), scene),
        ]
    facts = {
        "stretches": [[one.kind.name, one.rate_rps, one.duration_s] for one in stretches],
        "best_split_overall": overall,
        "best_split_by_stretch": each,
    }
    return runs, facts


def shown(runs: Sequence[Run], stretches: Sequence[Stretch]) -> Table:
    """Means over the seeds."""
    names = [f"{one.kind.name} {one.rate_rps:g}/s" for one in stretches]
    table = Table("", "goodput req/s", "of the time", *names, "GPUs", "moves", "undone", "lost", "shed")
    for name, those in _by_name(runs):
        goodput = np.array([run.goodput_rps for run in those])
        shares = np.array([run.by_stretch for run in those]).mean(axis=0)
        table.add_row(
            name,
            f"{goodput.mean():.1f} ± {1.96 * goodput.std(ddof=1) / len(goodput) ** 0.5:.1f}",
            f"{np.mean([run.by_bin for run in those]):.1%}",
            *(f"{share:.1%}" for share in shares),
            f"{np.mean([run.gpu_fraction for run in those]):.0%}",
            *(f"{np.mean([getattr(run, key) for run in those]):.1f}" for key in ("moves", "reversals", "lost", "shed")),
        )
    return table


def attained(runs: Sequence[Run]) -> Markup:
    """Shares of requests that met their targets over time: means of the seeds, by minute."""
    lines = []
    for slot, (name, those) in enumerate(_by_name(runs), start=1):
        share_B = np.array([run.by_bin for run in those]).mean(axis=0)
        minutes = [(BIN_S * (place + 0.5) / 60.0, float(share)) for place, share in enumerate(share_B)]
        lines.append(Series(name, slot, tuple(minutes), markers=False, on=name in {AUTO_QUICK, ORACLE}))
    met = f"Within {TARGETS.ttft_s:g} s to the first token and {TARGETS.tpot_s * 1e3:g} ms a token"
    return _drawn(line_chart(lines, title=met, description=met, x=Axis("minutes"), y=Axis("share", include=(0.0, 1.0))))


def moved(runs: Sequence[Run], gpus: int) -> Markup:
    """Replicas over time that compute prompts and serve, of the first seed."""
    lines = []
    for slot, (name, those) in enumerate(_by_name(runs), start=1):
        steps = [(at_s / 60.0, float(prefill)) for at_s, prefill, _ in those[0].replicas]
        steps.append((BIN_S * len(those[0].by_bin) / 60.0, steps[-1][1]))
        lines.append(Series(name, slot, _stairs(steps), markers=False, on=name in {AUTO_QUICK, ORACLE}))
    title = f"Replicas that compute prompts, of {gpus} GPUs"
    y = Axis("replicas", include=(0.0,))
    return _drawn(line_chart(lines, title=title, description=title, x=Axis("minutes"), y=y))


def _by_name(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    names = dict.fromkeys(run.name for run in runs)
    return [(name, [run for run in runs if run.name == name]) for name in names]


def _drawn(chart: Markup) -> Markup:
    return el("svg", el("style", theme.style()), chart, xmlns="http://www.w3.org/2000/svg", viewbox="0 0 420 260")


def _stairs(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    found = [points[0]]
    for at, value in points[1:]:
        found += [(at, found[-1][1]), (at, value)]
    return tuple(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs, prints a table, writes JSON and two charts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpus", type=int, default=8, help="budget of both pools together, 2 or more")
    parser.add_argument("--seeds", type=int, default=5, help="traces, 2 or more")
    parser.add_argument("--json", type=Path, default=Path("build/bench/rebalancing.json"))
    parser.add_argument(
        "--svg", type=Path, default=Path("build/bench/rebalancing.svg"), help="a chart; beside it one of the replicas"
    )
    options = parser.parse_args(arguments)
    if options.gpus < 2 or options.seeds < 2:  # noqa: PLR2004 - a pool has a replica, an interval two runs
        parser.error("--gpus and --seeds must be at least 2")
    runs, facts = compare(options.gpus, range(1, options.seeds + 1))
    Console(width=160).print(shown(runs, trace(options.gpus)))
    said = {"command": shlex.join(["python", "-m", "bench.rebalancing", *sys.argv[1:]]), "gpus": options.gpus} | facts
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(said | {"runs": [asdict(run) for run in runs]}, indent=1) + "\n")
    options.svg.write_text(attained(runs))
    options.svg.with_stem(f"{options.svg.stem}-replicas").write_text(moved(runs, options.gpus))


if __name__ == "__main__":
    main()

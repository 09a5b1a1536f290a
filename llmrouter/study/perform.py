"""Does one task of a study and says what came of it in plain values. Runs in any process."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrouter.sim.capacity import highest_rate
from llmrouter.sim.run import simulate
from llmrouter.study.alone import alone_on_best_s
from llmrouter.study.capacity import CAPACITY_REQUESTS, capacity_of
from llmrouter.study.cells import build_cell
from llmrouter.study.contenders import contender
from llmrouter.study.figures import counts, figures, samples
from llmrouter.study.predictors import predicted
from llmrouter.study.task import TaskKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.sim.outcomes import Outcomes, Timeline
    from llmrouter.sim.workload import Workload
    from llmrouter.study.cells import CellSpec
    from llmrouter.study.predictors import Predictor
    from llmrouter.study.task import Task

TIMELINE_POINTS = 300
SLO_LOWEST = 1 / 64
"""Share of C below which no rate is looked for, nor above its inverse."""


def perform(task: Task) -> dict[str, Any]:
    """The result of a task: the same for the same task.

    Raises:
        InvalidInputError: the task's cell or policy is none, or nothing sustains any rate.
    """
    return _DOES[task.kind](task)


def simulated(task: Task, rate_rps: float, *, sample_every_s: float | None = None) -> Outcomes:
    """One run of the task's policy on the task's requests at a rate."""
    chosen = contender(task.policy)
    workload = _workload(task.cell, rate_rps, task.seed, chosen.predictor or task.predictor)
    setup = build_cell(task.cell).setup
    return simulate(setup, workload, chosen.make(), seed=task.seed, sample_every_s=sample_every_s)


def timeline_values(timeline: Timeline, points: int = TIMELINE_POINTS) -> dict[str, Any]:
    """At most ``points`` samples, evenly drawn: ``at_s`` and ``held`` (T,), of each instance the others (I, T)."""
    count = len(timeline.at_s)
    keep = np.unique(np.linspace(0, count - 1, min(points, count)).round().astype(np.int64))
    return {
        "at_s": timeline.at_s[keep].tolist(),
        "running": timeline.running[keep].T.tolist(),
        "waiting": timeline.waiting[keep].T.tolist(),
        "kv_usage_fraction": timeline.kv_usage_fraction[keep].T.tolist(),
        "held": timeline.held[keep].tolist(),
    }


def _capacity(task: Task) -> dict[str, Any]:
    cell = build_cell(task.cell)
    found_rps = capacity_of(cell.setup, lambda rate_rps: cell.workload_at(rate_rps, CAPACITY_REQUESTS, task.seed))
    return {"capacity_rps": found_rps}


def _run(task: Task) -> dict[str, Any]:
    outcomes = simulated(task, task.rate_rps)
    setup = build_cell(task.cell).setup
    found = figures(
        outcomes,
        lone_s=alone_on_best_s(setup.engines, outcomes.workload),
        warm_up_fraction=task.warm_up_fraction,
        slo=task.slo,
    )
    return {"figures": found, "samples": samples(outcomes, task.warm_up_fraction), "counts": counts(outcomes)}


def _timeline(task: Task) -> dict[str, Any]:
    cell = build_cell(task.cell)
    every_s = cell.requests / task.rate_rps / TIMELINE_POINTS
    timeline = simulated(task, task.rate_rps, sample_every_s=every_s).timeline
    if timeline is None:
        raise RuntimeError("the simulator took no samples though it was asked to")
    return timeline_values(timeline)


def _slo_capacity(task: Task) -> dict[str, Any]:
    def meets(rate_rps: float) -> bool:
        outcomes = simulated(task, rate_rps)
        found = figures(
            outcomes,
            lone_s=np.ones(len(outcomes.workload)),
            warm_up_fraction=task.warm_up_fraction,
            slo=task.slo,
        )
        ttft_s, tpot_s, shed = found["ttft_p99_s"], found["tpot_p95_s"], found["shed_rate"]
        return ttft_s is not None and ttft_s <= task.slo.ttft_s and (tpot_s or 0.0) <= task.slo.tpot_s and not shed

    found_rps = highest_rate(
        meets, task.rate_rps, lowest_rps=task.rate_rps * SLO_LOWEST, highest_rps=task.rate_rps / SLO_LOWEST
    )
    return {"slo_capacity_rps": found_rps}


_DOES: dict[TaskKind, Callable[[Task], dict[str, Any]]] = {
    TaskKind.CAPACITY: _capacity,
    TaskKind.RUN: _run,
    TaskKind.TIMELINE: _timeline,
    TaskKind.SLO_CAPACITY: _slo_capacity,
}


@functools.lru_cache(maxsize=4)
def _workload(spec: CellSpec, rate_rps: float, seed: int, predictor: Predictor) -> Workload:
    cell = build_cell(spec)
    workload = cell.workload_at(rate_rps, cell.requests, seed)
    return predicted(workload, predictor, cell.history, seed=seed, bucket_accuracy=cell.bucket_accuracy)

"""What a comparison runs: cells, loads, policies and seeds, as tasks in the order of its tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.study.capacity import CAPACITY_SEED
from llmrouter.study.cells import build_cell
from llmrouter.study.contenders import BASE, DEFAULT
from llmrouter.study.task import Task, TaskKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmrouter.study.cells import CellSpec
    from llmrouter.study.predictors import Predictor
    from llmrouter.study.seeds import SeedBlock

SLO_SEEDS = 5
"""SLO capacities are found on the first so many seeds: each takes a dozen runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A comparison. ``policies`` are names of contenders, the base first; ``predictor`` of ``None`` is each cell's."""

    cells: tuple[CellSpec, ...]
    loads: tuple[float, ...]
    policies: tuple[str, ...]
    first_seed: int
    seeds: int
    block: SeedBlock
    predictor: Predictor | None = None
    slo_capacity: bool = False

    @property
    def seed_range(self) -> range:
        """All seeds of the comparison."""
        return range(self.first_seed, self.first_seed + self.seeds)


@dataclass(frozen=True, slots=True)
class Point:
    """A cell at a load: what every policy is run on, once a seed."""

    cell: CellSpec
    load: float
    rate_rps: float


def capacity_task(cell: CellSpec) -> Task:
    """The search for C of a cell."""
    return Task(kind=TaskKind.CAPACITY, cell=cell, policy=BASE, seed=CAPACITY_SEED)


def points_of(plan: Plan, capacity_rps: Mapping[str, float]) -> list[Point]:
    """Cells and loads in order; a cell with a rate of its own has one point, its load rounded to a thousandth."""
    points = []
    for cell in plan.cells:
        own_rps = build_cell(cell).rate_rps
        full_rps = capacity_rps[cell.name]
        if own_rps is not None:
            points.append(Point(cell, round(own_rps / full_rps, 3), own_rps))
        else:
            points += [Point(cell, load, load * full_rps) for load in plan.loads]
    return points


def run_task(plan: Plan, point: Point, policy: str, seed: int, *, kind: TaskKind = TaskKind.RUN) -> Task:
    """One run of a policy at a point."""
    return Task(
        kind=kind,
        cell=point.cell,
        policy=policy,
        predictor=predictor_of(plan, point.cell),
        rate_rps=point.rate_rps,
        warm_up_fraction=build_cell(point.cell).warm_up_fraction(point.load),
        seed=seed,
    )


def timeline_points(plan: Plan, points: Sequence[Point]) -> list[Point]:
    """For each cell the point that is shown over time: the highest load up to 1, or the lowest if all are above."""
    chosen = []
    for cell in plan.cells:
        own = sorted((point for point in points if point.cell == cell), key=lambda point: point.load)
        below = [point for point in own if point.load <= 1.0]
        chosen.append(below[-1] if below else own[0])
    return chosen


def timeline_policies(plan: Plan) -> list[str]:
    """Who is shown over time: the base and the default, or the last policy named."""
    other = DEFAULT if DEFAULT in plan.policies else plan.policies[-1]
    return list(dict.fromkeys((BASE, other)))


def predictor_of(plan: Plan, cell: CellSpec) -> Predictor:
    """Who predicts in a cell, unless the contender has its own."""
    return plan.predictor or build_cell(cell).predictor


def slo_task(plan: Plan, cell: CellSpec, full_rps: float, policy: str, seed: int) -> Task:
    """The search for the highest rate at which a policy meets the SLO's tails."""
    return Task(
        kind=TaskKind.SLO_CAPACITY,
        cell=cell,
        policy=policy,
        predictor=predictor_of(plan, cell),
        rate_rps=full_rps,
        warm_up_fraction=build_cell(cell).warm_up_fraction(0.0),
        seed=seed,
    )


def slo_seeds(plan: Plan) -> range:
    """The seeds on which SLO capacities are found."""
    return plan.seed_range[:SLO_SEEDS]


def all_tasks(plan: Plan, capacity_rps: Mapping[str, float]) -> list[Task]:
    """Everything but the capacities, tasks on the same requests next to each other."""
    points = points_of(plan, capacity_rps)
    tasks = [
        run_task(plan, point, policy, seed) for point in points for seed in plan.seed_range for policy in plan.policies
    ]
    tasks += [
        run_task(plan, point, policy, plan.first_seed, kind=TaskKind.TIMELINE)
        for point in timeline_points(plan, points)
        for policy in timeline_policies(plan)
    ]
    if plan.slo_capacity:
        tasks += [
            slo_task(plan, cell, capacity_rps[cell.name], policy, seed)
            for cell in slo_cells(plan)
            for seed in slo_seeds(plan)
            for policy in plan.policies
        ]
    return tasks


def slo_cells(plan: Plan) -> list[CellSpec]:
    """Cells whose rate is free."""
    return [cell for cell in plan.cells if build_cell(cell).rate_rps is None]

"""What a reader of a comparison must know besides its numbers, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.study.cells import build_cell
from llmrouter.study.figures import WARM_UP_FRACTION
from llmrouter.study.plan import SLO_SEEDS, predictor_of
from llmrouter.study.predictors import Predictor, unknown_applications
from llmrouter.study.resample import BLOCK_S, depends_on_order
from llmrouter.study.seeds import FINAL, TRAINING
from llmrouter.study.statistics import MIN_PAIRS

if TYPE_CHECKING:
    from llmrouter.study.cells import Cell
    from llmrouter.study.plan import Plan


def notes_of(plan: Plan) -> list[str]:
    """The notes of a comparison, the general ones first."""
    cells = [build_cell(spec) for spec in plan.cells]
    notes = [
        (
            "Every policy ran on the same arrivals, lengths and predictions, seed by seed. A change is the mean over "
            "seeds of the paired difference in percent of RoundRobin, ± the half-width of its Student-t 95 % interval."
        ),
        (
            f"{len(plan.policies)} policies were tried on these {plan.seeds} seeds: the more are tried, the likelier "
            "one looks good by chance."
        ),
        (
            f"Below capacity the first {WARM_UP_FRACTION:.0%} of the requests are not measured; at or above it all "
            "are, as in runs that begin from empty."
        ),
        "C is the highest rate at which RoundRobin's mean TTFT over the last quarter of a long run stays below 1 s.",
    ]
    if plan.seeds < MIN_PAIRS:
        notes.append("One seed has no interval: nothing here is a claim.")
    if plan.block is TRAINING:
        notes.append("These are training seeds: what was tuned on them must not be judged on them.")
    if plan.block is not FINAL:
        notes.append(f"The seeds are of the {plan.block.name} block: final claims are made on the final block alone.")
    if plan.slo_capacity:
        notes.append(f"SLO capacities are means over the first {min(SLO_SEEDS, plan.seeds)} seeds.")
    for cell in cells:
        notes += _of_cell(cell, plan)
    return notes


def _of_cell(cell: Cell, plan: Plan) -> list[str]:
    name, predictor, notes = cell.spec.name, predictor_of(plan, cell.spec), []
    if cell.skipped:
        notes.append(f"{name}: lines of the trace left out: {cell.skipped}.")
    if cell.is_recorded and depends_on_order(cell.history):
        notes.append(
            f"{name}: requests depend on each other, so each seed is one window of the trace. Windows of different "
            "seeds overlap, and intervals are narrower than they should be."
        )
    elif cell.is_recorded:
        notes.append(
            f"{name}: each seed draws its own sequence of recorded blocks of {BLOCK_S:.0f} s (block bootstrap)."
        )
    if cell.is_recorded and predictor in (Predictor.TASK_MEAN, Predictor.NONE):
        notes.append(f"{name}: predicted lengths are means of the trace itself.")
    if predictor is Predictor.FOREST and (unknown := unknown_applications(cell.history)):
        notes.append(f"{name}: the forest does not know {', '.join(unknown)} and reads their prompt length alone.")
    return notes

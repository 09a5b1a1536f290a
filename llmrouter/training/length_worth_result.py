"""What a prediction is worth, as plain values: paired changes with intervals, and a verdict in words for each block."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from llmrouter.study.figures import METRICS, change_name
from llmrouter.study.statistics import Change, half_width, mean_of, paired_change
from llmrouter.training.length_worth_columns import NOISES, QUANTILES, Column
from llmrouter.training.length_worth_runs import FIRST_COME, RESERVES, Block, Key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmrouter.training.length_worth_runs import Figures, Runs

HEADLINE = "e2e_mean_s"
TAILS = {"e2e_p99_s": "p99 E2E", "ttft_p99_s": "p99 TTFT"}
BESTS = (Column.OURS, Column.NONE, Column.TASK_MEAN, *QUANTILES, Column.ORACLE)
BY_SEED = (HEADLINE, *TAILS, "makespan_s", "preemptions", "router_wait_mean_s")
"""Figures whose value in every run is kept."""


def rows_of(runs: Runs) -> list[dict[str, Any]]:
    """One row for each load, way and column: means of all figures, changes in % of the block's base, values by seed.

    ``preemptions`` can be 0 in the base: their change is also given as a difference, ``preemptions_more``.
    """
    rows = []
    for key, figures in runs.figures.items():
        base = runs.figures[base_of(key)]
        row: dict[str, Any] = {"block": key.block, "load": key.load, "way": key.way, "column": key.column}
        row |= {metric: mean_of([one[metric] for one in figures]) for metric in METRICS}
        for metric in METRICS:
            change = change_of(figures, base, metric)
            name = change_name(metric)
            row |= {name: change.percent, f"{name}_ci95": change.half_width}
        more = [
            (one["preemptions"] or 0.0) - (was["preemptions"] or 0.0) for one, was in zip(figures, base, strict=True)
        ]
        row |= {"preemptions_more": mean_of(more), "preemptions_more_ci95": half_width(more)}
        row["by_seed"] = {metric: [one[metric] for one in figures] for metric in BY_SEED}
        rows.append(row)
    return rows


def base_of(key: Key) -> Key:
    """What a run is compared with: the same without a prediction.

    Orders: first come, first served without a prediction. Reserves: the mean of ours at the same share.
    """
    if key.block is Block.ORDER:
        return Key(key.block, key.load, FIRST_COME, Column.NONE)
    return Key(key.block, key.load, key.way, Column.OURS if key.block is Block.RESERVE else Column.NONE)


def change_of(figures: Sequence[Figures], base: Sequence[Figures], metric: str) -> Change:
    """The paired change of a figure, seed by seed, in percent."""
    return paired_change([one[metric] for one in figures], [one[metric] for one in base])


def quality_of(runs: Runs) -> dict[str, dict[str, float | None]]:
    """How good each column was, the mean over seeds."""
    return {
        column: {metric: mean_of([one[column][metric] for one in runs.quality]) for metric in runs.quality[0][column]}
        for column in runs.quality[0]
    }


def verdicts_of(runs: Runs) -> list[dict[str, Any]]:
    """One verdict for each block, load and way that has the truth among its columns."""
    found = []
    for block, load, way in dict.fromkeys((key.block, key.load, key.way) for key in runs.figures):
        columns = {
            key.column: one for key, one in runs.figures.items() if (key.block, key.load, key.way) == (block, load, way)
        }
        if Column.ORACLE not in columns or Column.OURS not in columns:
            continue
        base = runs.figures[base_of(Key(block, load, way, Column.ORACLE))]
        text = reserve_verdict(columns) if block is Block.RESERVE else verdict(columns, base)
        found.append({"block": block, "load": load, "way": way, "verdict": text})
    return found


def verdict(columns: Mapping[Column, Sequence[Figures]], base: Sequence[Figures]) -> str:
    """What predictions are worth, from intervals alone: nothing where the truth's change of mean E2E may be 0."""
    truth = change_of(columns[Column.ORACLE], base, HEADLINE)
    if not is_told_apart(truth):
        said = f"worth nothing for mean E2E: the truth changes it by {shown(truth)}, and the interval holds 0"
    elif (truth.percent or 0.0) > 0:
        said = f"worse than nothing for mean E2E: the truth changes it by {shown(truth)}"
    else:
        said = f"worth having for mean E2E: the truth changes it by {shown(truth)}{_of_the_gain(columns, base, truth)}"
    tails = [
        f"{name} {shown(change)}"
        for metric, name in TAILS.items()
        if is_told_apart(change := change_of(columns[Column.ORACLE], base, metric))
    ]
    tails_said = f"; the truth changes {', '.join(tails)}" if tails else ""
    return said + tails_said + _harm(columns, base)


def reserve_verdict(columns: Mapping[Column, Sequence[Figures]]) -> str:
    """Whether reserving a quantile beats reserving the mean, in mean E2E and in preemptions."""
    parts = []
    for column in (Column.OURS_Q75, Column.OURS_Q90):
        change = change_of(columns[column], columns[Column.OURS], HEADLINE)
        word = "as good" if not is_told_apart(change) else ("better" if (change.percent or 0.0) < 0 else "worse")
        parts.append(f"{column.removeprefix('ours, ')} is {word} ({shown(change)})")
    return f"against the mean of ours, mean E2E: {', '.join(parts)}"


def best_reserves(runs: Runs) -> list[dict[str, Any]]:
    """For each load and policy, every column at its best share against the mean of ours at its best share.

    Shares are chosen by mean E2E on the first half of the seeds, and compared on the second half.
    """
    found = []
    ways = dict.fromkeys((key.load, key.way.partition(",")[0]) for key in runs.figures if key.block is Block.RESERVE)
    for load, policy in ways:
        best = {}
        for column in BESTS:
            choices = {
                share: runs.figures[Key(Block.RESERVE, load, f"{policy}, r {share:g}", column)] for share in RESERVES
            }
            half = len(choices[RESERVES[0]]) // 2
            mean_s = {share: mean_of([one[HEADLINE] for one in figures[:half]]) for share, figures in choices.items()}
            share = min(choices, key=lambda share: mean_s[share] or math.inf)
            best[column] = share, choices[share][half:]
        for column, (share, figures) in best.items():
            change = change_of(figures, best[Column.OURS][1], HEADLINE)
            entry = {"load": load, "policy": policy, "column": column, "r": share}
            found.append(entry | {"e2e_mean_pct": change.percent, "e2e_mean_pct_ci95": change.half_width})
    return found


def is_told_apart(change: Change) -> bool:
    """Whether the interval of a change leaves 0 out; never where there is no interval."""
    if change.percent is None or change.half_width is None:
        return False
    return abs(change.percent) > change.half_width


def shown(change: Change) -> str:
    """``−12.3 ± 0.4 %``."""
    if change.percent is None:
        return "–"
    width = "" if change.half_width is None else f" ± {change.half_width:.1f}"
    return f"{change.percent:+.1f}{width} %".replace("-", "−")


def _of_the_gain(columns: Mapping[Column, Sequence[Figures]], base: Sequence[Figures], truth: Change) -> str:
    parts = []
    for column in (Column.TASK_MEAN, Column.OURS):
        change = change_of(columns[column], base, HEADLINE)
        share = 100.0 * (change.percent or 0.0) / (truth.percent or 1.0)
        parts.append(f"{column} {shown(change)} ({share:.0f} % of it)".replace("-", "−"))
    against = change_of(columns[Column.OURS], columns[Column.TASK_MEAN], HEADLINE)
    if is_told_apart(against):
        word = "better than" if (against.percent or 0.0) < 0 else "worse than"
    else:
        word = "not told apart from"
    return f", {', '.join(parts)}; ours is {word} the task's mean ({shown(against)})"


def _harm(columns: Mapping[Column, Sequence[Figures]], base: Sequence[Figures]) -> str:
    parts = []
    for column in NOISES:
        if column not in columns:
            continue
        change = change_of(columns[column], base, HEADLINE)
        if is_told_apart(change) and (change.percent or 0.0) > 0:
            parts.append(f"σ {column.rpartition(' ')[2]} {shown(change)}")
    return f"; noise costs: {', '.join(parts)}" if parts else ""

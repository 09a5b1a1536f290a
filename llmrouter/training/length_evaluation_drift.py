"""A change of traffic: the answers of one family give way to those of another, and no label tells."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrouter.errors import InvalidInputError
from llmrouter.training.length_evaluation import answered, random_order, run_online
from llmrouter.training.length_evaluation_scores import row_scores
from llmrouter.training.length_evaluation_study import Study, scores_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmrouter.lengths.distribution import Lengths
    from llmrouter.training.length_evaluation_rows import LengthRow

    Progress = Callable[[str, int], Callable[[int], None]]

BEFORE_ROWS = 3_000
WINDOWS = (0, 250, 500, 1_000, 2_000)
"""Answers since the change that part the windows."""

FEWEST_ROWS = 500


def evaluate_drift(
    rows: Sequence[LengthRow], study: Study, progress: Progress, *, before: str, after: str
) -> dict[str, Any]:
    """``BEFORE_ROWS`` rows of a family or fewer, then those of another, of the tasks that both have; models unnamed.

    The same answers are also predicted by the same predictors without a past, so that what the change costs is told
    from what the new family is like.

    Returns:
        ``before``, ``after``, ``tasks``, and ``windows``: for answers ``from`` to ``to`` since the change, scores as in
        ``evaluate`` of the predictors that lived through it, and of ``fresh`` ones.

    Raises:
        InvalidInputError: a family has fewer than ``FEWEST_ROWS`` rows of tasks that both have.
    """
    tasks = {row.task for row in rows if row.family == before} & {row.task for row in rows if row.family == after}
    rng = np.random.default_rng(study.seed)
    parts = []
    for family in (before, after):
        found = [row for row in rows if row.family == family and row.task in tasks]
        if len(found) < FEWEST_ROWS:
            raise InvalidInputError(
                f"--drift: {family!r} has {len(found)} rows of tasks that both families have, fewer than {FEWEST_ROWS}"
            )
        parts.append([replace(row, request=replace(row.request, model="")) for row in random_order(found, rng)])
    first, second = parts[0][:BEFORE_ROWS], parts[1][: WINDOWS[-1]]
    laws, fresh = (
        _laws(rows, study, progress, title) for rows, title in ((first + second, "drift"), (second, "fresh"))
    )
    return {
        "before": before,
        "after": after,
        "rows_before": len(first),
        "tasks": sorted(tasks),
        "windows": [
            {
                "from": low,
                "to": high,
                "after_change": _scores(laws, second, low, high, offset=len(first), study=study),
                "fresh": _scores(fresh, second, low, high, offset=0, study=study),
            }
            for low, high in pairwise(WINDOWS)
            if low < len(second)
        ],
    }


def _laws(rows: Sequence[LengthRow], study: Study, progress: Progress, title: str) -> dict[str, Lengths]:
    traffic = answered(rows, hint=study.settings[0].hint)
    laws: dict[str, Lengths] = {}
    for contender in study.contenders:
        laws |= run_online(contender, traffic, progress(f"{title}: {contender.name}", 2 * len(rows)))
    return laws


def _scores(
    laws: dict[str, Lengths], rows: Sequence[LengthRow], low: int, high: int, *, offset: int, study: Study
) -> dict[str, Any]:
    window = rows[low:high]
    actual_N = np.array([row.output_tokens for row in window], dtype=np.float64)
    place = slice(offset + low, offset + low + len(window))
    prompt_N = np.unique([row.prompt_digest for row in window], return_inverse=True)[1]
    return scores_of({name: row_scores(one[place], actual_N) for name, one in laws.items()}, prompt_N, study)

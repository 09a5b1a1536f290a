"""How good a text model is on prompts it never saw, by family and task, beside the mean of each task in each family."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.distribution import MEDIAN, lengths_of
from llmrouter.lengths.online import By, OnlineQuantiles
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.training.length_evaluation_contenders import FEW
from llmrouter.training.length_evaluation_scores import RESAMPLES, Estimate, RowScores, estimates, row_scores
from llmrouter.training.length_text_training import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from llmrouter.lengths.distribution import Lengths
    from llmrouter.training.length_evaluation_rows import LengthRow
    from llmrouter.training.length_text_rows import TextSet
    from llmrouter.training.length_text_training import TextModel

HINT, NO_HINT, TASK_MEAN = "hint", "no-hint", "task-mean"
ALL = "all"
MIN_ROWS = 60
MAX_GROUPS = 32

Scores = dict[str, dict[str, Estimate]]
"""Predictor (HINT, NO_HINT, TASK_MEAN), then metric."""


@dataclass(frozen=True, slots=True)
class GroupScores:
    """Scores of one group of held-out rows, and those of the text model less those of the task's mean."""

    rows: int
    prompts: int
    scores: Scores
    minus_task_mean: Scores


def score_text(
    model: TextModel, held_out: TextSet, rows: Sequence[LengthRow], learned: Sequence[LengthRow]
) -> dict[str, GroupScores]:
    """Scores of all held-out rows (ALL), of each family and of each task with at least MIN_ROWS of them.

    Args:
        model: as it is exported.
        held_out: features of ``rows``.
        rows: that trained nothing.
        learned: that the model was trained on; what the baseline learns, too.
    """
    actual_N = np.array([row.output_tokens for row in rows], dtype=np.float64)
    laws = {
        HINT: _laws(model, held_out, application=1),
        NO_HINT: _laws(model, held_out, application=0),
        TASK_MEAN: _task_means(rows, learned),
    }
    scores = {name: row_scores(one, actual_N) for name, one in laws.items()}
    return {name: _group(scores, places, held_out.prompt) for name, places in _groups(rows).items()}


def _laws(model: TextModel, rows: TextSet, *, application: int) -> Lengths:
    quantiles_NQ = model.predict(*shown(rows, application=application, model=1)).astype(np.float64)
    tokens_NQ = np.exp(np.clip(quantiles_NQ, 0.0, np.log(model.max_tokens)))
    return lengths_of(tokens_NQ, source="text", rank_N=tokens_NQ[:, MEDIAN])


def _task_means(rows: Sequence[LengthRow], learned: Sequence[LengthRow]) -> Lengths:
    """Of the row's task within its family, or else of the task, or else of everything."""
    counted = OnlineQuantiles(chain=(By.APPLICATION, By.APPLICATION_MODEL), half_life=None, shrinkage=FEW)
    for row in learned:
        counted.learn(_labelled(row), row.output_tokens)
    requests = [_labelled(row) for row in rows]
    names = list(dict.fromkeys(requests))
    laws = counted.predict(names)
    place = {name: index for index, name in enumerate(names)}
    place_N = np.array([place[request] for request in requests])
    return lengths_of(laws.latent[place_N], source=TASK_MEAN, expected_N=laws.expected_tokens[place_N])


def _labelled(row: LengthRow) -> LengthRequest:
    return LengthRequest(application=row.task or row.request.application, model=row.family or row.request.model)


def _groups(rows: Sequence[LengthRow]) -> Mapping[str, NDArray[np.intp]]:
    """Places of the rows of ALL, ``family=…`` and ``task=…``, the largest groups first."""
    groups = {ALL: np.arange(len(rows))}
    for kind, labels in (("family", [row.family for row in rows]), ("task", [row.task for row in rows])):
        names, counts = np.unique(np.array(labels), return_counts=True)
        order = np.argsort(-counts, kind="stable")
        for index in order[:MAX_GROUPS]:
            if names[index] and counts[index] >= MIN_ROWS:
                groups[f"{kind}={names[index]}"] = np.flatnonzero(np.array(labels) == names[index])
    return groups


def _group(scores: Mapping[str, RowScores], places: NDArray[np.intp], prompt_N: NDArray[np.int64]) -> GroupScores:
    chosen = {name: one.take(places) for name, one in scores.items()}
    prompts, inside_N = np.unique(prompt_N[places], return_inverse=True)
    values, differences = estimates(
        chosen, inside_N, rng=np.random.default_rng(0), against=TASK_MEAN, resamples=RESAMPLES
    )
    return GroupScores(rows=len(places), prompts=len(prompts), scores=values, minus_task_mean=differences)


def with_task_as_application(rows: Sequence[LengthRow]) -> list[LengthRow]:
    """Rows whose application is their task: what requests with the task hint look like."""
    return [replace(row, request=replace(row.request, application=row.task or row.request.application)) for row in rows]

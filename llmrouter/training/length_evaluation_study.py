"""The whole evaluation as plain values: settings, streams of requests, predictors, groups of rows, metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrouter.errors import InvalidInputError
from llmrouter.lengths.distribution import LEVELS, PAPER_EDGES_TOKENS
from llmrouter.training.length_evaluation import (
    CALIBRATED,
    answered,
    grouped_order,
    random_order,
    run_offline,
    run_online,
)
from llmrouter.training.length_evaluation_contenders import TASK_MEAN
from llmrouter.training.length_evaluation_rows import HELD_OUT_SHARE
from llmrouter.training.length_evaluation_scores import METRICS, Estimate, RowScores, estimates, row_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from llmrouter.lengths.distribution import Lengths
    from llmrouter.training.length_evaluation_contenders import Contender
    from llmrouter.training.length_evaluation_rows import LengthRow

    Progress = Callable[[str, int], Callable[[int], None]]

SCHEMA_VERSION = 1
MIN_FAMILY_ROWS = 100
MIN_TASK_ROWS = 30
ANSWERS_SEEN = (0, 10, 50, 500)
ALL_FAMILIES = None


class Order(StrEnum):
    """In which order the rows of a stream come."""

    RANDOM = "random"
    GROUPED = "grouped"


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to evaluate. ``order`` is ``None`` offline, where nothing is learned on the way."""

    online: bool
    hint: bool
    order: Order | None


@dataclass(frozen=True, slots=True)
class Study:
    """What is evaluated and how. ``subject`` names the contender whose numbers stand at the top of the result."""

    contenders: tuple[Contender, ...]
    subject: str
    settings: tuple[Setting, ...]
    by_family: bool
    seed: int
    resamples: int


def evaluate(rows: Sequence[LengthRow], study: Study, progress: Progress) -> dict[str, Any]:
    """Every setting on all rows, and on the rows of each family alone, as if one engine served it.

    Families with fewer than ``MIN_FAMILY_ROWS`` rows are left to the pooled stream, and named in ``notes``; tasks with
    fewer than ``MIN_TASK_ROWS`` rows are not told apart. Learned baselines never see the row they are scored on:
    online each is predicted before it is learned; offline, prompts are split by their SHA-256.

    Raises:
        InvalidInputError: offline, all prompts fall on one side of the split.
    """
    settings = []
    families = families_of(rows) if study.by_family else {}
    streams: list[tuple[str | None, Sequence[LengthRow]]] = [(ALL_FAMILIES, rows), *families.items()]
    for setting in study.settings:
        done = []
        for family, members in streams:
            title = f"{'hint' if setting.hint else 'no hint'}, {family or 'all'}"
            done.append(_stream(members, setting, study, progress, family=family, title=title))
        settings.append(
            {
                "online": setting.online,
                "hint": setting.hint,
                "order": setting.order,
                "streams": [one for one in done if one is not None],
            }
        )
    if not settings[0]["streams"]:
        raise InvalidInputError("the split by prompt leaves nothing to learn from or nothing to score: try --online")
    return {**_summary(settings, study), "settings": settings, "notes": _notes(rows, families, study)}


def families_of(rows: Sequence[LengthRow]) -> dict[str, list[LengthRow]]:
    """Rows of each family that has enough of them, the largest first."""
    counts = Counter(row.family for row in rows if row.family)
    return {
        family: [row for row in rows if row.family == family]
        for family, count in counts.most_common()
        if count >= MIN_FAMILY_ROWS
    }


def _stream(
    rows: Sequence[LengthRow], setting: Setting, study: Study, progress: Progress, *, family: str | None, title: str
) -> dict[str, Any] | None:
    rng = np.random.default_rng(study.seed)
    laws: dict[str, Lengths] = {}
    if setting.online:
        scored = grouped_order(rows, rng) if setting.order is Order.GROUPED else random_order(rows, rng)
        traffic = answered(scored, hint=setting.hint)
        for contender in study.contenders:
            laws |= run_online(contender, traffic, progress(f"{title}: {contender.name}", 2 * len(traffic)))
    else:
        learned = [row for row in random_order(rows, rng) if not row.held_out]
        scored = [row for row in rows if row.held_out]
        if not learned or not scored:
            return None
        traffic = answered(scored, hint=setting.hint)
        training = answered(learned, hint=setting.hint)
        for contender in study.contenders:
            total = 2 * len(traffic) + len(training)
            laws |= run_offline(contender, training, traffic, progress(f"{title}: {contender.name}", total))
    scores = {name: row_scores(one, traffic.output_tokens) for name, one in laws.items()}
    prompt_N = np.unique([row.prompt_digest for row in scored], return_inverse=True)[1]
    result: dict[str, Any] = {"family": family, "rows": len(scored), "prompts": int(prompt_N.max()) + 1}
    result["overall"] = scores_of(scores, prompt_N, study)
    groupings = {"by_task": _by_task(scored)}
    if setting.online:
        groupings["by_answers_seen"] = _by_answers_seen(scored)
        groupings["by_prompt_seen"] = _by_prompt_seen(scored)
    for grouping, groups in groupings.items():
        result[grouping] = {}
        for name, places in groups.items():
            chosen = {contender: one.take(places) for contender, one in scores.items()}
            inside_N = np.unique(prompt_N[places], return_inverse=True)[1]
            result[grouping][name] = {"rows": len(places), **scores_of(chosen, inside_N, study)}
    return result


def _by_answers_seen(rows: Sequence[LengthRow]) -> dict[str, NDArray[np.intp]]:
    """Rows by how many answers of their source, task and model were there before them."""
    seen: Counter[tuple[str, str, str]] = Counter()
    before = []
    for row in rows:
        key = (row.source, row.task, row.request.model)
        before.append(seen[key])
        seen[key] += 1
    before_N = np.array(before)
    groups = {}
    for low, high in zip(ANSWERS_SEEN, (*ANSWERS_SEEN[1:], None), strict=True):
        inside_N = before_N >= low if high is None else (before_N >= low) & (before_N < high)
        groups[f"{low}-" if high is None else f"{low}-{high - 1}"] = np.flatnonzero(inside_N)
    return {name: places for name, places in groups.items() if len(places) >= MIN_TASK_ROWS}


def _by_prompt_seen(rows: Sequence[LengthRow]) -> dict[str, NDArray[np.intp]]:
    """Rows whose prompt is new, and those whose prompt came before; nothing where all are new."""
    seen: set[bytes] = set()
    new = []
    for row in rows:
        new.append(row.prompt_digest not in seen)
        seen.add(row.prompt_digest)
    if all(new):
        return {}
    groups = {"new": np.flatnonzero(new), "again": np.flatnonzero(~np.array(new))}
    return {name: places for name, places in groups.items() if len(places) >= MIN_TASK_ROWS}


def _by_task(rows: Sequence[LengthRow]) -> dict[str, NDArray[np.intp]]:
    tasks = np.array([row.task for row in rows])
    groups = {str(task): np.flatnonzero(tasks == task) for task in np.unique(tasks)}
    if len(groups) == 1:
        return {}
    return {task: places for task, places in groups.items() if len(places) >= MIN_TASK_ROWS}


def scores_of(scores: Mapping[str, RowScores], prompt_N: NDArray[np.intp], study: Study) -> dict[str, Any]:
    """Every metric of every predictor with its interval, and their differences from the mean of the task."""
    values, differences = estimates(
        scores, prompt_N, rng=np.random.default_rng(study.seed), against=TASK_MEAN, resamples=study.resamples
    )
    return {
        "predictors": {name: _plain(one) for name, one in values.items()},
        "minus_task_mean": {name: _plain(one) for name, one in differences.items()},
    }


def _plain(one: Mapping[str, Estimate]) -> dict[str, list[float | None]]:
    return {metric: one[metric].as_list() for metric in METRICS}


def _summary(settings: Sequence[Mapping[str, Any]], study: Study) -> dict[str, Any]:
    """The subject's numbers in the first setting, as plain numbers, and the same of every other predictor."""
    streams = settings[0]["streams"]
    subject = study.subject + CALIBRATED
    pooled = streams[0]["overall"]["predictors"]
    return {
        "schema": SCHEMA_VERSION,
        "levels": list(LEVELS),
        "bucket_edges_tokens": list(PAPER_EDGES_TOKENS),
        "predictor": subject,
        **_values(pooled, subject),
        "intervals": {metric: part[1:] for metric, part in pooled[subject].items()},
        "baselines": {name: _values(pooled, name) for name in pooled if name != subject},
        "by_task": {task: _values(one["predictors"], subject) for task, one in streams[0]["by_task"].items()},
        "by_family": {one["family"]: _values(one["overall"]["predictors"], subject) for one in streams[1:]},
    }


def _values(predictors: Mapping[str, Any], name: str) -> dict[str, float | None]:
    return {metric: part[0] for metric, part in predictors[name].items()}


def _notes(rows: Sequence[LengthRow], families: Mapping[str, Sequence[LengthRow]], study: Study) -> list[str]:
    notes = []
    if any(setting.online for setting in study.settings):
        notes.append("Online: every answer is predicted from the requests before it, then learned.")
    if not all(setting.online for setting in study.settings):
        notes.append(
            f"Offline: scored are prompts whose SHA-256 begins within the lowest {HELD_OUT_SHARE:.0%}; "
            "learned baselines saw the answers to the other prompts alone."
        )
    small = sorted({row.family for row in rows if row.family} - set(families))
    if study.by_family and small:
        notes.append(f"Fewer than {MIN_FAMILY_ROWS} rows, in the pooled stream alone: {', '.join(small)}.")
    if len({row.family for row in rows}) > 1:
        notes.append("The pooled stream mixes families, and families differ in their tasks: read one family at a time.")
    if not any(row.task for row in rows):
        notes.append("No row has a task: the hint is empty and task-mean is the mean of all.")
    return notes

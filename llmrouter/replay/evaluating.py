"""A log and another policy made numbers: what was done, what it cost, and how likely the other was to do the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.decisions.estimators import Choices, cross_fitted
from llmrouter.replay.choosing import state_of
from llmrouter.routing.rules import PREDICTED, own_latency
from llmrouter.routing.stages import row_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from llmrouter.decisions.record import DecisionRecord, Outcome
    from llmrouter.domain import EngineProfile, InstanceView, Request
    from llmrouter.replay.choosing import Chooser

METRICS = ("ttft_s", "tpot_s", "e2e_s")
"""What an outcome has that can be compared, by its field; s."""

MIN_DECISIONS = 50
"""With fewer, nothing is estimated."""


@dataclass(frozen=True, slots=True)
class Usable:
    """Decisions that can be asked again, and why others cannot: counts by reason."""

    rows: Sequence[Row]
    left_out: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Row:
    """One decision among K instances, the one that was taken first: what each looks like, and how likely it was.

    Attributes:
        outcome: what came of the first.
        looks: (K, F), see ``features``.
        logged: (K,), the log's policy's probabilities …
        target: … and the other one's.
    """

    outcome: Outcome
    looks: NDArray[np.float64]
    logged: NDArray[np.float64]
    target: NDArray[np.float64]


def usable(records: Iterable[DecisionRecord], chooser: Chooser) -> Usable:
    """The decisions of a log that another policy can be asked again, in the log's order."""
    rows: list[Row] = []
    left_out: Counter[str] = Counter()
    profiles: dict[str, tuple[object, EngineProfile]] = {}
    for record in records:
        found = _row(record, chooser, profiles)
        if isinstance(found, Row):
            rows.append(found)
        else:
            left_out[found] += 1
    return Usable(rows, left_out)


def _row(record: DecisionRecord, chooser: Chooser, profiles: dict[str, tuple[object, EngineProfile]]) -> Row | str:
    """A decision as numbers, or why it cannot be asked again."""
    if why_not := _unfit(record):
        return why_not
    state = state_of(record, _profiles(record, profiles))
    target = chooser.probabilities(state)
    if target is None:
        return "too many instances tie for the other policy"
    if not target:
        return "the other policy would have waited"
    outcome = record.outcome
    assert outcome is not None  # noqa: S101 - see _unfit
    seen = replace(
        state.request, predicted_output_tokens=float(outcome.output_tokens or record.predicted_output_tokens)
    )
    return Row(
        outcome,
        np.array([features(seen, view) for view in state.snapshot.views]),
        np.array([one.propensity or 0.0 for one in record.candidates]),
        np.array([target.get(one.id, 0.0) for one in record.candidates]),
    )


def _unfit(record: DecisionRecord) -> str:
    """Why a record alone says too little; empty where it does not."""
    outcome = record.outcome
    if outcome is None or outcome.kind != "Finished" or outcome.part:
        return "not finished"
    if not record.candidates or record.chosen != record.candidates[0].id:
        return "another instance was reserved than the policy's first"
    if not record.candidates[0].propensity:
        return "the odds of the choice are not known"
    return "" if record.is_complete else "not all instances are described (decisionLog.maxCandidates)"


def _profiles(record: DecisionRecord, known: dict[str, tuple[object, EngineProfile]]) -> Mapping[str, EngineProfile]:
    """Those of a record; made anew only where they differ from the last of their name."""
    for name, one in record.profiles.items():
        if name not in known or known[name][0] != one:
            known[name] = (one, one.engine_profile())
    return {name: known[name][1] for name in record.profiles}


def features(request: Request, view: InstanceView) -> tuple[float, ...]:
    """What costs of a choice are modelled on: the product's own formulas and what they are made of, in s and tokens.

    The request's length is the true one: it is the same wherever the request goes, so that knowing it, as nobody did
    when the choice was made, takes its chance out of the comparison.
    """
    row, load = row_of(request, view), view.total
    first = (*row[:PREDICTED], 1.0, *row[PREDICTED + 1 :])
    profile = view.instance.profile
    return (
        own_latency(first),
        own_latency(row),
        load.requests,
        load.requests * profile.sequence_s * request.predicted_output_tokens,
        load.context_tokens,
        load.queued_prefill_tokens * profile.prefill_s_per_token,
        load.remaining_decode_tokens,
        request.prompt_tokens,
        request.predicted_output_tokens,
    )


def choices_of(rows: Sequence[Row], metric: str) -> Choices | None:
    """The decisions that have a metric, as columns; ``None`` where they are too few."""
    known = [row for row in rows if getattr(row.outcome, metric) is not None]
    if len(known) < MIN_DECISIONS:
        return None
    cost_N = np.array([getattr(row.outcome, metric) for row in known])
    most = max(len(row.logged) for row in known)
    asked_NKF = np.stack([_padded(row.looks, most, np.nan) for row in known])
    target_NK = np.stack([_padded(row.target, most, 0.0) for row in known])
    logged_NK = np.stack([_padded(row.logged, most, 0.0) for row in known])
    modelled_N, modelled_NK = cross_fitted(asked_NKF[:, 0], cost_N, asked_NKF)
    return Choices(
        cost=cost_N,
        logged=logged_NK[:, 0],
        target=target_NK[:, 0],
        modelled=modelled_N,
        modelled_target=np.where(target_NK > 0.0, target_NK * modelled_NK, 0.0).sum(axis=1),
        unsupported=np.where(logged_NK > 0.0, 0.0, target_NK).sum(axis=1),
    )


def _padded(values_K: NDArray[np.float64], most: int, with_value: float) -> NDArray[np.float64]:
    widths = [(0, most - len(values_K)), *[(0, 0)] * (values_K.ndim - 1)]
    return np.pad(values_K, widths, constant_values=with_value)

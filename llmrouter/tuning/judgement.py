"""What better means: an objective that a person can read, what must not get worse, and the verdict on a window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from llmrouter.errors import InvalidInputError
from llmrouter.study.statistics import half_width

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Figures = dict[str, float | None]
Objective = Literal["SLO", "Balanced", "E2E"]

OBJECTIVES: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "SLO": MappingProxyType({"ttft_p99_s": 0.5, "tpot_p95_s": 0.5}),
        "Balanced": MappingProxyType({"e2e_mean_s": 0.8, "ttft_p99_s": 0.1, "tpot_p95_s": 0.1}),
        "E2E": MappingProxyType({"e2e_mean_s": 1.0}),
    }
)
"""Parts of each objective: a weighted mean of ln(figure / figure of the current policy), so of changes in percent.

Tails move far more easily than the mean: Balanced takes 1 % of mean E2E for 8 % of a tail.
"""

RATIOS = ("ttft_p99_s", "tpot_p95_s")
"""Must not get worse, in percent of the current policy."""

AMOUNTS = ("shed_rate", "preemptions_per_request")
"""Must not get worse, as differences: both are often 0. Shares of the requests."""

GUARDS = (*RATIOS, *AMOUNTS)

SHOWN = ("e2e_mean_s", "e2e_p99_s", "ttft_mean_s", "ttft_p99_s", "tpot_mean_s", "tpot_p95_s", *AMOUNTS)
"""What a verdict's table says, in this order, besides the objective."""

_PENALTY_OF_AMOUNT = 10.0
"""A hundredth of all requests more that are shed or preempted counts as ten percent."""

_WORST = 10.0
"""ln of a ratio where a policy gets nothing done that the current one does."""

_NEGLIGIBLE_RATIO = 1e-9


def kept(figures: Mapping[str, float | None], requests: int) -> Figures:
    """Of a run's figures those that are judged; preemptions are put in proportion to the requests measured."""
    found = {name: figures[name] for name in SHOWN if name in figures}
    found["preemptions_per_request"] = (figures["preemptions"] or 0.0) / max(requests, 1)
    return found


def change(name: str, value: Figures, base: Figures) -> float:
    """ln(value / base), or value − base for ``AMOUNTS``; 0 where neither says anything."""
    one, other = value[name], base[name]
    if name in AMOUNTS:
        return (one or 0.0) - (other or 0.0)
    if other is None or other <= 0.0:
        return 0.0
    return math.log(max(one, _NEGLIGIBLE_RATIO) / other) if one is not None else _WORST


def objective_change(objective: Objective, value: Figures, base: Figures) -> float:
    """The objective of one window against the current policy's: below 0 is better."""
    return math.fsum(weight * change(name, value, base) for name, weight in OBJECTIVES[objective].items())


def penalised(objective: Objective, values: Sequence[Figures], bases: Sequence[Figures]) -> float:
    """The mean objective over windows, plus what the means of ``GUARDS`` got worse by: what the search makes small."""
    count = len(values)
    pairs = list(zip(values, bases, strict=True))
    total = math.fsum(objective_change(objective, *pair) for pair in pairs) / count
    for name in GUARDS:
        worse = math.fsum(change(name, *pair) for pair in pairs) / count
        total += max(0.0, worse) * (_PENALTY_OF_AMOUNT if name in AMOUNTS else 1.0)
    return total


def check_says_something(objective: Objective, bases: Sequence[Figures]) -> None:
    """Raises InvalidInputError where a window has no figure that the objective is made of."""
    for name in OBJECTIVES[objective]:
        if any(base[name] is None for base in bases):
            raise InvalidInputError(
                f"the requests say nothing of {name}, which --objective {objective} is made of: "
                "none finished, or all answers have one token"
            )


@dataclass(frozen=True, slots=True)
class Judged:
    """A figure over the held-out windows.

    Attributes:
        name: of the figure, or ``objective``.
        current, tuned: means over windows; ``None`` for the objective and where a figure is unknown.
        change: mean paired change, ln of a ratio or a difference.
        half_width: of its 95 % interval.
        verdict: ``better``, ``worse`` or ``same``: where the interval leaves 0 out, and to which side.
        must: ``improve``, ``hold`` or nothing: what acceptance asks of it.
    """

    name: str
    current: float | None
    tuned: float | None
    change: float
    half_width: float
    verdict: Literal["better", "worse", "same"]
    must: Literal["improve", "hold", ""]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a policy is taken, and why."""

    accepted: bool
    reason: str
    rows: tuple[Judged, ...]


def judge(
    objective: Objective, values: Sequence[Figures], bases: Sequence[Figures], *, window_share: float = 0.0
) -> Verdict:
    """The verdict on held-out windows: the objective's interval below 0, and none of ``GUARDS`` worse beyond its own.

    Windows that are resampled from one recording are independent given the recording; what the recording does not say
    of the traffic to come no number of them takes away. With s the deviation over n windows that are each a share f of
    the recording, the objective's half-width is t·s·√(1/n + f): one recording of that length has a deviation of s·√f.
    Guards have t·s/√n, which is narrower: both make acceptance harder.

    Args:
        objective: what is to improve.
        values: figures of the new policy, window by window; at least 2 …
        bases: … and of the current one on the same windows.
        window_share: f; 0 where every window is traffic of its own.
    """
    widened = math.sqrt(1.0 + len(values) * window_share)
    rows = [
        _judged("objective", [objective_change(objective, *pair) for pair in zip(values, bases, strict=True)], widened)
    ]
    for name in SHOWN:
        row = _judged(name, [change(name, *pair) for pair in zip(values, bases, strict=True)], 1.0)
        current, tuned = (_mean([figures[name] for figures in side]) for side in (bases, values))
        must: Literal["hold", ""] = "hold" if name in GUARDS else ""
        rows.append(Judged(name, current, tuned, row.change, row.half_width, row.verdict, must))
    worse = [row.name for row in rows if row.must == "hold" and row.verdict == "worse"]
    if rows[0].verdict != "better":
        return Verdict(False, "the objective does not improve beyond its interval", tuple(rows))  # noqa: FBT003 - said by the class
    if worse:
        return Verdict(False, f"worse beyond its interval: {', '.join(worse)}", tuple(rows))  # noqa: FBT003 - as above
    return Verdict(True, "the objective improves and nothing that must hold gets worse", tuple(rows))  # noqa: FBT003 - as above


def _judged(name: str, changes: Sequence[float], widened: float) -> Judged:
    mean = math.fsum(changes) / len(changes)
    width = (half_width(changes) or 0.0) * widened
    verdict: Literal["better", "worse", "same"] = (
        "better" if mean + width < 0 else "worse" if mean - width > 0 else "same"
    )
    return Judged(name, None, None, mean, width, verdict, "improve" if name == "objective" else "")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None

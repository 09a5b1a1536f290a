"""What two arms say of a candidate: whether it is worse than its guardrails allow, and whether it is surely not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.rollout.sequential import Interval, error_increase, log_ratio

if TYPE_CHECKING:
    from llmrouter.rollout.arm_stats import ArmStats, Moments
    from llmrouter.rollout_specs import GuardrailsSpec

ERRORS = "errors"
TIMES = ("ttft", "tpot", "e2e")
METRICS = (*TIMES, ERRORS)
REASONS = {"ttft": "TtftWorse", "tpot": "TpotWorse", "e2e": "E2eWorse", ERRORS: "ErrorsWorse"}
_WORDS = {"ttft": "time to first token", "tpot": "time per output token", "e2e": "time to last token"}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The candidate against the current policy in one metric.

    ``ratio``, ``low`` and ``high`` are of geometric means; for ``errors`` they are differences of fractions. ``limit``
    is the guardrail, ``counts`` are the requests measured in the current policy's arm and in the candidate's.
    """

    metric: str
    counts: tuple[int, int]
    limit: float
    interval: Interval | None

    @property
    def is_breached(self) -> bool:
        """Whether the candidate is credibly worse than the guardrail allows."""
        return self.interval is not None and self.interval.low > self.limit

    @property
    def is_kept(self) -> bool:
        """Whether the candidate is credibly no worse than the guardrail allows."""
        return self.interval is not None and self.interval.high <= self.limit

    def __str__(self) -> str:
        """In words."""
        current, candidate = self.counts
        if self.interval is None:
            return f"{self.metric}: {min(current, candidate)} requests in the smaller arm"
        one = self.interval
        if self.metric == ERRORS:
            estimate, low, high, limit = (100 * part for part in (one.estimate, one.low, one.high, self.limit))
            what = f"failed requests are {estimate:+.1f} points more of all ({low:+.1f} to {high:+.1f})"
            return f"{what}, {limit:+.1f} is allowed, over {candidate} requests"
        what = (
            f"{_WORDS[self.metric]} is {one.estimate:.2f} times the current policy's ({one.low:.2f} to {one.high:.2f})"
        )
        return f"{what}, {self.limit:g} is allowed, over {candidate} requests"


@dataclass(frozen=True, slots=True)
class Verdict:
    """All comparisons, and what follows. ``breach`` is the worst guardrail that is credibly not kept, if any."""

    comparisons: tuple[Comparison, ...]
    breach: Comparison | None

    @property
    def reason(self) -> str:
        """Why it is to be rolled back, in one CamelCase word; empty where it is not."""
        return REASONS[self.breach.metric] if self.breach is not None else ""

    @property
    def open_question(self) -> Comparison | None:
        """The comparison that says least of those that are not yet credibly kept."""
        unsure = [one for one in self.comparisons if not one.is_kept]
        return max(unsure, key=_excess) if unsure else None


def verdict(
    current: ArmStats, candidate: ArmStats, guardrails: GuardrailsSpec, *, probability: float | None = None
) -> Verdict:
    """Compares the arms. May be asked at any time and as often as one likes.

    Args:
        current: the arm of the current policy, with its open requests (``arm_stats.with_open``).
        candidate: the other.
        guardrails: what is allowed.
        probability: that a candidate within all guardrails is ever found in breach, all guardrails together; ``None``
            for ``guardrails.false_alarm_probability``.
    """
    each = (guardrails.false_alarm_probability if probability is None else probability) / len(METRICS)
    limits = (guardrails.max_ttft_ratio, guardrails.max_tpot_ratio, guardrails.max_e2e_ratio)
    found = [
        _of_times(name, getattr(current, name), getattr(candidate, name), limit, each, least=guardrails.min_requests)
        for name, limit in zip(TIMES, limits, strict=True)
    ]
    found.append(_of_errors(current, candidate, guardrails.max_error_fraction_increase, each))
    breached = [one for one in found if one.is_breached]
    return Verdict(tuple(found), max(breached, key=_excess) if breached else None)


def _of_times(
    name: str, current: Moments, candidate: Moments, limit: float, probability: float, *, least: int
) -> Comparison:
    counts = (current.count, candidate.count)
    logs = log_ratio(current, candidate, probability=probability) if min(counts) >= least else None
    if logs is None:
        return Comparison(name, counts, limit, None)
    return Comparison(name, counts, limit, Interval(*(_exp(part) for part in (logs.estimate, logs.low, logs.high))))


def _of_errors(current: ArmStats, candidate: ArmStats, limit: float, probability: float) -> Comparison:
    ended = [(arm.errors, arm.finished + arm.errors) for arm in (current, candidate)]
    interval = error_increase(ended[0], ended[1], probability=probability)
    return Comparison(ERRORS, (ended[0][1], ended[1][1]), limit, interval)


def _excess(one: Comparison) -> float:
    """How far the sure part of a comparison is beyond its limit, in the units of the limit; none is most unsure."""
    return math.inf if one.interval is None else one.interval.low - one.limit


def _exp(logarithm: float) -> float:
    return math.exp(min(max(logarithm, -20.0), 20.0))

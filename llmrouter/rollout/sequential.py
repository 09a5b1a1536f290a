"""Intervals that hold however often one looks, and whenever one stops: confidence sequences.

Times: the difference of two arms' mean logarithms, with what the sizes of requests explain taken out by one common
slope (Deng et al., "Improving the Sensitivity of Online Controlled Experiments by Utilizing Pre-Experiment Data",
2013), within the one-sided normal mixture boundary (Howard et al., "Time-uniform, nonparametric, nonasymptotic
confidence sequences", 2021, eq. 14) of the estimated variance (Waudby-Smith et al., "Time-uniform central limit theory
and asymptotic confidence sequences", 2024). That holds in the limit of many requests; few are made up for as Student's
distribution makes up for them. Which arm a request is in was drawn independently of all else: so what the arms share, a
burst that lasts or a slow hour, falls out of the difference, and needs no independence between requests (Ham et al.,
"Design-based confidence sequences", 2022).

Failures: both fractions within the mixture martingale of Robbins (1970) over Beta(1, 1), which is exact for any number
of requests, and the difference between the ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.rollout.arm_stats import Moments

TIGHTEST_AT = 10.0
"""The boundary's ``rho``: at a probability of 0.25 % it is tightest at some 150 requests of the smaller arm."""

LEAST_VARIANCE = 1e-6
"""Of a logarithm: equal times to a thousandth are no proof that the next is equal."""

_STEPS = 60


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate, and the ends that the true value leaves with the given probability each."""

    estimate: float
    low: float
    high: float


def log_ratio(current: Moments, candidate: Moments, *, probability: float) -> Interval | None:
    """Candidate's mean logarithm of seconds less the current policy's; ``None`` where an arm has fewer than two.

    Each end is left, ever, with at most about ``probability``.
    """
    fewest = min(current.count, candidate.count)
    if fewest < 2:  # noqa: PLR2004 - a variance takes two
        return None
    slope = _slope(current, candidate)
    estimate = _mean(candidate.y, candidate) - _mean(current.y, current)
    estimate -= slope * (_mean(candidate.x, candidate) - _mean(current.x, current))
    parts = [_residual_variance(one, slope) / one.count for one in (current, candidate)]
    freedom = sum(parts) ** 2 / sum(
        part**2 / (one.count - 1) for part, one in zip(parts, (current, candidate), strict=True)
    )
    pairs = current.count * candidate.count / (current.count + candidate.count)
    width = math.sqrt(sum(parts)) * _students(_normal_boundary(pairs, probability), freedom)
    return Interval(estimate, estimate - width, estimate + width)


def error_increase(current: tuple[int, int], candidate: tuple[int, int], *, probability: float) -> Interval:
    """Candidate's fraction of failures less the current policy's, from (failures, requests) of each.

    Each end is left, ever, with at most ``probability``.
    """
    ends = [fraction_interval(*one, probability=probability / 2) for one in (current, candidate)]
    fractions = [failures / max(requests, 1) for failures, requests in (current, candidate)]
    return Interval(fractions[1] - fractions[0], ends[1][0] - ends[0][1], ends[1][1] - ends[0][0])


def fraction_interval(failures: int, requests: int, *, probability: float) -> tuple[float, float]:
    """Both ends of a fraction, each left, ever, with at most ``probability``."""
    if requests == 0:
        return 0.0, 1.0
    most = math.log(1 / probability)
    mixture = (
        math.lgamma(failures + 1) + math.lgamma(requests - failures + 1) - math.lgamma(requests + 2)
    )  # of the Beta function: the likelihood averaged over all fractions

    def is_outside(fraction: float) -> bool:
        return mixture - _log_likelihood(failures, requests, fraction) > most

    share = failures / requests
    low = 0.0 if failures == 0 else _edge(0.0, share, is_outside)
    high = 1.0 if failures == requests else _edge(1.0, share, is_outside)
    return low, high


def _edge(outside: float, inside: float, is_outside: Callable[[float], bool]) -> float:
    for _ in range(_STEPS):
        middle = (outside + inside) / 2
        if is_outside(middle):
            outside = middle
        else:
            inside = middle
    return outside


def _log_likelihood(failures: int, requests: int, fraction: float) -> float:
    successes = requests - failures
    if (failures and fraction <= 0.0) or (successes and fraction >= 1.0):
        return -math.inf
    return (failures * math.log(fraction) if failures else 0.0) + (
        successes * math.log1p(-fraction) if successes else 0.0
    )


def _normal_boundary(count: float, probability: float) -> float:
    """How many standard errors a mean of ``count`` may be off, at any count: the one-sided normal mixture's."""
    reach = count + TIGHTEST_AT
    return math.sqrt(2 * reach / count * math.log1p(math.sqrt(reach / TIGHTEST_AT) / (2 * probability)))


def _students(normal: float, freedom: float) -> float:
    """A normal quantile as Student's distribution has it (Wallace, 1959)."""
    return math.sqrt(freedom * math.expm1(min(normal * normal / freedom, 50.0)))


def _mean(total: float, moments: Moments) -> float:
    return total / moments.count


def _centred(product: float, one: float, other: float, count: int) -> float:
    return product - one * other / count


def _slope(current: Moments, candidate: Moments) -> float:
    spread = sum(_centred(one.xx, one.x, one.x, one.count) for one in (current, candidate))
    if spread < 1e-9 * (current.count + candidate.count):
        return 0.0
    return sum(_centred(one.xy, one.x, one.y, one.count) for one in (current, candidate)) / spread


def _residual_variance(one: Moments, slope: float) -> float:
    squares = (
        _centred(one.yy, one.y, one.y, one.count)
        - 2 * slope * _centred(one.xy, one.x, one.y, one.count)
        + slope * slope * _centred(one.xx, one.x, one.x, one.count)
    )
    return max(squares / (one.count - 1), LEAST_VARIANCE)

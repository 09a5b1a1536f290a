"""The traffic's mix of prefill and decode, from lengths that were foretold at arrival and corrected at the end.

A request adds what it is expected to ask for when it is dispatched, and the difference to what it did ask for when it
ends. So the estimate leads: it does not lag by one answer. While lengths are stationary it is right on average,
whatever the predictor is worth.

Rates are exponential windows: of amounts x at instants t, ``Σ x·exp(−(now − t)/W) / (W·(1 − exp(−age/W)))``.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.bins import BINS, STARTS_B, bin_of, quantiles_of
from llmrouter.lengths.distribution import LEVELS, MAX_TOKENS, MEDIAN, MIN_TOKENS
from llmrouter.quick import quick

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmrouter.domain import EngineProfile
    from llmrouter.lengths.distribution import LengthDistribution

WINDOW_S = 60.0
"""W: a request counts for 37 % after so long."""

MIN_AGE_S = 10.0
"""A younger meter says nothing."""

MIN_REQUESTS = 10.0
"""Fewer requests than this in the windows of all routers together are no mix."""

_HIGH = LEVELS.index(0.9)
_EDGES_Q = np.concatenate(([0.0], (np.array(LEVELS[:-1]) + np.array(LEVELS[1:])) / 2.0, [1.0]))
_MASSES = tuple(np.diff(_EDGES_Q).tolist())
"""Share of a law that stands at each of its quantiles: up to half way to its neighbours."""

_STARTS = STARTS_B.tolist()
_RENEW_S = 20.0 * WINDOW_S
_REQUESTS, _PREFILL, _DECODE, _PREFILL_S, _DECODE_S, _SUMS = range(6)


@dataclass(frozen=True, slots=True)
class TrafficMix:
    """What arrives. Rates are per second; nothing is negative; ``None`` where there is nothing to take it from.

    ``requests`` is the count in the window, older ones weighing less. ``engine_s_per_s`` is the engine time that is
    asked for in a second: engines that would be busy. ``prefill_time_fraction`` is the share of prefill in it.
    Quantiles are of the merged laws of answers.
    """

    requests: float
    requests_per_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    engine_s_per_s: float
    prefill_time_fraction: float | None
    output_p50_tokens: float | None
    output_p90_tokens: float | None


@quick
@dataclass(frozen=True, slots=True)
class Dispatched:
    """One request as it was dispatched: the law of its answer, and the engine that runs it.

    ``sharers`` are the requests in flight on that engine, this one with them: at least 1. ``cached_tokens`` of the
    prompt are in its prefix cache: they are not computed.
    """

    law: LengthDistribution
    prompt_tokens: int
    profile: EngineProfile
    sharers: int
    cached_tokens: int = 0

    def seconds(self, output_tokens: float) -> tuple[float, float]:
        """Engine time with an answer of so many tokens: see ``engine_seconds``."""
        return engine_seconds(
            self.profile, self.prompt_tokens, output_tokens, sharers=self.sharers, cached_tokens=self.cached_tokens
        )


class MixMeter:
    """Measures the mix of one router's requests. ``started_at_s`` is since when it is told of them.

    Instants are of one clock; one that jumps back stands still until it has caught up, one that jumps ahead only makes
    the past weigh less. Memory does not grow.
    """

    def __init__(self, started_at_s: float = 0.0) -> None:
        self._started_at_s = started_at_s
        self._at_s = started_at_s
        self._unit_at_s = started_at_s
        self._sums = [0.0] * (_SUMS + BINS)  # in units that grow by exp(1/W) a second, so that nothing need decay

    def dispatched(self, one: Dispatched, *, now_s: float) -> None:
        """Counts a request by what is expected of it."""
        output_tokens = one.law.expected_tokens
        prefill_s, decode_s = one.seconds(output_tokens)
        unit, sums = self._unit(now_s), self._sums
        sums[_REQUESTS] += unit
        sums[_PREFILL] += unit * (one.prompt_tokens - one.cached_tokens)
        sums[_DECODE] += unit * output_tokens
        sums[_PREFILL_S] += unit * prefill_s
        sums[_DECODE_S] += unit * decode_s
        self._add_law(one.law, unit)

    def finished(self, one: Dispatched, *, output_tokens: float, now_s: float) -> None:
        """Corrects what was expected of a request that was counted; tokens are brought within 1 and 1e6."""
        tokens = min(max(output_tokens, MIN_TOKENS), MAX_TOKENS)
        expected_tokens = one.law.expected_tokens
        (_, expected_s), (_, decode_s) = one.seconds(expected_tokens), one.seconds(tokens)
        unit = self._unit(now_s)
        self._sums[_DECODE] += unit * (tokens - expected_tokens)
        self._sums[_DECODE_S] += unit * (decode_s - expected_s)
        self._add_law(one.law, -unit)
        self._sums[_SUMS + bin_of(tokens)] += unit

    def mix(self, now_s: float) -> TrafficMix | None:
        """The mix now; ``None`` within ``MIN_AGE_S`` of the start."""
        at_s = max(now_s, self._at_s)
        age_s = at_s - self._started_at_s
        if age_s < MIN_AGE_S:
            return None
        window_s = -WINDOW_S * math.expm1(-age_s / WINDOW_S)
        sums = np.maximum(np.array(self._sums) * math.exp((self._unit_at_s - at_s) / WINDOW_S), 0.0)
        requests, prefill, decode, prefill_s, decode_s = sums[:_SUMS].tolist()
        counts_B = sums[_SUMS:]
        total, work_s = float(counts_B.sum()), prefill_s + decode_s
        quantiles_Q = quantiles_of(counts_B[None] / total)[0].tolist() if total > 0.0 else None
        return TrafficMix(
            requests=requests,
            requests_per_s=requests / window_s,
            prefill_tokens_per_s=prefill / window_s,
            decode_tokens_per_s=decode / window_s,
            engine_s_per_s=work_s / window_s,
            prefill_time_fraction=prefill_s / work_s if work_s > 0.0 else None,
            output_p50_tokens=quantiles_Q[MEDIAN] if quantiles_Q else None,
            output_p90_tokens=quantiles_Q[_HIGH] if quantiles_Q else None,
        )

    def _unit(self, now_s: float) -> float:
        """What one counts now, in the unit of the sums."""
        self._at_s = max(self._at_s, now_s)
        age_s = self._at_s - self._unit_at_s
        if age_s <= _RENEW_S:
            return math.exp(age_s / WINDOW_S)
        left = math.exp(-age_s / WINDOW_S)
        self._sums = [one * left for one in self._sums]
        self._unit_at_s = self._at_s
        return 1.0

    def _add_law(self, law: LengthDistribution, weight: float) -> None:
        for tokens, mass in zip(law.quantiles, _MASSES, strict=True):
            self._sums[_SUMS + max(0, bisect_right(_STARTS, tokens) - 1)] += weight * mass


def engine_seconds(
    profile: EngineProfile, prompt_tokens: float, output_tokens: float, *, sharers: int, cached_tokens: float = 0.0
) -> tuple[float, float]:
    """Engine time of one request as (prefill, decode), its share of steps that it has with others.

    With p prompt tokens, c of them cached, and d output tokens in a batch of n, and the letters of
    ``routing/rules.py``::

        prefill = g1·(p − c) + g1b·(p² − c²)
        decode  = d·(b/n + g3 + g2·(p + d/2))

    These are the terms of ``rules.marginal_cost_row``: the prompt's own prefill, and steps that are longer by one
    sequence and its context, which grows from p to p + d. A decode step's base ``b``, which one request alone would
    bear whole, is borne by all n. The base of prefill-only steps is not counted, nor there. Near capacity the sum over
    requests is the time that a simulated engine is busy, within 6 % (a law test holds it).
    """
    p, c, d = prompt_tokens, cached_tokens, output_tokens
    prefill_s = profile.prefill_s_per_token * (p - c) + profile.prefill_s_per_token_squared * (p * p - c * c)
    step_s = profile.base_decode_s / max(sharers, 1) + profile.sequence_s
    return prefill_s, d * (step_s + profile.context_s_per_token * (p + 0.5 * d))


def merged(mixes: Iterable[TrafficMix]) -> TrafficMix | None:
    """The mix of several routers; ``None`` with fewer than ``MIN_REQUESTS`` requests together.

    Rates add up. The fraction is weighted by engine time, which is exact; quantiles by requests, which is exact where
    routers see the same laws.
    """
    all_of = list(mixes)
    requests = sum(one.requests for one in all_of)
    if requests < MIN_REQUESTS:
        return None
    return TrafficMix(
        requests=requests,
        requests_per_s=sum(one.requests_per_s for one in all_of),
        prefill_tokens_per_s=sum(one.prefill_tokens_per_s for one in all_of),
        decode_tokens_per_s=sum(one.decode_tokens_per_s for one in all_of),
        engine_s_per_s=sum(one.engine_s_per_s for one in all_of),
        prefill_time_fraction=_weighted((one.prefill_time_fraction, one.engine_s_per_s) for one in all_of),
        output_p50_tokens=_weighted((one.output_p50_tokens, one.requests) for one in all_of),
        output_p90_tokens=_weighted((one.output_p90_tokens, one.requests) for one in all_of),
    )


def _weighted(values: Iterable[tuple[float | None, float]]) -> float | None:
    """Mean of what is known by its weight; ``None`` where nothing is."""
    known = [(value, weight) for value, weight in values if value is not None and weight > 0.0]
    total = sum(weight for _, weight in known)
    return sum(value * weight / total for value, weight in known) if known else None

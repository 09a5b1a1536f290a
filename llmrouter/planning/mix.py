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
from llmrouter.lengths.distribution import LEVELS, MAX_TOKENS, MIN_TOKENS
from llmrouter.quick import quick

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from llmrouter.domain import EngineProfile
    from llmrouter.lengths.distribution import LengthDistribution

    Floats = NDArray[np.float64]

WINDOW_S = 60.0
"""W: a request counts for 37 % after so long."""

MIN_AGE_S = 10.0
"""A younger meter says nothing."""

MIN_REQUESTS = 10.0
"""Fewer requests than this in the windows of all routers together are no mix."""

_EDGES_Q = np.concatenate(([0.0], (np.array(LEVELS[:-1]) + np.array(LEVELS[1:])) / 2.0, [1.0]))
_MASSES_Q = np.diff(_EDGES_Q)
"""Share of a law that stands at each of its quantiles: up to half way to its neighbours."""

_STARTS = STARTS_B.tolist()
_RENEW_S = 20.0 * WINDOW_S
_LAWS_AT_ONCE = 256
_REQUESTS, _PREFILL, _DECODE, _PREFILL_S, _DECODE_S, _SQUARES, _CONTEXT, _SECONDS, _COUNTS, _COUNTS_SQUARED, _SUMS = (
    range(11)
)
_PROMPTS = _SUMS + BINS
_ADDED = (
    *("requests", "requests_per_s", "prefill_tokens_per_s", "decode_tokens_per_s", "engine_s_per_s"),
    *("prefill_squared_per_s", "context_tokens_per_s"),
)
_SEEN_SECONDS = 10.0
"""Fewer seconds than this say nothing of how bursty arrivals are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficMix:
    """What arrives. Rates are per second; nothing is negative; ``None`` where there is nothing to take it from.

    With p prompt tokens, c of them cached, and d output tokens of a request:

    Attributes:
        requests: the count in the window, older ones weighing less.
        requests_per_s: of them.
        prefill_tokens_per_s: Σ(p − c).
        decode_tokens_per_s: Σ d.
        engine_s_per_s: engine time that is asked for in a second: engines that would be busy.
        prefill_time_fraction: share of prefill in it.
        prefill_squared_per_s: Σ(p² − c²), which attention to the prompt costs.
        context_tokens_per_s: Σ d·(p + d/2), which attention costs the decode steps.
        dispersion: index of dispersion: variance of the dispatches in a second over their mean; 1 for Poisson.
        prompt_tokens: p − c at ``LEVELS``.
        output_tokens: d at ``LEVELS``, of the merged laws of answers.
    """

    requests: float = 0.0
    requests_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0
    engine_s_per_s: float = 0.0
    prefill_time_fraction: float | None = None
    prefill_squared_per_s: float = 0.0
    context_tokens_per_s: float = 0.0
    dispersion: float | None = None
    prompt_tokens: tuple[float, ...] | None = None
    output_tokens: tuple[float, ...] | None = None


@quick
@dataclass(frozen=True, slots=True)
class Dispatched:
    """One request as it was dispatched: the law of its answer, the engine that runs it, and the model it asks for.

    ``sharers`` are the requests in flight on that engine, this one with them: at least 1. ``cached_tokens`` of the
    prompt are in its prefix cache: they are not computed.
    """

    law: LengthDistribution
    prompt_tokens: int
    profile: EngineProfile
    sharers: int
    cached_tokens: int = 0
    model: str = ""

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
        self._second_at_s = started_at_s
        self._in_second = 0
        # in units that grow by exp(1/W) a second, so that nothing need decay
        self._sums = [0.0] * (_SUMS + 2 * BINS)
        self._laws: list[tuple[tuple[float, ...], float]] = []
        """Quantiles and weights that are not in the sums yet."""

    def dispatched(self, one: Dispatched, *, now_s: float) -> None:
        """Counts a request by what is expected of it."""
        output_tokens, prompt_tokens, cached_tokens = one.law.expected_tokens, one.prompt_tokens, one.cached_tokens
        prefill_s, decode_s = one.seconds(output_tokens)
        unit, sums = self._unit(now_s), self._sums
        sums[_REQUESTS] += unit
        sums[_PREFILL] += unit * (prompt_tokens - cached_tokens)
        sums[_DECODE] += unit * output_tokens
        sums[_PREFILL_S] += unit * prefill_s
        sums[_DECODE_S] += unit * decode_s
        sums[_SQUARES] += unit * (prompt_tokens * prompt_tokens - cached_tokens * cached_tokens)
        sums[_CONTEXT] += unit * output_tokens * (prompt_tokens + 0.5 * output_tokens)
        if self._at_s - self._second_at_s >= 1.0:
            self._end_second(unit)
        self._in_second += 1
        sums[_PROMPTS + max(0, bisect_right(_STARTS, prompt_tokens - cached_tokens) - 1)] += unit
        self._add_law(one.law, unit)

    def finished(self, one: Dispatched, *, output_tokens: float, now_s: float) -> None:
        """Corrects what was expected of a request that was counted; tokens are brought within 1 and 1e6."""
        tokens = min(max(output_tokens, MIN_TOKENS), MAX_TOKENS)
        expected_tokens = one.law.expected_tokens
        (_, expected_s), (_, decode_s) = one.seconds(expected_tokens), one.seconds(tokens)
        unit = self._unit(now_s)
        self._sums[_DECODE] += unit * (tokens - expected_tokens)
        self._sums[_DECODE_S] += unit * (decode_s - expected_s)
        context = tokens * (one.prompt_tokens + 0.5 * tokens)
        self._sums[_CONTEXT] += unit * (context - expected_tokens * (one.prompt_tokens + 0.5 * expected_tokens))
        self._add_law(one.law, -unit)
        self._sums[_SUMS + bin_of(tokens)] += unit

    def mix(self, now_s: float) -> TrafficMix | None:
        """The mix now; ``None`` within ``MIN_AGE_S`` of the start."""
        at_s = max(now_s, self._at_s)
        age_s = at_s - self._started_at_s
        if age_s < MIN_AGE_S:
            return None
        window_s = -WINDOW_S * math.expm1(-age_s / WINDOW_S)
        self._add_laws()
        sums = np.maximum(np.array(self._sums) * math.exp((self._unit_at_s - at_s) / WINDOW_S), 0.0)
        requests, prefill, decode, prefill_s, decode_s, squares, context, *counted = sums[:_SUMS].tolist()
        work_s = prefill_s + decode_s
        return TrafficMix(
            requests=requests,
            requests_per_s=requests / window_s,
            prefill_tokens_per_s=prefill / window_s,
            decode_tokens_per_s=decode / window_s,
            engine_s_per_s=work_s / window_s,
            prefill_time_fraction=prefill_s / work_s if work_s > 0.0 else None,
            prefill_squared_per_s=squares / window_s,
            context_tokens_per_s=context / window_s,
            dispersion=_dispersion(*counted),
            prompt_tokens=_law(sums[_PROMPTS:]),
            output_tokens=_law(sums[_SUMS:_PROMPTS]),
        )

    def _unit(self, now_s: float) -> float:
        """What one counts now, in the unit of the sums."""
        self._at_s = max(self._at_s, now_s)
        age_s = self._at_s - self._unit_at_s
        if age_s <= _RENEW_S:
            return math.exp(age_s / WINDOW_S)
        self._add_laws()
        left = math.exp(-age_s / WINDOW_S)
        self._sums = [one * left for one in self._sums]
        self._unit_at_s = self._at_s
        return 1.0

    def _end_second(self, unit: float) -> None:
        """Counts the second that is over, and those without a dispatch since."""
        past = min(math.floor(self._at_s - self._second_at_s), round(WINDOW_S))
        self._sums[_SECONDS] += unit * past
        self._sums[_COUNTS] += unit * self._in_second
        self._sums[_COUNTS_SQUARED] += unit * self._in_second * self._in_second
        self._second_at_s = max(self._second_at_s + past, self._at_s - 1.0)
        self._in_second = 0

    def _add_law(self, law: LengthDistribution, weight: float) -> None:
        self._laws.append((law.quantiles, weight))
        if len(self._laws) >= _LAWS_AT_ONCE:
            self._add_laws()

    def _add_laws(self) -> None:
        """Adds the laws that came lately, all at once."""
        if not self._laws:
            return
        tokens, weights = zip(*self._laws, strict=True)
        self._laws.clear()
        bins_NQ = np.maximum(STARTS_B.searchsorted(np.array(tokens), side="right") - 1, 0)
        masses_NQ = np.multiply.outer(weights, _MASSES_Q)
        counts = np.bincount(bins_NQ.ravel(), masses_NQ.ravel(), minlength=BINS).tolist()
        sums = self._sums
        for place, count in enumerate(counts, start=_SUMS):
            sums[place] += count


class Mixes:
    """The mix of one router's requests, model by model. The names are those of its configuration, and so are few."""

    def __init__(self, started_at_s: float = 0.0) -> None:
        self._started_at_s = started_at_s
        self._meters: dict[str, MixMeter] = {}

    def dispatched(self, one: Dispatched, *, now_s: float) -> None:
        """Counts a request by what is expected of it."""
        meter = self._meters.get(one.model)
        if meter is None:
            meter = self._meters[one.model] = MixMeter(self._started_at_s)
        meter.dispatched(one, now_s=now_s)

    def finished(self, one: Dispatched, *, output_tokens: float, now_s: float) -> None:
        """Corrects what was expected of a request that was counted."""
        self._meters[one.model].finished(one, output_tokens=output_tokens, now_s=now_s)

    def by_model(self, now_s: float) -> dict[str, TrafficMix]:
        """The mix of each model that was asked for; none within ``MIN_AGE_S`` of the start."""
        found = {model: meter.mix(now_s) for model, meter in self._meters.items()}
        return {model: mix for model, mix in found.items() if mix is not None}

    def whole(self, now_s: float) -> TrafficMix | None:
        """That of all models together; ``None`` within ``MIN_AGE_S`` of the start."""
        if now_s - self._started_at_s < MIN_AGE_S:
            return None
        return added(self.by_model(now_s).values())


def _dispersion(seconds: float, counts: float, counts_squared: float) -> float | None:
    """Variance over mean of counts, from how many there are and their moments."""
    if seconds < _SEEN_SECONDS or counts <= 0.0:
        return None
    return max(counts_squared / counts - counts / seconds, 0.0)


def _law(counts_B: Floats) -> tuple[float, ...] | None:
    """Quantiles at ``LEVELS``, to a token."""
    total = float(counts_B.sum())
    if total <= 0.0:
        return None
    return tuple(round(one, 1) for one in quantiles_of(counts_B[None] / total)[0].tolist())


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
    """The mix of several routers; ``None`` with fewer than ``MIN_REQUESTS`` requests together: see ``added``."""
    whole = added(mixes)
    return whole if whole.requests >= MIN_REQUESTS else None


def added(mixes: Iterable[TrafficMix]) -> TrafficMix:
    """Mixes of several routers or models as one.

    Rates add up. The fraction is weighted by engine time, which is exact; quantiles by requests, which is exact where
    their laws are the same. What each has of dispersion beyond Poisson's adds up: a burst comes to all at once.
    """
    all_of = list(mixes)
    return TrafficMix(
        **{name: sum(getattr(one, name) for one in all_of) for name in _ADDED},
        prefill_time_fraction=_weighted((one.prefill_time_fraction, one.engine_s_per_s) for one in all_of),
        dispersion=_dispersed(all_of),
        prompt_tokens=_laws((one.prompt_tokens, one.requests) for one in all_of),
        output_tokens=_laws((one.output_tokens, one.requests) for one in all_of),
    )


def _dispersed(mixes: Iterable[TrafficMix]) -> float | None:
    """Of all streams together, where they are parts of one; ``None`` where none is known."""
    known = [one.dispersion - 1.0 for one in mixes if one.dispersion is not None]
    return max(1.0 + sum(known), 0.0) if known else None


def _laws(laws: Iterable[tuple[tuple[float, ...] | None, float]]) -> tuple[float, ...] | None:
    """Quantiles, each weighted; ``None`` where nothing is known."""
    known = [(law, weight) for law, weight in laws if law is not None and weight > 0.0]
    total = sum(weight for _, weight in known)
    if not known:
        return None
    return tuple(sum(law[place] * weight for law, weight in known) / total for place in range(len(LEVELS)))


def _weighted(values: Iterable[tuple[float | None, float]]) -> float | None:
    """Mean of what is known by its weight; ``None`` where nothing is."""
    known = [(value, weight) for value, weight in values if value is not None and weight > 0.0]
    total = sum(weight for _, weight in known)
    return sum(value * weight / total for value, weight in known) if known else None

"""The traffic's mix of prefill and decode, from lengths that were foretold at arrival and corrected at the end.

A request adds what it is expected to ask for when it is dispatched, and the difference to what it did ask for when it
ends. So the estimate leads: it does not lag by one answer. While lengths are stationary it is right on average,
whatever the predictor is worth.

Rates are exponential windows: of amounts x at instants t, ``Σ x·exp(−(now − t)/W) / (W·(1 − exp(−age/W)))``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from llmrouter.lengths.bins import BINS, STARTS_B, quantiles_of
from llmrouter.lengths.distribution import LEVELS, MAX_TOKENS, MIN_TOKENS
from llmrouter.quick import quick

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from llmrouter.domain import EngineProfile
    from llmrouter.lengths.distribution import LengthDistribution

    Floats = NDArray[np.float64]

Amount = TypeVar("Amount", float, "Floats")

WINDOW_S = 60.0
"""W: a request counts for 37 % after so long."""

MIN_AGE_S = 10.0
"""A younger meter says nothing."""

MIN_REQUESTS = 10.0
"""Fewer requests than this in the windows of all routers together are no mix."""

_EDGES_Q = np.concatenate(([0.0], (np.array(LEVELS[:-1]) + np.array(LEVELS[1:])) / 2.0, [1.0]))
_MASSES_Q = np.diff(_EDGES_Q)
"""Share of a law that stands at each of its quantiles: up to half way to its neighbours."""

_RENEW_S = 20.0 * WINDOW_S
_AT_ONCE = 512
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


_Event = tuple[Dispatched, float, float | None]
"""A request, when (s), and how many tokens its answer had: ``None`` of a dispatch."""


class MixMeter:
    """Measures the mix of one router's requests. ``started_at_s`` is since when it is told of them.

    Instants are of one clock; one that jumps back stands still until it has caught up, one that jumps ahead only makes
    the past weigh less. Memory does not grow: what it is told waits to be counted, ``_AT_ONCE`` events at most.
    """

    def __init__(self, started_at_s: float = 0.0) -> None:
        self._started_at_s = started_at_s
        self._at_s = started_at_s
        self._unit_at_s = started_at_s
        self._second_at_s = started_at_s
        self._in_second = 0
        # in units that grow by exp(1/W) a second, so that nothing need decay
        self._sums = np.zeros(_SUMS + 2 * BINS)
        self._events: list[_Event] = []

    def dispatched(self, one: Dispatched, *, now_s: float) -> None:
        """Counts a request by what is expected of it."""
        self._events.append((one, now_s, None))
        if len(self._events) >= _AT_ONCE:
            self._count()

    def finished(self, one: Dispatched, *, output_tokens: float, now_s: float) -> None:
        """Corrects what was expected of a request that was counted; tokens are brought within 1 and 1e6."""
        self._events.append((one, now_s, output_tokens))
        if len(self._events) >= _AT_ONCE:
            self._count()

    def mix(self, now_s: float) -> TrafficMix | None:
        """The mix now; ``None`` within ``MIN_AGE_S`` of the start."""
        self._count()
        at_s = max(now_s, self._at_s)
        age_s = at_s - self._started_at_s
        if age_s < MIN_AGE_S:
            return None
        window_s = -WINDOW_S * math.expm1(-age_s / WINDOW_S)
        sums = np.maximum(self._sums * math.exp((self._unit_at_s - at_s) / WINDOW_S), 0.0)
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

    def _count(self) -> None:
        """Adds all that waits, at once: a dispatch by what was expected, an end by how far that was off."""
        events, self._events = self._events, []
        if not events:
            return
        ones, told_at_s, told = zip(*events, strict=True)
        at_N = np.maximum(np.maximum.accumulate(np.array(told_at_s, dtype=np.float64)), self._at_s)
        self._at_s = float(at_N[-1])
        units_N = self._units(at_N)
        is_new_N = np.array([tokens is None for tokens in told])
        self._count_seconds(at_N[is_new_N].tolist(), units_N[is_new_N].tolist())
        tokens_N = np.array([MIN_TOKENS if tokens is None else tokens for tokens in told], dtype=np.float64)
        tokens_N = np.minimum(np.maximum(tokens_N, MIN_TOKENS), MAX_TOKENS)
        new_N, ended_N = np.where(is_new_N, units_N, 0.0), np.where(is_new_N, 0.0, units_N)
        by_profile: dict[int, list[int]] = {}
        for place, one in enumerate(ones):
            by_profile.setdefault(id(one.profile), []).append(place)
        for places in by_profile.values():
            alike = [ones[place] for place in places]
            self._add(alike, tokens_N[places], new_N[places], ended_N[places])

    def _add(self, alike: Sequence[Dispatched], tokens_N: Floats, new_N: Floats, ended_N: Floats) -> None:
        """Adds events of requests of one profile: the weight of each that is new, and of each that has ended."""
        columns = [(one.prompt_tokens, one.cached_tokens, one.sharers, one.law.expected_tokens) for one in alike]
        prompt_N, cached_N, sharers_N, expected_N = np.array(columns, dtype=np.float64).T
        seconds = partial(engine_seconds, alike[0].profile, prompt_N, sharers=sharers_N, cached_tokens=cached_N)
        (prefill_s_N, expected_s_N), (_, decode_s_N) = seconds(expected_N), seconds(tokens_N)
        signed_N = new_N - ended_N
        context_N = expected_N * (prompt_N + 0.5 * expected_N)
        sums = self._sums
        sums[_REQUESTS] += new_N.sum()
        sums[_PREFILL] += new_N @ (prompt_N - cached_N)
        sums[_DECODE] += signed_N @ expected_N + ended_N @ tokens_N
        sums[_PREFILL_S] += new_N @ prefill_s_N
        sums[_DECODE_S] += signed_N @ expected_s_N + ended_N @ decode_s_N
        sums[_SQUARES] += new_N @ (prompt_N * prompt_N - cached_N * cached_N)
        sums[_CONTEXT] += signed_N @ context_N + ended_N @ (tokens_N * (prompt_N + 0.5 * tokens_N))
        sums[_PROMPTS:] += _counted(prompt_N - cached_N, new_N)
        latent_NQ = np.array([one.law.latent for one in alike])
        limit_N = np.array([one.law.max_output_tokens for one in alike])
        masses_NQ = np.multiply.outer(signed_N, _MASSES_Q)
        sums[_SUMS:_PROMPTS] += _counted(np.minimum(latent_NQ, limit_N[:, None]), masses_NQ)
        sums[_SUMS:_PROMPTS] += _counted(tokens_N, ended_N)

    def _units(self, at_N: Floats) -> Floats:
        """What one counts at each of the instants, in the unit of the sums."""
        age_s = self._at_s - self._unit_at_s
        if age_s > _RENEW_S:
            self._sums *= math.exp(-age_s / WINDOW_S)
            self._unit_at_s = self._at_s
        units_N: Floats = np.exp((at_N - self._unit_at_s) / WINDOW_S)
        return units_N

    def _count_seconds(self, at_s: Sequence[float], units: Sequence[float]) -> None:
        """Counts dispatches by the second; seconds that are over go to the sums, those without a dispatch as well."""
        for now_s, unit in zip(at_s, units, strict=True):
            if now_s - self._second_at_s >= 1.0:
                past = min(math.floor(now_s - self._second_at_s), round(WINDOW_S))
                self._sums[_SECONDS] += unit * past
                self._sums[_COUNTS] += unit * self._in_second
                self._sums[_COUNTS_SQUARED] += unit * self._in_second * self._in_second
                self._second_at_s = max(self._second_at_s + past, now_s - 1.0)
                self._in_second = 0
            self._in_second += 1


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


def _counted(tokens: Floats, weights: Floats) -> Floats:
    """Weights by the bin that tokens are in, fewer than one in the first: shape (bins)."""
    bins = np.maximum(STARTS_B.searchsorted(tokens.ravel(), side="right") - 1, 0)
    return np.bincount(bins, weights.ravel(), minlength=BINS).astype(np.float64)


def _law(counts_B: Floats) -> tuple[float, ...] | None:
    """Quantiles at ``LEVELS``, to a token."""
    total = float(counts_B.sum())
    if total <= 0.0:
        return None
    return tuple(round(one, 1) for one in quantiles_of(counts_B[None] / total)[0].tolist())


def engine_seconds(
    profile: EngineProfile,
    prompt_tokens: Amount,
    output_tokens: Amount,
    *,
    sharers: Amount,
    cached_tokens: Amount | float = 0.0,
) -> tuple[Amount, Amount]:
    """Engine time of each request as (prefill, decode), its share of steps that it has with others.

    With p prompt tokens, c of them cached, and d output tokens in a batch of n, at least 1, and the letters of
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
    step_s = profile.base_decode_s / sharers + profile.sequence_s
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

"""What the instances of one pool make of a load: step times, waiting and room, in steady state.

With the letters of ``routing/rules.py``, per instance: requests arrive at λ; their prompts lengthen the steps of the
others by G seconds (``stall``), their answers have d tokens and read k = d·(p + d/2) tokens of context in all. A step
with decodes alone lasts ``b + g3·B + g2·C``, and by Little's law ``B = λ·d·T``, ``C = λ·k·T`` where T is the mean time
between the tokens of an answer. All time is spent in steps, so ``1 = (b + g3·B + g2·C)/T + λ·G``, and::

    T = b / (1 − ρ),    ρ = λ·(G + g3·d + g2·k)

ρ is the load: at 1 the instance cannot keep up. The number in the batch is that of a processor-sharing queue whose
service slows as it fills; linearised, its variance is ``z·B/(1 − ρ)`` where z = (1 + I)/2 is the peakedness of arrivals
whose index of dispersion is I (Eckberg 1983, exponential service). Prompts wait for each other, as in a G/G/m queue
of all instances (``queueing.waiting``); requests wait for room as where a G/G/m queue has very many servers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from llmrouter.domain import EngineMode, Role
from llmrouter.planning.queueing import NO_WAITING, Waiting, normal_within, waiting, waits_many

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.domain import EngineProfile
    from llmrouter.planning.demand import ModelDemand

PREFILL, DECODE, MEMORY = "prefill", "decode", "memory"
USABLE_KV = 0.9
"""Of an engine's KV: what is left is blocks that are not full, the watermark, and answers that grow at once."""

_SETTLED = 4
"""Rounds after which the batch and the budget that it leaves for prompts agree."""
_NEARLY = 0.999
_LEAST_PEAKEDNESS = 0.25
"""Arrivals that are more even than this do not make a batch more even."""


@dataclass(frozen=True, slots=True)
class Station:
    """The instances of one pool under a load that they keep up with.

    Attributes:
        profile: of each instance.
        role: what they do.
        load: ρ, the share of time without which no step could be longer; below 1.
        token_s: T, mean time between the tokens of an answer.
        steady_s: the part of T that is decode steps: ``b + g3·B + g2·C``.
        step_deviation_s: of that part, from the number in the batch.
        sequences: B.
        prompts: waiting for the prompts before one's own.
        room: waiting for a place in a batch, or KV.
        prompts_per_s: rate of prompts that stall an instance's answers.
        stall_s: mean stall of those.
        stall_s_squared: mean of its square.
        dispersion: of the arrivals at one instance.
        tightest: what binds first: ``prefill``, ``decode`` or ``memory``.
    """

    profile: EngineProfile
    role: Role
    load: float
    token_s: float
    steady_s: float
    step_deviation_s: float
    sequences: float
    prompts: Waiting
    room: Waiting
    prompts_per_s: float
    stall_s: float
    stall_s_squared: float
    dispersion: float
    tightest: str

    def first_token_s(self, prefill_tokens: float) -> float:
        """Seconds from when nothing is before it until a prompt is computed, the step in progress with them."""
        decoding = -math.expm1(-self.sequences)
        own_s = prompt_s(self.profile, prefill_tokens)
        if self.role is Role.PREFILL or self.profile.mode is EngineMode.PREFILL_FIRST:
            return own_s + 0.5 * decoding * self.steady_s
        steps = _steps(self.profile, prefill_tokens, self.sequences)
        beside_s = steps * self.steady_s + stall_s(self.profile, prefill_tokens, self.sequences)
        return (1.0 - decoding) * own_s + decoding * (beside_s + 0.5 * self.token_s)

    def ttft_within(self, prefill_tokens: float, seconds: float) -> float:
        """Share of the prompts of so many tokens that are computed within ``seconds``."""
        left_s = seconds - self.first_token_s(prefill_tokens)
        return self.prompts.within(left_s) * self.room.within(left_s)

    def tpot_within(self, output_tokens: float, seconds: float) -> float:
        """Share of the answers of so many tokens whose mean gap is at most ``seconds``; all where there is no gap.

        The time of the gaps is a delay cycle: steady steps, the stalls of prompts that arrive meanwhile, and so on, of
        which λ·G is the share of stalls; its variance is that of M/G/1 (Kleinrock 1975, 5.8). No prompt at all, or
        normal with the moments of what is left.
        """
        gaps = output_tokens - 1.0
        if gaps < 1.0:
            return 1.0
        expected = self.prompts_per_s * gaps * self.token_s
        none = math.exp(-expected)
        amplified = self.token_s / self.steady_s
        calm = normal_within(seconds, self.steady_s, self.step_deviation_s)
        if none > 1.0 - 1e-9:
            return calm
        mean_s = expected * self.stall_s / gaps / (1.0 - none)
        spread = self.stall_s_squared + (self.dispersion - 1.0) * self.stall_s**2
        square = (expected * spread + (expected * self.stall_s) ** 2) / gaps**2 / (1.0 - none)
        variance = max(square - mean_s * mean_s, 0.0) + self.step_deviation_s**2
        deviation_s = amplified * math.sqrt(variance)
        return none * calm + (1.0 - none) * normal_within(seconds, self.steady_s + mean_s, deviation_s)


@lru_cache(maxsize=256)
def request_s(profile: EngineProfile, role: Role, demand: ModelDemand) -> float:
    """Load that one request a second is to one instance: engine seconds; memory counts as time, too.

    With room for M sequences, ``B ≤ M`` is ``λ·(d·b/M + w) ≤ 1`` where w are the seconds.
    """
    profile = with_caches(profile, (demand,))
    if role is Role.PREFILL:
        return _mean([packed_s(profile, tokens, 0.0) for tokens in demand.prefill_tokens])
    output_tokens = demand.mean_output_tokens
    seconds = profile.sequence_s * output_tokens + profile.context_s_per_token * demand.context_tokens
    if role is Role.MIXED:
        seconds += _mean([stall_s(profile, tokens, 0.0) for tokens in demand.prefill_tokens])
    room = room_of(profile, demand.context_tokens / max(output_tokens, 1.0))
    return seconds + output_tokens * profile.base_decode_s / room


def station(profile: EngineProfile, role: Role, instances: int, demands: Sequence[ModelDemand]) -> Station | str:
    """The pool's steady state under what all its models ask of it; else what it cannot keep up with, in one word."""
    rate = sum(one.requests_per_s for one in demands)
    if rate <= 0.0:
        return _station_of(profile, role)
    if instances < 1:
        return PREFILL if role is Role.PREFILL else DECODE
    asked = _asked(demands, rate)
    profile = with_caches(profile, demands)
    if role is Role.PREFILL:
        return _prefilling(profile, instances, asked)
    return _answering(profile, role, instances, asked)


@dataclass(frozen=True, slots=True)
class _Asked:
    """All models' demand as one: prompts as (mass, tokens to compute), means of d and k."""

    rate: float
    prompts: tuple[tuple[float, float], ...]
    output_tokens: float
    context_tokens: float
    dispersion: float


def _asked(demands: Sequence[ModelDemand], rate: float) -> _Asked:
    shares = [(one.requests_per_s / rate, one) for one in demands]
    prompts = [(share / len(one.prefill_tokens), tokens) for share, one in shares for tokens in one.prefill_tokens]
    return _Asked(
        rate,
        tuple(prompts),
        sum(share * one.mean_output_tokens for share, one in shares),
        sum(share * one.context_tokens for share, one in shares),
        sum(share * one.dispersion for share, one in shares),
    )


def _answering(profile: EngineProfile, role: Role, instances: int, asked: _Asked) -> Station | str:
    """Instances that decode, prompts beside or not."""
    each = asked.rate / instances
    answers_s = profile.sequence_s * asked.output_tokens + profile.context_s_per_token * asked.context_tokens
    sequences = load = 0.0
    stalls = (0.0, 0.0, 0.0)
    for _ in range(_SETTLED):
        if role is Role.MIXED:
            stalls = _stalls(profile, asked.prompts, sequences)
        before = sequences
        load = each * (stalls[1] + answers_s)
        if load >= 1.0:
            return PREFILL if stalls[1] > answers_s else DECODE
        sequences = each * asked.output_tokens * profile.base_decode_s / (1.0 - load)
        if role is not Role.MIXED or abs(sequences - before) < 1.0:
            break
    token_s = profile.base_decode_s / (1.0 - load)
    context_tokens = asked.context_tokens / max(asked.output_tokens, 1.0)
    places = room_of(profile, context_tokens)
    if sequences >= places:
        return MEMORY
    waits = (
        _prompts_wait(profile, instances, asked, sequences=sequences, load=load) if role is Role.MIXED else NO_WAITING
    )
    if waits is None:
        return PREFILL
    each_dispersion = 1.0 + (asked.dispersion - 1.0) / instances
    deviation = math.sqrt(max(0.5 * (1.0 + each_dispersion), _LEAST_PEAKEDNESS) * sequences / (1.0 - load))
    spare = instances * (places - sequences)
    some = max(stalls[0], 1e-12)
    return Station(
        profile=profile,
        role=role,
        load=max(load, sequences / places),
        token_s=token_s,
        steady_s=token_s * (1.0 - each * stalls[1]),
        step_deviation_s=(profile.sequence_s + profile.context_s_per_token * context_tokens) * deviation,
        sequences=sequences,
        prompts=waits,
        room=Waiting(waits_many(spare, math.sqrt(instances) * deviation), asked.output_tokens * token_s / spare),
        prompts_per_s=each * stalls[0],
        stall_s=stalls[1] / some,
        stall_s_squared=stalls[2] / some,
        dispersion=each_dispersion,
        tightest=MEMORY if sequences > load * places else PREFILL if stalls[1] > answers_s else DECODE,
    )


def with_caches(profile: EngineProfile, demands: Sequence[ModelDemand]) -> EngineProfile:
    """The profile whose attention costs per u² what it does per p² − c²: what is cached is attended to as well."""
    asked = sum(one.requests_per_s * one.prefill_tokens_squared for one in demands)
    own = sum(one.requests_per_s * _mean([tokens * tokens for tokens in one.prefill_tokens]) for one in demands)
    if own <= 0.0 or profile.prefill_s_per_token_squared == 0.0:
        return profile
    return replace(profile, prefill_s_per_token_squared=profile.prefill_s_per_token_squared * asked / own)


def room_of(profile: EngineProfile, context_tokens: float) -> float:
    """Sequences of so much context that fit one instance, by its batch and its KV."""
    return min(float(profile.max_sequences), USABLE_KV * profile.kv_tokens / max(context_tokens, 1.0))


def prompt_s(profile: EngineProfile, tokens: float) -> float:
    """A prompt computed alone."""
    steps = 1.0 if profile.mode is EngineMode.PREFILL_FIRST else float(max(1, math.ceil(tokens / profile.token_budget)))
    linear_s = steps * profile.base_prefill_s + profile.prefill_s_per_token * tokens
    return max(linear_s + profile.prefill_s_per_token_squared * tokens * tokens, profile.prefill_floor_s)


def packed_s(profile: EngineProfile, tokens: float, sequences: float) -> float:
    """A prompt's share of steps that prompts fill, beside so many decoding sequences."""
    squared_s = profile.prefill_s_per_token_squared * tokens * tokens
    if profile.mode is EngineMode.PREFILL_FIRST or sequences <= 0.0:
        return tokens * (profile.base_prefill_s / profile.token_budget + profile.prefill_s_per_token) + squared_s
    budget = _budget(profile, sequences)
    full_s = max(profile.base_decode_s, profile.base_prefill_s + profile.prefill_s_per_token * budget)
    return tokens / budget * full_s + squared_s


def stall_s(profile: EngineProfile, tokens: float, sequences: float) -> float:
    """By how much a prompt delays every answer of its instance: alone, or by what it adds to steps with decodes."""
    if profile.mode is EngineMode.PREFILL_FIRST:
        return prompt_s(profile, tokens) if tokens > 0.0 else 0.0
    steps = _steps(profile, tokens, sequences)
    longer_s = profile.base_prefill_s + profile.prefill_s_per_token * tokens / steps - profile.base_decode_s
    return steps * max(longer_s, 0.0) + profile.prefill_s_per_token_squared * tokens * tokens


def _steps(profile: EngineProfile, tokens: float, sequences: float) -> int:
    return max(1, math.ceil(tokens / _budget(profile, sequences)))


def _budget(profile: EngineProfile, sequences: float) -> float:
    return max(profile.token_budget - min(sequences, profile.max_sequences), 1.0)


def _stalls(
    profile: EngineProfile, prompts: Sequence[tuple[float, float]], sequences: float
) -> tuple[float, float, float]:
    """Share of the prompts that stall at all, mean stall of all prompts, and mean of its square."""
    stalls = [(mass, stall_s(profile, tokens, sequences)) for mass, tokens in prompts]
    return sum(mass for mass, one in stalls if one > 0.0), *_moments(stalls)


def _prompts_wait(
    profile: EngineProfile, instances: int, asked: _Asked, *, sequences: float, load: float
) -> Waiting | None:
    """Waiting of prompts for those before them, beside the decode steps that chunks go with."""
    answers_s = 0.0
    if profile.mode is EngineMode.CHUNKED:
        steady_s = profile.base_decode_s / (1.0 - load)
        answers_s = max(steady_s - profile.base_decode_s, 0.0) / _budget(profile, sequences)
    mean, square = _moments(
        [(mass, packed_s(profile, tokens, max(sequences, 1e-9)) + answers_s * tokens) for mass, tokens in asked.prompts]
    )
    if mean <= 0.0:
        return NO_WAITING
    return waiting(
        instances, asked.rate, mean, service_scv=max(square / mean**2 - 1.0, 0.0), arrivals_scv=asked.dispersion
    )


def _prefilling(profile: EngineProfile, instances: int, asked: _Asked) -> Station | str:
    """Instances that compute prompts alone: the busier they are, the fuller their steps."""
    packed, _ = _moments([(mass, packed_s(profile, tokens, 0.0)) for mass, tokens in asked.prompts])
    load = asked.rate * packed / instances
    if load >= 1.0:
        return PREFILL
    services = [
        (mass, load * packed_s(profile, tokens, 0.0) + (1.0 - load) * prompt_s(profile, tokens))
        for mass, tokens in asked.prompts
    ]
    mean, square = _moments(services)
    mean = min(mean, _NEARLY * instances / asked.rate)
    waits = waiting(
        instances, asked.rate, mean, service_scv=max(square / mean**2 - 1.0, 0.0), arrivals_scv=asked.dispersion
    )
    return PREFILL if waits is None else _station_of(profile, Role.PREFILL, load=load, prompts=waits)


def _moments(weighted: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean and mean square."""
    return sum(mass * one for mass, one in weighted), sum(mass * one * one for mass, one in weighted)


def _station_of(profile: EngineProfile, role: Role, *, load: float = 0.0, prompts: Waiting = NO_WAITING) -> Station:
    """One without answers."""
    return Station(
        profile=profile,
        role=role,
        load=load,
        token_s=profile.base_decode_s,
        steady_s=profile.base_decode_s,
        step_deviation_s=0.0,
        sequences=0.0,
        prompts=prompts,
        room=NO_WAITING,
        prompts_per_s=0.0,
        stall_s=0.0,
        stall_s_squared=0.0,
        dispersion=1.0,
        tightest=PREFILL if role is Role.PREFILL else DECODE,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

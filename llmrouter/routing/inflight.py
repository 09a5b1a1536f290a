"""In-flight arithmetic: what one reservation adds to its instances' loads, and whether a dispatch fits.

The ledgers keep, for every instance, the sum of the contributions of its reservations. The Lua scripts of the Redis
ledger repeat these formulas; the ledger conformance suite holds the two against each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.domain import EngineSignal, Load

if TYPE_CHECKING:
    from llmrouter.domain import EngineProfile, Reservation, Room


FULL_KV_FRACTION = 0.9
"""Share of an engine's KV that those which run may have where KV still counts as free."""

LONG_QUEUE_S = 1.0
"""Seconds of prefill that wait on an engine where prefill is what it lacks."""

QUEUE_FACTOR = 4
"""How many times its batch such an engine may have in flight."""

UNBOUNDED = -1
"""A KV limit that bounds nothing."""


def contribution(reservation: Reservation) -> Load:
    """What a reservation adds to the load of its instance (tokens).

    Cached prompt tokens are not computed, so that nobody waits for them; but they are context, and fill KV, as others.
    So are those that another instance computes.
    """
    prompt_tokens, generated_tokens, uncached_tokens = reservation.prompt_tokens, reservation.generated_tokens, 0
    if not reservation.prefilled and not reservation.prefill_instance_id:
        uncached_tokens = prompt_tokens - reservation.cached_tokens
    left_tokens = reservation.predicted_output_tokens - generated_tokens
    return Load(
        1,
        prompt_tokens + generated_tokens,
        max(0, uncached_tokens),
        max(0.0, left_tokens),
    )


def prefill_contribution(reservation: Reservation) -> Load | None:
    """What a reservation adds to the load of the other instance that computes its prompt, until its first token.

    ``None`` where there is no such instance, or the first token is there.
    """
    if reservation.prefilled or not reservation.prefill_instance_id:
        return None
    return Load(
        requests=1,
        context_tokens=reservation.prompt_tokens,
        queued_prefill_tokens=max(0, reservation.prompt_tokens - reservation.prefill_cached_tokens),
    )


def kv_bound(room: Room) -> int:
    """The KV limit as ``fits`` takes it (tokens): at least 0, or ``UNBOUNDED``."""
    limit = room.kv_limit_tokens
    return UNBOUNDED if limit is None else max(0, limit)


def has_room(load: Load, room: Room, *, prompt_tokens: int, predicted_output_tokens: float) -> bool:
    """Whether one more request fits: see ``fits``."""
    return fits(
        load.requests,
        load.context_tokens,
        load.remaining_decode_tokens,
        room.max_requests,
        kv_bound(room),
        room.decode_reserve_fraction,
        prompt_tokens,
        predicted_output_tokens,
    )


def fits(  # noqa: PLR0917 - compiled by the simulator, which passes by position
    requests: float,
    context_tokens: float,
    remaining_decode_tokens: float,
    max_requests: float,
    kv_limit_tokens: float,
    decode_reserve_fraction: float,
    prompt_tokens: float,
    predicted_output_tokens: float,
) -> bool:
    """Whether one more request fits: ``n < max`` and ``C + p + r·(R + d) ≤ limit``; an idle instance always fits.

    A limit below 0 bounds nothing.
    """
    if requests <= 0:
        return True
    if requests >= max_requests:
        return False
    if kv_limit_tokens < 0:
        return True
    expected = decode_reserve_fraction * (remaining_decode_tokens + predicted_output_tokens)
    return context_tokens + prompt_tokens + expected <= kv_limit_tokens


def has_free_kv(kv_tokens: float, context_tokens: float, queued_prefill_tokens: float) -> bool:
    """Whether what runs, ``C − Q``, leaves KV free.

    Prompts that wait hold no KV yet. Where KV is free they wait for their prefill; to hold others back for their sake
    would leave the engine idle later. So the gate counts them only where it is not: its limit is then ``limit + Q``.
    """
    return context_tokens - queued_prefill_tokens <= FULL_KV_FRACTION * kv_tokens


def gate_requests(max_requests: float, queued_prefill_s: float) -> float:
    """The gate's bound of requests where KV is free: prompts that wait for their prefill fill no place of the batch.

    How many wait is not known, only how long: with less than ``LONG_QUEUE_S`` of prefill the bound is the batch's.
    """
    return QUEUE_FACTOR * max_requests if queued_prefill_s > LONG_QUEUE_S else max_requests


def fullness(requests: float, context_tokens: float, max_sequences: float, kv_tokens: float) -> float:
    """The fraction of an instance's KV or of its batch slots that is taken, the larger one; above 1 where it queues."""
    return max(context_tokens / kv_tokens, requests / max_sequences)


def foreign_load(signal: EngineSignal | None, counted: Load, profile: EngineProfile) -> Load:
    """Estimates what an engine carries that no router dispatched: what it reports beyond ``counted``.

    Args:
        signal: the engine's own report, or ``None`` where there is none: then nothing is assumed.
        counted: the ledger's load of the instance when the signal was taken.
        profile: gives the KV capacity that the reported fraction is of.
    """
    if signal is None or signal.running is None or signal.waiting is None:
        return Load()
    requests = max(0, signal.running + signal.waiting - counted.requests)
    if requests == 0:
        return Load()
    used = (signal.kv_usage_fraction or 0.0) * profile.kv_tokens
    return Load(requests=requests, context_tokens=max(0, int(used) - counted.context_tokens))

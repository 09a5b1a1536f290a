"""In-flight arithmetic: what one reservation adds to its instance's load, and whether a dispatch fits.

The ledgers keep, for every instance, the sum of the contributions of its reservations. The Lua scripts of the Redis
ledger repeat these three formulas; the ledger conformance suite holds the two against each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.domain import EngineSignal, Load

if TYPE_CHECKING:
    from llmrouter.domain import EngineProfile, Reservation, Room


UNBOUNDED = -1
"""A KV limit that bounds nothing."""


def contribution(reservation: Reservation) -> Load:
    """What a reservation adds to the load of its instance (tokens).

    Cached prompt tokens are not computed, so that nobody waits for them; but they are context, and fill KV, as others.
    """
    uncached_tokens = max(0, reservation.prompt_tokens - reservation.cached_tokens)
    return Load(
        requests=1,
        context_tokens=reservation.prompt_tokens + reservation.generated_tokens,
        queued_prefill_tokens=0 if reservation.prefilled else uncached_tokens,
        remaining_decode_tokens=max(0.0, reservation.predicted_output_tokens - reservation.generated_tokens),
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

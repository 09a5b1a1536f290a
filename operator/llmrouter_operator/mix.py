"""The traffic's mix in the status: of what routers say, merged, and written seldom."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from llmrouter.planning.mix import TrafficMix, merged

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmrouter.acknowledgement import RouterAcknowledgement
    from llmrouter_operator.models import Object

STALE_AFTER_S = 30.0
"""What a router said longer ago does not count: it says something every five seconds."""

WRITTEN_AFTER_S = 60.0
"""After so long the mix is written anew though it has hardly moved."""

MOVED = 0.05
"""Share of what it was by which a rate has to move, and points by which the fraction has to, to be written at once."""

_RATES = ("requestsPerSecond", "prefillTokensPerSecond", "decodeTokensPerSecond")
_FRACTION = "prefillTimeFraction"


def mix_status(old: Object | None, said: Iterable[RouterAcknowledgement], now: str) -> Object | None:
    """``status.mix``; ``None`` where routers said nothing lately, or too little.

    ``old`` is what the status has, and stays as it is while the mix has hardly moved and is no minute old. ``now`` is
    an RFC 3339 instant.
    """
    at_s = datetime.fromisoformat(now).timestamp()
    fresh = [one.mix for one in said if one.mix is not None and at_s - one.at_s <= STALE_AFTER_S]
    mix = merged(TrafficMix(**one.model_dump()) for one in fresh)
    if mix is None:
        return None
    new = _shown(mix, now)
    return new if old is None or _is_due(old, new, at_s) else old


def _shown(mix: TrafficMix, now: str) -> Object:
    """Rates in three digits, the fraction in hundredths."""
    rates = (mix.requests_per_s, mix.prefill_tokens_per_s, mix.decode_tokens_per_s)
    shown: Object = {name: float(f"{rate:.3g}") for name, rate in zip(_RATES, rates, strict=True)}
    if mix.prefill_time_fraction is not None:
        shown |= {_FRACTION: round(mix.prefill_time_fraction, 2), "summary": f"{mix.prefill_time_fraction:.0%} prefill"}
    return {**shown, "observedAt": now}


def _is_due(old: Object, new: Object, at_s: float) -> bool:
    """Whether the mix has moved, or was written long ago, or is none."""
    if old.keys() != new.keys():
        return True
    age_s = at_s - datetime.fromisoformat(old["observedAt"]).timestamp()
    if not 0.0 <= age_s < WRITTEN_AFTER_S:
        return True
    if abs(new.get(_FRACTION, 0.0) - old.get(_FRACTION, 0.0)) > MOVED:
        return True
    return any(abs(new[name] - old[name]) > MOVED * old[name] for name in _RATES)

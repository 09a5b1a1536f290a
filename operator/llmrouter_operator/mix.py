"""The traffic's mix in the status: of what routers say, merged by model, and written seldom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.lengths.distribution import LEVELS, MEDIAN
from llmrouter.planning.mix import MIN_REQUESTS, TrafficMix, added
from llmrouter_operator.instants import seconds_of
from llmrouter_operator.lately import said_lately

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmrouter.acknowledgement import RouterAcknowledgement
    from llmrouter_operator.mix_memory import MixForecast
    from llmrouter_operator.models import Object

WRITTEN_AFTER_S = 60.0
"""After so long the mix is written anew though it has hardly moved."""

MOVED = 0.05
"""Share of what it was by which a rate has to move, and points by which the fraction has to, to be written at once."""

_HIGH = LEVELS.index(0.9)
_RATES = ("requestsPerSecond", "prefillTokensPerSecond", "decodeTokensPerSecond")
_ENGINES = "engineSecondsPerSecond"
_FRACTION = "prefillTimeFraction"


def mixes_of(said: Iterable[RouterAcknowledgement], at_s: float) -> dict[str, TrafficMix]:
    """The mix of each model, of what routers said lately; none where all models together have too few requests."""
    by_model: dict[str, list[TrafficMix]] = {}
    for one in said_lately(said, at_s):
        for model, mix in one.mixes.items():
            by_model.setdefault(model, []).append(TrafficMix(**mix.model_dump()))
    merged = {model: added(mixes) for model, mixes in sorted(by_model.items())}
    return merged if sum(one.requests for one in merged.values()) >= MIN_REQUESTS else {}


def mix_status(
    old: Object | None, mixes: Mapping[str, TrafficMix], now: str, forecast: MixForecast | None = None
) -> Object | None:
    """``status.mix``; ``None`` where routers said nothing lately, or too little.

    ``old`` is what the status has, and stays as it is while the mix has hardly moved and is no minute old. ``now`` is
    an RFC 3339 instant.
    """
    if not mixes:
        return None
    whole = added(mixes.values())
    new = _rates(whole)
    if whole.prefill_time_fraction is not None:
        new["summary"] = f"{whole.prefill_time_fraction:.0%} prefill"
    new["models"] = [{"model": model, **_rates(mix), **_lengths(mix)} for model, mix in mixes.items()]
    if forecast is not None:
        new["forecast"] = _forecast(forecast)
    new["observedAt"] = now
    at_s = seconds_of(now)
    return new if old is None or _is_due(old, new, at_s) else old


def _rates(mix: TrafficMix) -> Object:
    """Rates in three digits, the fraction in hundredths."""
    rates = (mix.requests_per_s, mix.prefill_tokens_per_s, mix.decode_tokens_per_s)
    shown: Object = {name: _short(rate) for name, rate in zip(_RATES, rates, strict=True)}
    shown[_ENGINES] = _short(mix.engine_s_per_s)
    if mix.prefill_time_fraction is not None:
        shown[_FRACTION] = round(mix.prefill_time_fraction, 2)
    return shown


def _lengths(mix: TrafficMix) -> Object:
    laws = {"promptTokens": mix.prompt_tokens, "outputTokens": mix.output_tokens}
    return {
        name: {"p50": round(law[MEDIAN]), "p90": round(law[_HIGH])} for name, law in laws.items() if law is not None
    }


def _forecast(forecast: MixForecast) -> Object:
    shown: Object = {"horizonSeconds": round(forecast.horizon_s)}
    for name, band in zip(_RATES, forecast.bands, strict=True):
        shown[name] = {"low": _short(band.low), "mid": _short(band.mid), "high": _short(band.high)}
    return shown


def _short(rate: float) -> float:
    return float(f"{rate:.3g}")


def _is_due(old: Object, new: Object, at_s: float) -> bool:
    """Whether the mix has moved, or was written long ago, or is none."""
    if old.keys() != new.keys():
        return True
    age_s = at_s - seconds_of(old["observedAt"])
    if not 0.0 <= age_s < WRITTEN_AFTER_S:
        return True
    if [one["model"] for one in old["models"]] != [one["model"] for one in new["models"]]:
        return True
    return any(_moved(before, after) for before, after in _pairs(old, new))


def _pairs(old: Object, new: Object) -> list[tuple[Object, Object]]:
    """The whole, and each model that makes a noticeable part of it."""
    noticed = [
        (before, after)
        for before, after in zip(old["models"], new["models"], strict=True)
        if after["requestsPerSecond"] > 2.0 * MOVED * new["requestsPerSecond"]
    ]
    return [(old, new), *(noticed if len(new["models"]) > 1 else ())]


def _moved(old: Object, new: Object) -> bool:
    if abs(new.get(_FRACTION, 0.0) - old.get(_FRACTION, 0.0)) > MOVED:
        return True
    return any(abs(new[name] - old[name]) > MOVED * old[name] for name in _RATES)

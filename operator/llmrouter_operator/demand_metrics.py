"""Gauges of what LLMRouters are asked for and of what is to come, so that others can scale on the same."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prometheus_client import Gauge

from llmrouter_operator.series import Series

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client import CollectorRegistry

    from llmrouter.planning.mix import TrafficMix
    from llmrouter_operator.mix_memory import MixForecast
    from llmrouter_operator.models import ObjectKey

_OF_MODELS = {
    "requests_per_s": ("llmrouter_demand_requests_per_second", "Requests of a model at all routers, a second."),
    "prefill_tokens_per_s": ("llmrouter_demand_prefill_tokens_per_second", "Prompt tokens to compute, a second."),
    "decode_tokens_per_s": ("llmrouter_demand_decode_tokens_per_second", "Output tokens asked for, a second."),
    "engine_s_per_s": (
        "llmrouter_demand_engine_seconds_per_second",
        "Engine time asked for, a second: instances that would be busy.",
    ),
}
_BOUNDS = ("low", "mid", "high")
_OBJECT = ["namespace", "name"]


class DemandMetrics:
    """What is known of each LLMRouter's demand; what is not known, or no more, has no series."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._of_models = {
            field: Gauge(name, text, [*_OBJECT, "model"], registry=registry)
            for field, (name, text) in _OF_MODELS.items()
        }
        self._growth = Gauge(
            "llmrouter_demand_forecast_ratio",
            "Requests a second after the horizon of status.mix.forecast, by those of now: low, mid and high.",
            [*_OBJECT, "bound"],
            registry=registry,
        )
        self._series = Series()

    def show_demand(self, key: ObjectKey, mixes: Mapping[str, TrafficMix], forecast: MixForecast | None) -> None:
        """Shows what is asked for now, and what is to come."""
        for field, gauge in self._of_models.items():
            self._show(gauge, key, {model: getattr(mix, field) for model, mix in mixes.items()})
        growth = {}
        if forecast is not None and forecast.bands[0].mid > 0.0:
            band = forecast.bands[0]
            growth = {bound: getattr(band, bound) / band.mid for bound in _BOUNDS}
        self._show(self._growth, key, growth)

    def forget(self, key: ObjectKey) -> None:
        """An LLMRouter is gone."""
        self.show_demand(key, {}, None)

    def _show(self, gauge: Gauge, key: ObjectKey, values: Mapping[str, float]) -> None:
        self._series.show(gauge, key, {(label,): value for label, value in values.items() if math.isfinite(value)})

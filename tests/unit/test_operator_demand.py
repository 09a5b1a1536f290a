"""What an operator remembers of traffic, and what it shows of it for others to scale on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from support.crd_cases import router

from llmrouter.planning.forecast import LEAST_RATIOS, MOST_GROWTH, STEP_S, Band
from llmrouter.planning.mix import TrafficMix
from llmrouter.resources import LLMRouterSpec
from llmrouter_operator.demand_metrics import DemandMetrics
from llmrouter_operator.mix_memory import START_UP_S, MixForecast, MixMemory, horizon_s_of
from llmrouter_operator.models import ObjectKey

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY = ObjectKey("team", "fleet")
MIX = TrafficMix(requests=600, requests_per_s=10, prefill_tokens_per_s=5_000, decode_tokens_per_s=900, engine_s_per_s=2)
LABELS = {"namespace": "team", "name": "fleet"}


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, {**LABELS, **labels})


def remembered(memory: MixMemory, samples: int, mixes: Mapping[str, TrafficMix], since: int = 0) -> MixForecast | None:
    forecast = None
    for place in range(since, since + samples):
        forecast = memory.observe(KEY, mixes, at_s=place * STEP_S, horizon_s=STEP_S)
    return forecast


def test_it_foretells_once_it_has_seen_enough_and_forgets_who_is_gone() -> None:
    memory = MixMemory()
    assert remembered(memory, LEAST_RATIOS, {"m": MIX}) is None
    forecast = remembered(memory, 1, {"m": MIX}, since=LEAST_RATIOS)
    assert forecast is not None
    assert (forecast.bands[0].mid, forecast.bands[1].mid, forecast.bands[2].mid) == (10, 5_000, 900)
    assert forecast.growth == 1.0
    assert remembered(memory, 1, {}, since=LEAST_RATIOS + 1) is None
    memory.forget(KEY)
    assert remembered(memory, 1, {"m": MIX}, since=LEAST_RATIOS + 2) is None


@pytest.mark.parametrize(("high", "growth"), [(11.0, 1.1), (30.0, MOST_GROWTH), (10.0, 1.0)])
def test_a_plan_allows_for_growth_within_bounds(high: float, growth: float) -> None:
    band, still = Band(9.0, 10.0, high), Band(0.0, 0.0, 0.0)
    assert MixForecast(300.0, (band, still, still)).growth == pytest.approx(growth)


def test_the_horizon_is_the_wish_and_the_start() -> None:
    target = {"scaleTargetRef": {"kind": "Deployment", "name": "a"}, "gpusPerReplica": 1}
    pool = {"name": "a", "selector": {"matchLabels": {"app": "a"}}, "profile": {"name": "h100-mix"}, **target}
    rebalance = {"gpuBudget": 8, "slo": {"ttftSeconds": 1, "tpotSeconds": 1}, "stabilizationSeconds": 30}
    spec = LLMRouterSpec.model_validate(router(pools=[pool], rebalance=rebalance))
    assert horizon_s_of(spec) == START_UP_S + 30
    assert horizon_s_of(None) == horizon_s_of(LLMRouterSpec.model_validate(router())) == START_UP_S + 120


def test_gauges_show_what_is_known_and_no_more() -> None:
    registry = CollectorRegistry()
    metrics, band = DemandMetrics(registry), Band(8.0, 10.0, 15.0)
    metrics.show_demand(KEY, {"a": MIX, "b": MIX}, MixForecast(300.0, (band, band, band)))
    assert value(registry, "llmrouter_demand_engine_seconds_per_second", model="a") == 2
    assert value(registry, "llmrouter_demand_decode_tokens_per_second", model="b") == 900
    assert value(registry, "llmrouter_demand_forecast_ratio", bound="high") == 1.5

    metrics.show_demand(KEY, {"b": MIX}, None)
    assert value(registry, "llmrouter_demand_engine_seconds_per_second", model="a") is None
    assert value(registry, "llmrouter_demand_requests_per_second", model="b") == 10
    assert value(registry, "llmrouter_demand_forecast_ratio", bound="high") is None

    metrics.forget(KEY)
    assert value(registry, "llmrouter_demand_requests_per_second", model="b") is None

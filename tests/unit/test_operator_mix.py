"""The mix in the status: merged over routers, omitted where it is not known, written seldom."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.acknowledgements import said_by
from support.crd_cases import router

from llmrouter.acknowledgement import RouterAcknowledgement, RouterMix
from llmrouter.config import PolicyConfig
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.lengths.served import certain
from llmrouter.planning.forecast import Band
from llmrouter.planning.mix import Dispatched, MixMeter
from llmrouter.profiles import LLAMA_31_8B_RTX_4090
from llmrouter.resources import LLMRouterSpec
from llmrouter_operator.lately import STALE_AFTER_S
from llmrouter_operator.mix import MOVED, WRITTEN_AFTER_S, mix_status, mixes_of
from llmrouter_operator.mix_memory import MixForecast, MixMemory, with_mix
from llmrouter_operator.models import ObjectKey, Plan, PolicyChoice
from llmrouter_operator.status import Acknowledgements, Facts, build_status, transitions

if TYPE_CHECKING:
    from llmrouter_operator.models import Object

START = datetime(2026, 1, 1, tzinfo=UTC)
MIX = RouterMix(
    requests=600,
    requests_per_s=10,
    prefill_tokens_per_s=5_000,
    decode_tokens_per_s=2_000,
    engine_s_per_s=2,
    prefill_time_fraction=0.5,
)


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def said(
    router_id: str = "a", *, at_s: float = 0.0, mix: RouterMix | None = MIX, **changes: float
) -> RouterAcknowledgement:
    """What a router says ``at_s`` after the start."""
    mixes = {"llama": mix.model_copy(update=changes)} if mix else {}
    return said_by(router_id, mixes=mixes, at_s=START.timestamp() + at_s)


def status(*acknowledgements: RouterAcknowledgement, old: Object | None = None, now_s: float = 0.0) -> Object | None:
    return mix_status(old, mixes_of(acknowledgements, START.timestamp() + now_s), at(now_s))


def test_routers_are_merged_by_what_they_carry() -> None:
    light = said("b", requests_per_s=2.5, decode_tokens_per_s=123.456, engine_s_per_s=1, prefill_time_fraction=0.86)
    assert status(said(), light) == {
        "requestsPerSecond": 12.5,
        "prefillTokensPerSecond": 10_000,
        "decodeTokensPerSecond": 2_120,
        "engineSecondsPerSecond": 3,
        "prefillTimeFraction": 0.62,
        "summary": "62% prefill",
        "models": [
            {
                "model": "llama",
                "requestsPerSecond": 12.5,
                "prefillTokensPerSecond": 10_000,
                "decodeTokensPerSecond": 2_120,
                "engineSecondsPerSecond": 3,
                "prefillTimeFraction": 0.62,
            }
        ],
        "observedAt": at(0),
    }


def test_models_are_told_apart_with_their_lengths() -> None:
    law = (10.0, 20.0, 50.0, 100.4, 200.0, 400.0, 600.0)
    long = MIX.model_copy(update={"prompt_tokens": law, "output_tokens": law})
    both = said().model_copy(update={"mixes": {"short": MIX, "long": long}})

    shown = status(both)

    assert shown is not None
    assert [one["model"] for one in shown["models"]] == ["long", "short"]
    assert shown["models"][0]["promptTokens"] == {"p50": 100, "p90": 400}
    assert "outputTokens" not in shown["models"][1]
    assert shown["requestsPerSecond"] == 20
    moved = both.model_copy(update={"mixes": {"long": MIX.model_copy(update={"requests_per_s": 20.0})}})
    assert status(moved, old=shown, now_s=1) != shown


def test_a_forecast_is_told_with_its_horizon() -> None:
    band = Band(9.0, 10.0, 12.345)
    shown = mix_status(None, mixes_of([said()], START.timestamp()), at(0), MixForecast(300.0, (band, band, band)))
    assert shown is not None
    assert shown["forecast"]["horizonSeconds"] == 300
    assert shown["forecast"]["requestsPerSecond"] == {"low": 9, "mid": 10, "high": 12.3}


def test_what_is_stale_absent_or_too_little_is_omitted() -> None:
    assert status() is None
    assert status(said(mix=None)) is None
    assert status(said(at_s=-STALE_AFTER_S - 1)) is None
    assert status(said(requests=9)) is None
    one = status(said())
    assert status(said(), said("b", mix=None), said("c", at_s=-STALE_AFTER_S - 1)) == one
    assert status(said(at_s=-STALE_AFTER_S - 1), old=one) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"requests_per_s": 10 * (1 + MOVED) + 0.1},
        {"prefill_tokens_per_s": 5_000 * (1 - MOVED) - 50},
        {"decode_tokens_per_s": 2_000 * (1 + MOVED) + 20},
        {"prefill_time_fraction": 0.5 + MOVED + 0.01},
    ],
)
def test_it_is_written_when_it_moves_or_is_old(changes: dict[str, float]) -> None:
    old = status(said())
    soon = WRITTEN_AFTER_S - 1
    assert old is not None
    assert status(said(at_s=soon, requests_per_s=10.4, prefill_time_fraction=0.53), old=old, now_s=soon) is old
    moved = status(said(at_s=5, mix=MIX.model_copy(update=changes)), old=old, now_s=5)
    assert moved is not None
    assert (moved["observedAt"], moved != old) == (at(5), True)
    late = status(said(at_s=WRITTEN_AFTER_S), old=old, now_s=WRITTEN_AFTER_S)
    assert late == {**old, "observedAt": at(WRITTEN_AFTER_S)}
    assert status(said(), old={**old, "observedAt": at(3_600)}) == old  # a clock that was ahead


def test_a_status_that_somebody_spoiled_is_written_anew() -> None:
    assert status(said(), old={"summary": "?"}) == status(said())


def test_the_status_has_a_mix_and_no_event_tells_of_it() -> None:
    spec = LLMRouterSpec.model_validate(router())
    policy = PolicyChoice(PolicyConfig(name="plain", type="RoundRobin"))
    plan = Plan(key=ObjectKey("team", "fleet"), spec=spec, choice=policy, config_digest="new")
    silent, speaking = (
        with_mix(
            Facts(1, 1, 1, rolled_out=True, said=Acknowledgements({"a": said(mix=mix)}), plan=plan),
            MixMemory(),
            at_s=START.timestamp(),
        )
        for mix in (None, MIX)
    )
    before = build_status({}, silent, in_force=None, now=at(0))
    after = build_status(before, speaking, in_force=None, now=at(1))
    again = build_status(after, speaking, in_force=None, now=at(20))

    assert "mix" not in before
    assert after["mix"]["summary"] == "50% prefill"
    assert again == after
    assert transitions(before, after) == []


def writes_in_an_hour(rate_per_s: float, *, every_s: float) -> int:
    """Status writes of a steady Poisson stream that is looked at ``every_s``."""
    rng, meter, old, written = np.random.default_rng(1), MixMeter(-600.0), None, 0
    request = LengthRequest(application="a", model="m", prompt_tokens=1)
    arrivals, look_s = np.cumsum(rng.exponential(1 / rate_per_s, round(4_200 * rate_per_s))).tolist(), 600.0
    for at_s in arrivals:
        tokens = float(rng.lognormal(5.0, 0.8))
        one = Dispatched(certain(tokens, request, source="x"), round(rng.lognormal(6.0, 1.0)), LLAMA_31_8B_RTX_4090, 8)
        meter.dispatched(one, now_s=at_s)
        if at_s >= look_s:
            mix = meter.mix(at_s)
            assert mix is not None
            new = status(said(at_s=at_s, mix=RouterMix(**asdict(mix))), old=old, now_s=at_s)
            written, old, look_s = written + (new != old), new, look_s + every_s
    return written


@pytest.mark.parametrize(("rate_per_s", "every_s", "most"), [(20.0, 30.0, 75), (20.0, 5.0, 90)])
def test_steady_traffic_is_written_seldom(rate_per_s: float, every_s: float, most: int) -> None:
    assert 50 <= writes_in_an_hour(rate_per_s, every_s=every_s) <= most

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmrouter.domain import EngineMode
from llmrouter.errors import InvalidInputError
from llmrouter.profiles import H100_MIX, PROFILES
from llmrouter.sim.engine import Engine, EngineRequest


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_profile_makes_an_engine_and_is_filed_under_its_name(name: str) -> None:
    profile = PROFILES[name]
    assert profile.name == name
    assert Engine(profile).max_request_tokens == profile.kv_tokens


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("block_tokens", 0),
        ("max_sequences", 0),
        ("token_budget", -1),
        ("token_budget", H100_MIX.max_sequences - 1),
        ("kv_tokens", 15),
        ("base_decode_s", 0.0),
        ("base_prefill_s", -1e-3),
        ("context_s_per_token", float("nan")),
        ("prefill_s_per_token_squared", float("inf")),
    ],
)
def test_a_profile_that_makes_no_engine_is_refused_naming_the_field(field: str, bad: float) -> None:
    changes: dict[str, Any] = {field: bad}
    with pytest.raises(InvalidInputError, match=f"h100-mix: {field} must be"):
        Engine(replace(H100_MIX, **changes))


def test_an_unknown_profile_is_absent_and_the_registry_is_closed() -> None:
    assert "h200" not in PROFILES
    with pytest.raises(TypeError):
        PROFILES["h200"] = H100_MIX  # type: ignore[index]


@pytest.mark.parametrize("mode", list(EngineMode))
def test_an_admission_leaves_one_percent_of_kv_free_for_those_running(mode: EngineMode) -> None:
    engine = Engine(replace(H100_MIX, mode=mode, kv_tokens=200 * 16, token_budget=4_096))
    engine.add(EngineRequest("first", 100 * 16, 5))
    engine.add(EngineRequest("too long", 99 * 16, 5))
    engine.begin_step()
    engine.finish_step()
    assert (engine.counters.running, engine.counters.waiting) == (1, 1)
    engine.cancel("too long")
    engine.add(EngineRequest("fits", 97 * 16, 5))
    engine.begin_step()
    assert engine.counters.running == 2


def test_an_empty_engine_admits_past_the_watermark() -> None:
    engine = Engine(replace(H100_MIX, kv_tokens=200 * 16, token_budget=4_096))
    engine.add(EngineRequest("whole", 200 * 16 - 1, 1))
    engine.begin_step()
    assert engine.counters.kv_usage_fraction == 1.0

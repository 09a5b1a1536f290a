"""One pool in steady state: the formulas where they can be checked by hand, and what may never get better."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support.plan_cases import A100, H100, demand

from llmrouter.domain import EngineMode, Role
from llmrouter.planning.station import DECODE, MEMORY, PREFILL, Station, request_s, stall_s, station
from llmrouter.profiles import PROFILES

if TYPE_CHECKING:
    from llmrouter.planning.demand import ModelDemand


def running(role: Role, instances: int, *demands: ModelDemand) -> Station:
    found = station(H100, role, instances, demands)
    assert isinstance(found, Station), found
    return found


def test_time_between_tokens_is_that_of_littles_law() -> None:
    """T = b + g3·B + g2·C with B = λ·d·T and C = λ·k·T."""
    asked = demand(10.0)
    found = running(Role.DECODE, 2, asked)
    batch = 5.0 * asked.mean_output_tokens * found.token_s
    context = 5.0 * asked.context_tokens * found.token_s
    step_s = H100.base_decode_s + H100.sequence_s * batch + H100.context_s_per_token * context
    assert found.token_s == pytest.approx(step_s)
    assert found.sequences == pytest.approx(batch)
    assert found.steady_s == found.token_s


def test_prompts_beside_decodes_lengthen_every_gap_by_their_stalls() -> None:
    asked = demand(10.0)
    alone, beside = running(Role.DECODE, 2, asked), running(Role.MIXED, 2, asked)
    stalled = beside.prompts_per_s * beside.stall_s
    assert beside.token_s * (1.0 - stalled) == pytest.approx(beside.steady_s)
    assert beside.token_s > alone.token_s
    assert beside.prompts.probability > 0.0


def test_an_idle_pool_waits_for_nobody() -> None:
    idle = station(H100, Role.MIXED, 1, [])
    assert isinstance(idle, Station)
    assert (idle.load, idle.token_s, idle.ttft_within(100.0, 1.0)) == (0.0, H100.base_decode_s, 1.0)


@pytest.mark.parametrize(
    ("role", "prompt", "output", "rate", "why"),
    [
        (Role.PREFILL, 4_000.0, 50.0, 100.0, PREFILL),
        (Role.MIXED, 4_000.0, 50.0, 100.0, PREFILL),
        (Role.MIXED, 50.0, 4_000.0, 60.0, DECODE),
    ],
)
def test_what_cannot_be_kept_up_with_says_why(role: Role, prompt: float, output: float, rate: float, why: str) -> None:
    assert station(H100, role, 1, [demand(rate, prompt, output)]) == why


def test_a_pool_without_instances_serves_nothing() -> None:
    assert station(H100, Role.PREFILL, 0, [demand(1.0)]) == PREFILL
    assert station(H100, Role.DECODE, 0, [demand(1.0)]) == DECODE


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("mode", list(EngineMode))
def test_more_requests_never_serve_any_better(role: Role, mode: EngineMode) -> None:
    profile, before = replace(H100, mode=mode), None
    for rate in (1.0, 5.0, 10.0, 15.0, 20.0):
        now = station(profile, role, 1, [demand(rate)])
        if isinstance(now, str):
            break
        if isinstance(before, Station):
            assert now.load > before.load
            assert now.token_s >= before.token_s
            assert now.ttft_within(1_000.0, 0.2) <= before.ttft_within(1_000.0, 0.2) + 1e-9
            assert now.tpot_within(200.0, 0.012) <= before.tpot_within(200.0, 0.012) + 1e-9
        before = now


@pytest.mark.parametrize("role", [Role.MIXED, Role.DECODE])
def test_what_is_too_much_stays_too_much(role: Role) -> None:
    """However full the batch, it leaves the prompts a budget: no load is so high that it is none."""
    kept_up = [isinstance(station(H100, role, 1, [demand(float(rate))]), Station) for rate in range(5, 400, 5)]
    assert kept_up == sorted(kept_up, reverse=True)
    assert kept_up[0]
    assert not kept_up[-1]


def test_shares_within_a_time_grow_with_it_and_single_tokens_have_no_gap() -> None:
    found = running(Role.MIXED, 1, demand(15.0))
    ttfts = [found.ttft_within(1_000.0, seconds) for seconds in (0.0, 0.02, 0.05, 0.1, 1.0, 10.0)]
    gaps = [found.tpot_within(100.0, seconds) for seconds in (0.0, 0.008, 0.012, 0.02, 0.1)]
    assert ttfts == sorted(ttfts)
    assert gaps == sorted(gaps)
    assert [ttfts[0], ttfts[-1], gaps[0], gaps[-1]] == pytest.approx([0.0, 1.0, 0.0, 1.0], abs=1e-3)
    assert found.tpot_within(1.0, 0.0) == 1.0


def test_short_prompts_fit_beside_decodes_for_nothing() -> None:
    """A step with decodes lasts b in any case: prompts are free up to (b − base of prefill)/g1 tokens."""
    free = (H100.base_decode_s - H100.base_prefill_s) / H100.prefill_s_per_token
    assert stall_s(H100, 0.9 * free, 0.0) == pytest.approx(H100.prefill_s_per_token_squared * (0.9 * free) ** 2)
    assert stall_s(H100, 2 * free, 0.0) > 0.001


def test_seconds_of_a_request_are_the_load_that_it_is() -> None:
    asked = demand(10.0)
    assert running(Role.PREFILL, 1, asked).load == pytest.approx(10.0 * request_s(H100, Role.PREFILL, asked))
    load = running(Role.MIXED, 1, asked).load
    assert load < 10.0 * request_s(H100, Role.MIXED, asked) < 1.3 * load  # memory, which is free as yet, counts too
    assert request_s(A100, Role.MIXED, asked) > 2.0 * request_s(H100, Role.MIXED, asked)


def test_little_memory_is_little_capacity() -> None:
    short = PROFILES["llama-2-70b-h100-tp2"]
    assert station(short, Role.DECODE, 1, [demand(4.0, 3_000.0, 400.0)]) == MEMORY


def test_what_is_cached_is_not_computed_but_attended_to() -> None:
    asked = demand(10.0)
    cached = replace(
        asked,
        prefill_tokens=tuple(0.2 * tokens for tokens in asked.prefill_tokens),
        prefill_tokens_squared=0.36 * asked.prefill_tokens_squared,
    )
    assert request_s(H100, Role.PREFILL, cached) < 0.3 * request_s(H100, Role.PREFILL, asked)
    lone = replace(cached, prefill_tokens_squared=0.04 * asked.prefill_tokens_squared)
    assert request_s(H100, Role.PREFILL, cached) > request_s(H100, Role.PREFILL, lone)

"""Laws of a discrete-event run over many engines, against queueing formulas where they exist."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrouter.domain import EngineMode, EngineProfile, Request
from llmrouter.errors import InvalidInputError, InvalidRequestError
from llmrouter.profiles import PROFILES
from llmrouter.sim.capacity import capacity_rps, late_ttft_s, round_robin
from llmrouter.sim.engine import EngineRequest
from llmrouter.sim.run import Arrival, simulate

if TYPE_CHECKING:
    from collections.abc import Sequence

SERVICE_S = 0.1
ONE_AT_A_TIME = EngineProfile(
    name="one at a time",
    base_decode_s=SERVICE_S,
    base_prefill_s=SERVICE_S,
    prefill_s_per_token=0.0,
    context_s_per_token=0.0,
    sequence_s=0.0,
    kv_tokens=16_000,
    max_sequences=1,
    token_budget=1_000,
    mode=EngineMode.CHUNKED,
)


def arrival(index: int, at_s: float, prompt_tokens: int = 10, output_tokens: int = 1) -> Arrival:
    request = Request(
        request_id=f"r{index}",
        model="m",
        prompt_tokens=prompt_tokens,
        predicted_output_tokens=0.0,
        arrived_at_s=at_s,
        application="chat",
    )
    return Arrival(request, EngineRequest(f"r{index}", prompt_tokens, output_tokens))


def even(rate_rps: float, count: int = 400) -> Sequence[Arrival]:
    return [arrival(index, index / rate_rps) for index in range(count)]


@given(
    rows=st.lists(
        st.tuples(st.floats(0, 5), st.integers(1, 3_000), st.integers(1, 200), st.integers(0, 2)),
        min_size=1,
        max_size=40,
    )
)
@settings(max_examples=40, deadline=None)
def test_outcomes_are_conserved_and_causal(rows: list[tuple[float, int, int, int]]) -> None:
    """Each arrival has one outcome, on the engine chosen for it, in causal order and never faster than alone."""
    rows.sort()
    arrivals = [arrival(index, row[0], row[1], row[2]) for index, row in enumerate(rows)]
    chosen = {f"r{index}": row[3] for index, row in enumerate(rows)}
    profiles = [PROFILES[name] for name in ("h100-mix", "paper-v100", "llama-3.1-8b-rtx4090")]
    outcomes = simulate(profiles, arrivals, lambda request, _now_s: chosen[request.request_id])
    assert [outcome.finished_at_s for outcome in outcomes] == sorted(outcome.finished_at_s for outcome in outcomes)
    found = {outcome.request_id: outcome for outcome in outcomes}
    assert len(found) == len(outcomes) == len(arrivals)
    for one in arrivals:
        outcome = found[one.request.request_id]
        profile = profiles[outcome.instance]
        assert outcome.instance == chosen[one.request.request_id]
        assert outcome.tokens == one.work.output_tokens
        alone_s = profile.base_prefill_s + profile.prefill_s_per_token * one.request.prompt_tokens
        assert outcome.ttft_s >= alone_s * (1 - 1e-9)
        if outcome.tpot_s is None:
            assert outcome.finished_at_s == outcome.first_token_at_s
        else:
            assert outcome.tpot_s >= profile.base_decode_s * (1 - 1e-9)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_at_a_time_waits_as_m_d_1_says(load: float) -> None:
    """Poisson arrivals at a server of fixed service: mean wait = load * service / (2 * (1 - load))."""
    gaps = random.Random(7)
    at_s, arrivals = 0.0, []
    for index in range(40_000):
        at_s += gaps.expovariate(load / SERVICE_S)
        arrivals.append(arrival(index, at_s))
    outcomes = simulate([ONE_AT_A_TIME], arrivals, lambda _request, _now_s: 0)
    mean_wait_s = sum(outcome.ttft_s for outcome in outcomes) / len(outcomes) - SERVICE_S
    assert mean_wait_s == pytest.approx(load * SERVICE_S / (2 * (1 - load)), rel=0.05)


@pytest.mark.parametrize("instances", [1, 2, 5])
def test_capacity_is_proportional_to_engines_and_inverse_to_service(instances: int) -> None:
    """Even arrivals at m servers of fixed service: the highest sustained rate is m / service."""
    found = capacity_rps([ONE_AT_A_TIME] * instances, lambda rate: even(rate, 2_000), tolerance=0.002)
    assert found == pytest.approx(instances / SERVICE_S, rel=0.03)
    faster = [replace(ONE_AT_A_TIME, base_prefill_s=SERVICE_S / 2)] * instances
    assert capacity_rps(faster, lambda rate: even(rate, 2_000), tolerance=0.002) == pytest.approx(2 * found, rel=0.03)


def test_equal_runs_give_equal_outcomes() -> None:
    """Determinism: the same arrivals and choices give the same outcomes."""
    arrivals = [arrival(index, 0.01 * (index // 3), 300 + index, 1 + index % 50) for index in range(300)]
    profiles = [PROFILES["h100-mix"], PROFILES["paper-v100"]]
    assert simulate(profiles, arrivals, round_robin(2)) == simulate(profiles, arrivals, round_robin(2))


def test_arrivals_of_one_instant_share_the_step_that_begins_then() -> None:
    """Same-instant order: a step end is before an arrival, and an idle engine waits for the whole instant."""
    together = [arrival(0, 1.0), arrival(1, 1.0)]
    profile = replace(ONE_AT_A_TIME, max_sequences=8)
    assert [outcome.finished_at_s for outcome in simulate([profile], together, round_robin(1))] == [1.1, 1.1]
    at_the_end = [arrival(0, 1.0), arrival(1, 1.1)]
    assert [outcome.finished_at_s for outcome in simulate([profile], at_the_end, round_robin(1))] == [1.1, 1.1 + 0.1]


def test_round_robin_takes_turns() -> None:
    """Round-robin gives each of m engines every m-th request."""
    outcomes = simulate([ONE_AT_A_TIME] * 3, even(1.0, 9), round_robin(3))
    assert [outcome.instance for outcome in outcomes] == [0, 1, 2] * 3
    assert late_ttft_s(outcomes) == pytest.approx(SERVICE_S)


def test_what_cannot_be_run_is_refused() -> None:
    """Bad input: no such engine, arrivals out of order, a request that never fits, an overloaded start, no engines."""
    with pytest.raises(InvalidInputError, match="engine 1 of 1"):
        simulate([ONE_AT_A_TIME], even(1.0, 2), lambda _request, _now_s: 1)
    with pytest.raises(InvalidInputError, match="before the one before"):
        simulate([ONE_AT_A_TIME], [arrival(0, 2.0), arrival(1, 1.0)], round_robin(1))
    with pytest.raises(InvalidRequestError, match="exceed"):
        simulate([ONE_AT_A_TIME], [arrival(0, 0.0, 16_000, 1)], round_robin(1))
    with pytest.raises(InvalidInputError, match="without engines"):
        capacity_rps([], even)
    with pytest.raises(InvalidInputError, match="start_rps"):
        capacity_rps([ONE_AT_A_TIME], even, start_rps=0)
    slow = replace(ONE_AT_A_TIME, base_prefill_s=1.5)
    with pytest.raises(InvalidInputError, match="sustains no rate"):
        capacity_rps([slow], even)
    assert simulate([ONE_AT_A_TIME], [], round_robin(1)) == ()

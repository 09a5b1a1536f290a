"""Engines inside a run: closed forms for a lone request in every schedule, prefix cache, transfers, admission, lag."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sim_books import check_books
from support.sim_worlds import SMALL, Case, interpret

from llmrouter.domain import EngineMode, Role
from llmrouter.routing.rules import Rule
from llmrouter.sim.model import Admission, EngineModel, QueueOrder, Schedule
from llmrouter.sim.setup import CompiledPolicy, RouterSide, Setup
from llmrouter.sim.workload import Workload

if TYPE_CHECKING:
    from llmrouter.sim.outcomes import Outcomes

POLICY = CompiledPolicy(rule=Rule.ROUND_ROBIN, max_requests=1_000)
LARGE = replace(SMALL, kv_tokens=16_000)


def run(workload: Workload, *engines: EngineModel, side: RouterSide | None = None) -> Outcomes:
    setup = Setup(engines=engines, routers=side or RouterSide())
    return interpret(Case(setup, workload, lambda: POLICY), check_books)


def lone_prefill_s(engine: EngineModel, prompt: int, cached: int = 0) -> float:
    """Steps of a lone prefill: each takes the base; tokens and their squares add up whatever the chunks."""
    profile = engine.profile
    chunked = engine.steps_as in (Schedule.CHUNKED, Schedule.LAYERED)
    steps = math.ceil((prompt - cached) / profile.token_budget) if chunked else 1
    return (
        steps * (profile.base_prefill_s + engine.prefill_sequence_s)
        + profile.prefill_s_per_token * (prompt - cached)
        + profile.prefill_s_per_token_squared * (prompt**2 - cached**2)
    )


def lone_decode_s(engine: EngineModel, prompt: int, output: int) -> float:
    profile = engine.profile
    contexts = range(prompt, prompt + output - 1)
    return sum(profile.base_decode_s + profile.context_s_per_token * one + profile.sequence_s for one in contexts)


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize(("prompt", "output"), [(1, 1), (63, 2), (64, 1), (65, 40), (300, 33), (1_000, 17)])
def test_a_lone_request_takes_its_closed_form(schedule: Schedule, prompt: int, output: int) -> None:
    """Alone: delays, then ceil(p / budget) prefill steps where prompts are split and one where not, then decodes."""
    engine = EngineModel(LARGE, schedule, front_s=0.003, front_s_per_token=1e-5, prefill_sequence_s=5e-4)
    outcomes = run(Workload.of([2.0], [prompt], [output]), engine, side=RouterSide(dispatch_s=0.01))
    delay_s = 0.01 + 0.003 + 1e-5 * prompt
    assert outcomes.dispatched_at_s[0] == 2.0
    assert outcomes.ttft_s[0] == pytest.approx(delay_s + lone_prefill_s(engine, prompt), rel=1e-12)
    decode_s = lone_decode_s(engine, prompt, output)
    assert outcomes.e2e_s[0] - outcomes.ttft_s[0] == pytest.approx(decode_s, rel=1e-9, abs=1e-12)
    busy_s = outcomes.e2e_s[0] - delay_s
    assert outcomes.engine_busy_s[0] == pytest.approx(busy_s, rel=1e-12)


@pytest.mark.parametrize("schedule", [Schedule.CHUNKED, Schedule.LAYERED])
@given(prompt=st.integers(1, 2_000), budget=st.integers(6, 200))
@settings(max_examples=40, deadline=None)
def test_a_split_prompt_takes_its_number_of_steps(schedule: Schedule, prompt: int, budget: int) -> None:
    """Where only a step's base costs time, the time of a prompt counts its steps: ceil(prompt / budget)."""
    profile = replace(LARGE, token_budget=budget, prefill_s_per_token=0.0, prefill_s_per_token_squared=0.0)
    outcomes = run(Workload.of([0.0], [prompt], [1]), EngineModel(profile, schedule))
    assert outcomes.ttft_s[0] / profile.base_prefill_s == pytest.approx(math.ceil(prompt / budget))


def test_prompts_of_one_layered_batch_end_together() -> None:
    """Layered: all prompts of a batch get their first tokens with the last group of layers, however short they are."""
    engine = EngineModel(replace(LARGE, token_budget=50), Schedule.LAYERED)
    outcomes = run(Workload.of([0.0, 0.0, 0.0], [2, 45, 400], [1, 1, 1]), engine)
    assert outcomes.first_token_at_s[0] == outcomes.first_token_at_s[1]
    assert outcomes.first_token_at_s[2] > outcomes.first_token_at_s[1]


def test_a_layered_batch_is_no_larger_than_the_budget_unless_one_prompt_is() -> None:
    """Layered: a prompt above the budget is a batch of its own, so what comes after it waits for the next."""
    engine = EngineModel(replace(LARGE, token_budget=50), Schedule.LAYERED)
    outcomes = run(Workload.of([0.0, 0.0, 0.0], [400, 20, 20], [1, 1, 1]), engine)
    first, second, third = outcomes.first_token_at_s
    assert first < second == third


def test_an_interval_engine_prefills_after_its_number_of_decode_steps() -> None:
    """Interval: with decodes running, a prompt waits until d decode steps have passed since the last prefill."""
    engine = EngineModel(LARGE, Schedule.INTERVAL, decode_steps_between_prefills=5)
    outcomes = run(Workload.of([0.0, 0.0081], [10, 10], [50, 1]), engine)
    began = outcomes.first_token_at_s[0] + lone_decode_s(engine, 10, 6)
    assert outcomes.first_token_at_s[1] == pytest.approx(began + lone_prefill_s(engine, 10))


def test_an_interval_of_none_is_prefill_first() -> None:
    """Interval 0 and prefill-first are one schedule."""
    workload = Workload.of([0.02 * row for row in range(30)], 20 + 7 * np.arange(30), 5 + np.arange(30))
    one = run(workload, EngineModel(LARGE, Schedule.INTERVAL))
    other = run(workload, EngineModel(replace(LARGE, mode=EngineMode.PREFILL_FIRST)))
    assert (one.finished_at_s == other.finished_at_s).all()


@pytest.mark.parametrize("lag", [0, 1])
def test_what_arrives_in_a_step_is_seen_at_its_end_or_one_step_later(lag: int) -> None:
    """Asynchronous scheduling: an arrival during a step joins after the step that follows it."""
    engine = EngineModel(LARGE, scheduling_lag_steps=lag)
    outcomes = run(Workload.of([0.0, 0.02], [10, 10], [50, 1]), engine)
    steps = 2 + lag  # one that is under way at 0.02 s, and the lag
    began = outcomes.first_token_at_s[0] + lone_decode_s(engine, 10, steps + 1)
    mixed_s = LARGE.base_decode_s + LARGE.prefill_s_per_token_squared * 100 + LARGE.sequence_s
    mixed_s += LARGE.context_s_per_token * (10 + steps)
    assert outcomes.first_token_at_s[1] == pytest.approx(began + mixed_s)


def shared_prompt(at_s: list[float], prompts: list[int], blocks: int, outputs: list[int] | None = None) -> Workload:
    """Requests whose prompts begin with the same ``blocks`` blocks of 16 tokens."""
    return Workload.of(
        at_s,
        prompts,
        outputs or [2] * len(at_s),
        prefix_start=[blocks * row for row in range(len(at_s) + 1)],
        prefix_blocks=list(range(blocks)) * len(at_s),
        prefix_block_tokens=16,
    )


@pytest.mark.parametrize("schedule", list(Schedule))
def test_a_cached_prefix_is_not_computed_again(schedule: Schedule) -> None:
    """A second prompt with the same blocks computes only the rest: its closed form with the cached tokens gone."""
    engine = EngineModel(LARGE, schedule, prefix_caching=True)
    outcomes = run(shared_prompt([0.0, 10.0], [200, 210], 12), engine)
    assert outcomes.cached_tokens.tolist() == [0, 192]
    assert outcomes.ttft_s[1] == pytest.approx(lone_prefill_s(engine, 210, 192), rel=1e-12)


def test_of_a_prompt_that_is_cached_whole_one_block_is_computed() -> None:
    """At least one token is computed: of 12 cached blocks, a prompt of just these uses 11."""
    engine = EngineModel(LARGE, prefix_caching=True)
    assert run(shared_prompt([0.0, 10.0], [192, 192], 12), engine).cached_tokens.tolist() == [0, 176]


def test_without_prefix_caching_everything_is_computed() -> None:
    """The cache is a property of the engine."""
    assert run(shared_prompt([0.0, 10.0], [200, 210], 12), EngineModel(LARGE)).cached_tokens.tolist() == [0, 0]


def test_the_least_recently_used_blocks_go_first() -> None:
    """Eviction: a prompt that needs the room takes the oldest idle blocks, the end of the oldest prefix first."""
    engine = EngineModel(replace(SMALL, kv_tokens=20 * 16), prefix_caching=True)
    blocks = [*range(8), *range(20, 28), *range(40, 46), *range(20, 28), *range(8)]
    workload = Workload.of(
        *([0.0, 10.0, 20.0, 30.0, 40.0], [129, 129, 97, 129, 129], [1, 1, 1, 1, 1]),
        prefix_start=[0, 8, 16, 22, 30, 38],
        prefix_blocks=blocks,
        prefix_block_tokens=16,
    )
    outcomes = run(workload, engine)
    assert outcomes.cached_tokens[3] == 128  # the second prompt was used last, and is whole
    assert 0 < outcomes.cached_tokens[4] < 128  # of the first the end has gone


def test_kv_sent_elsewhere_takes_its_time_and_transfers_follow_one_another() -> None:
    """Disaggregated: first tokens come from the prefill instance, then KV bytes over the link, one after the other."""
    prefill = EngineModel(
        *(LARGE, Schedule.PREFILL_FIRST), role=Role.PREFILL, kv_bytes_per_token=1e6, transfer_bytes_per_s=1e9,
        transfer_s=0.004,
    )  # fmt: skip
    decode = EngineModel(LARGE, role=Role.DECODE)
    outcomes = run(Workload.of([0.0, 0.0], [30, 30], [10, 10]), prefill, decode)
    assert outcomes.decode_instance.tolist() == [1, 1]
    first = outcomes.first_token_at_s[0]
    link_s = 30 * 1e6 / 1e9
    first_decoded = first + 0.004 + link_s + lone_decode_s(decode, 30, 10)
    assert outcomes.finished_at_s[0] >= first_decoded - 1e-12
    assert outcomes.finished_at_s[1] - outcomes.finished_at_s[0] < link_s + 0.011
    alone = run(Workload.of([0.0], [30], [10]), prefill, decode)
    assert alone.e2e_s[0] == pytest.approx(
        lone_prefill_s(prefill, 30) + 0.004 + link_s + lone_decode_s(decode, 30, 10), rel=1e-12
    )


def test_an_answer_of_one_token_never_leaves_the_prefill_instance() -> None:
    """Disaggregated: what is finished with its first token needs no decode instance."""
    outcomes = run(
        Workload.of([0.0], [30], [1]), EngineModel(LARGE, role=Role.PREFILL), EngineModel(LARGE, role=Role.DECODE)
    )
    assert outcomes.decode_instance.tolist() == [0]
    assert outcomes.finished.all()


def test_a_prefill_instance_needs_room_for_prompts_alone() -> None:
    """Disaggregated: the prefill instance may be smaller than prompt and answer together; the decode one may not."""
    small, large = replace(SMALL, kv_tokens=160), replace(SMALL, kv_tokens=480)
    engines = EngineModel(small, role=Role.PREFILL), EngineModel(large, role=Role.DECODE)
    outcomes = run(Workload.of([0.0, 0.0], [150, 150], [300, 340]), *engines)
    assert outcomes.status.tolist() == [1, 3]


@pytest.mark.parametrize("schedule", list(Schedule))
def test_kv_that_arrives_is_taken_in_only_with_room_for_its_next_token(schedule: Schedule) -> None:
    """Disaggregated: a prompt of whole blocks needs one more at once; where none is free it waits, and KV holds."""
    decode = EngineModel(replace(SMALL, kv_tokens=160), schedule, role=Role.DECODE)
    outcomes = run(Workload.of([0.0, 0.0], [80, 64], [10, 10]), EngineModel(SMALL, role=Role.PREFILL), decode)
    assert outcomes.finished.all()


def test_a_transfer_that_its_client_left_ends_with_it() -> None:
    """Disaggregated: a request cancelled while its KV travels is never decoded, and frees the prefill instance."""
    prefill = EngineModel(LARGE, role=Role.PREFILL, kv_bytes_per_token=1e9, transfer_bytes_per_s=1e9)
    workload = Workload.of([0.0], [30], [10], cancelled_after_s=[1.0])
    outcomes = run(workload, prefill, EngineModel(LARGE, role=Role.DECODE))
    assert outcomes.status.tolist() == [4]
    assert outcomes.engine_busy_s[1] == 0


@pytest.mark.parametrize("schedule", list(Schedule))
@given(rows=st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=10))
@settings(max_examples=40, deadline=None)
def test_worst_case_admission_never_preempts(schedule: Schedule, rows: list[tuple[float, int, int]]) -> None:
    """Worst case: what is admitted can grow to its end beside all others, so nothing loses its KV."""
    at_s, prompts, outputs = zip(*sorted(rows), strict=True)
    engine = EngineModel(replace(SMALL, block_tokens=1), schedule, admission=Admission.WORST_CASE)
    outcomes = run(Workload.of(at_s, prompts, outputs), engine)
    assert outcomes.preemptions.sum() == 0
    assert outcomes.finished.all()


def test_worst_case_admission_knows_the_peak() -> None:
    """Worst case, prompts alone: 100 + 200 and 300 + 20 tokens fit in 520, as one has gone when the other is long."""
    engine = EngineModel(
        replace(SMALL, kv_tokens=520, block_tokens=1), Schedule.INTERVAL, admission=Admission.WORST_CASE
    )
    together = run(Workload.of([0.0, 0.0], [100, 300], [200, 20]), engine)
    apart = run(Workload.of([0.0, 0.0], [100, 300], [200, 120]), engine)
    assert together.first_token_at_s[1] < together.finished_at_s[0]
    assert apart.first_token_at_s[1] > apart.finished_at_s[0]


@pytest.mark.parametrize("schedule", list(Schedule))
def test_optimistic_admission_preempts_and_still_gives_every_token(schedule: Schedule) -> None:
    """Watermark: five that fit now and not at their ends lose KV on the way, count what they lost, and finish."""
    engine = EngineModel(replace(SMALL, block_tokens=1, token_budget=600), schedule)
    outcomes = run(Workload.of([0.0] * 5, [100] * 5, [200] * 5), engine)
    assert outcomes.finished.all()
    assert outcomes.preemptions.sum() > 0
    assert ((outcomes.recomputed_tokens >= 100) == (outcomes.preemptions > 0)).all()
    assert outcomes.preemptions[0] == 0


def test_least_work_left_admits_the_shortest_first() -> None:
    """Queue order: with one slot, those that wait run in the order of their true work; the first came alone."""
    engine = EngineModel(replace(LARGE, max_sequences=1), queue_order=QueueOrder.LEAST_WORK_LEFT)
    outcomes = run(Workload.of([0.0, 0.001, 0.001, 0.001], [50, 90, 50, 10], [5, 5, 5, 5]), engine)
    assert np.argsort(outcomes.finished_at_s).tolist() == [0, 3, 2, 1]


def test_bin_packing_admits_the_longest_that_fits() -> None:
    """Queue order: beside a running request the longest prompt that fits the free KV goes first."""
    engine = EngineModel(replace(SMALL, max_sequences=2), queue_order=QueueOrder.BIN_PACKING)
    outcomes = run(Workload.of([0.0, 0.001, 0.001, 0.001], [300, 500, 200, 100], [60, 5, 5, 5]), engine)
    order = np.argsort(outcomes.first_token_at_s).tolist()
    assert order == [0, 2, 3, 1]

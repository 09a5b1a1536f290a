"""Laws of the iteration-level engine, on random workloads. Each test's name and docstring state one law."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sim_worlds import SMALL

from llmrouter.domain import EngineMode
from llmrouter.errors import InvalidRequestError
from llmrouter.profiles import PROFILES
from llmrouter.sim.engine import Engine, EngineRequest, StepPlan, StepResult
from llmrouter.sim.kernel.records import DECODE

if TYPE_CHECKING:
    from collections.abc import Callable

MODES = pytest.mark.parametrize("mode", list(EngineMode))


@dataclass
class Run:
    """Everything an engine did, with a check of the invariants at each boundary."""

    engine: Engine
    produced: Counter[str] = field(default_factory=Counter)
    finished: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    first: list[str] = field(default_factory=list)
    log: list[tuple[StepPlan, StepResult]] = field(default_factory=list)

    def step(self, during: Callable[[], object] | None = None) -> None:
        plan = self.engine.begin_step()
        self.check()
        if during is not None:
            during()
        result = self.engine.finish_step()
        continuing = list(self.engine.continuing(result))
        assert len(continuing) + len(result.finished) == result.tokens
        self.produced.update(continuing)
        self.produced.update(list(result.finished))
        self.finished += result.finished
        for request_id, tokens in result.finished.items():
            assert tokens == self.produced[request_id]
        self.cancelled += result.cancelled
        self.first += result.first_tokens
        self.log.append((plan, result))
        self.check()

    def check(self) -> None:
        """The books agree with the sequences: blocks, context and batch, never above capacity."""
        engine = self.engine
        counters = engine.counters
        block = engine.profile.block_tokens
        assert 0 <= counters.kv_blocks_used <= counters.kv_blocks_total
        assert counters.running <= engine.profile.max_sequences
        context = 0
        blocks = 0
        pending = 1 if engine.in_step and engine._record.step_decodes else 0
        for sequence in (engine._pool.sequences[slot] for slot in engine._batch()):
            if sequence.phase == DECODE:
                left = sequence.finish_tick - engine._record.tick
                held = sequence.prompt + sequence.output - left - 1
                context += held
                blocks += -(-(held + pending) // block)
            else:
                assert -(-sequence.prefilled // block) <= sequence.blocks <= -(-sequence.target // block)
                blocks += sequence.blocks
        assert counters.context_tokens == context
        assert counters.kv_blocks_used == blocks

    def drain(self, limit: int = 20_000) -> None:
        for _ in range(limit):
            if not self.engine.has_work:
                return
            self.step()
        pytest.fail("the engine did not come to an end")


def workload(lengths: list[tuple[int, int]]) -> list[EngineRequest]:
    return [EngineRequest(f"r{index}", prompt, output) for index, (prompt, output) in enumerate(lengths)]


LENGTHS = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 120)), min_size=1, max_size=25)


def make(mode: EngineMode) -> Engine:
    return Engine(replace(SMALL, mode=mode))


@MODES
@given(lengths=LENGTHS, gaps=st.lists(st.integers(0, 4), min_size=25, max_size=25))
@settings(max_examples=80, deadline=None)
def test_requests_and_tokens_are_conserved(mode: EngineMode, lengths: list[tuple[int, int]], gaps: list[int]) -> None:
    """What goes in comes out: every request once, with exactly its tokens, preempted or not."""
    run = Run(make(mode))
    requests = workload(lengths)
    for request, gap in zip(requests, gaps, strict=False):
        run.engine.add(request)
        for _ in range(gap):
            if run.engine.has_work:
                run.step()
    run.drain()
    assert sorted(run.finished) == sorted(request.request_id for request in requests)
    assert run.produced == Counter({request.request_id: request.output_tokens for request in requests})
    assert sorted(run.first) == sorted(set(run.first))
    counters = run.engine.counters
    assert counters.output_tokens_total == sum(request.output_tokens for request in requests)
    assert counters.prompt_tokens_total == sum(request.prompt_tokens for request in requests)
    assert (counters.kv_blocks_used, counters.context_tokens, counters.running, counters.waiting) == (0, 0, 0, 0)


@MODES
@given(lengths=LENGTHS, cancels=st.lists(st.tuples(st.integers(0, 24), st.integers(0, 60), st.booleans()), max_size=20))
@settings(max_examples=80, deadline=None)
def test_cancellation_frees_everything_and_harms_nobody(
    mode: EngineMode, lengths: list[tuple[int, int]], cancels: list[tuple[int, int, bool]]
) -> None:
    """A cancelled request leaves nothing behind, gets nothing more, and the others still get exactly their tokens."""
    run = Run(make(mode))
    requests = workload(lengths)
    for request in requests:
        run.engine.add(request)
    gone: set[str] = set()

    def cancel(request_id: str) -> None:
        if run.engine.cancel(request_id):
            gone.add(request_id)
        assert not run.engine.cancel(request_id)

    for index, steps, mid_step in cancels:
        for _ in range(steps):
            if run.engine.has_work:
                run.step()
        if mid_step and run.engine.has_work:
            run.step(during=partial(cancel, f"r{index}"))
        else:
            cancel(f"r{index}")
    run.drain()
    assert set(run.finished) | gone == {request.request_id for request in requests}
    assert not set(run.finished) & gone
    for request in requests:
        if request.request_id not in gone:
            assert run.produced[request.request_id] == request.output_tokens
        else:
            assert run.produced[request.request_id] < request.output_tokens
    counters = run.engine.counters
    assert counters.cancelled_total == len(gone)
    assert (counters.kv_blocks_used, counters.context_tokens, counters.running, counters.waiting) == (0, 0, 0, 0)
    assert run.engine._record.heap_size == 0
    assert not any(run.engine._pool.growing)


@MODES
@given(lengths=LENGTHS)
@settings(max_examples=40, deadline=None)
def test_work_is_conserved(mode: EngineMode, lengths: list[tuple[int, int]]) -> None:
    """An engine with work does some in every step: no step without a prefill or a decode, none without duration."""
    run = Run(make(mode))
    for request in workload(lengths):
        run.engine.add(request)
    run.drain()
    for plan, result in run.log:
        assert plan.prefill_tokens + plan.decode_sequences > 0
        assert plan.duration_s >= min(SMALL.base_decode_s, SMALL.base_prefill_s)
        assert result.tokens <= plan.decode_sequences + plan.prefill_sequences


@MODES
@given(lengths=LENGTHS)
@settings(max_examples=30, deadline=None)
def test_equal_inputs_give_equal_outputs(mode: EngineMode, lengths: list[tuple[int, int]]) -> None:
    """Determinism: the same calls give the same plans and results, step by step."""
    runs = [Run(make(mode)), Run(make(mode))]
    for run in runs:
        for request in workload(lengths):
            run.engine.add(request)
        run.drain()
    assert runs[0].log == runs[1].log


@MODES
@given(lengths=LENGTHS)
@settings(max_examples=30, deadline=None)
def test_first_tokens_come_in_order_of_arrival(mode: EngineMode, lengths: list[tuple[int, int]]) -> None:
    """First come, first served: without preemption, first tokens come in the order of arrival."""
    run = Run(Engine(replace(SMALL, mode=mode, kv_tokens=1_000_000)))
    for request in workload(lengths):
        run.engine.add(request)
    run.drain()
    assert run.first == [f"r{index}" for index in range(len(lengths))]
    assert run.engine.counters.preemptions_total == 0


@MODES
def test_an_arrival_during_a_step_waits_for_its_end(mode: EngineMode) -> None:
    """Causality: a step's plan does not know of what arrives while it runs."""
    run = Run(make(mode))
    run.engine.add(EngineRequest("early", 10, 5))
    run.step(during=lambda: run.engine.add(EngineRequest("late", 10, 1)))
    assert run.produced == Counter({"early": 1})
    assert run.engine.counters.waiting == 1
    run.step()
    assert run.produced["late"] == 1


@pytest.mark.parametrize("name", sorted(PROFILES))
@pytest.mark.parametrize(("prompt", "output"), [(1, 1), (17, 2), (1_000, 50), (2_048, 16), (2_000, 33)])
def test_a_lone_request_takes_its_closed_form(name: str, prompt: int, output: int) -> None:
    """A request alone: one prefill of p tokens, then output - 1 decode steps over a context that grows by one."""
    profile = PROFILES[name]
    engine = Engine(profile)
    engine.add(EngineRequest("lone", prompt, output))
    run = Run(engine)
    run.drain()
    prefill_s = (
        profile.base_prefill_s + profile.prefill_s_per_token * prompt + profile.prefill_s_per_token_squared * prompt**2
    )
    prefill_s = max(prefill_s, profile.prefill_floor_s)
    decode_s = sum(
        profile.base_decode_s + profile.context_s_per_token * context + profile.sequence_s
        for context in range(prompt, prompt + output - 1)
    )
    assert sum(plan.duration_s for plan, _ in run.log) == pytest.approx(prefill_s + decode_s, rel=1e-12)
    assert run.log[0][0].duration_s == pytest.approx(prefill_s, rel=1e-12)


@pytest.mark.parametrize(("prompt", "chunks"), [(1, 1), (64, 1), (65, 2), (128, 2), (300, 5)])
def test_a_prompt_takes_its_number_of_chunks(prompt: int, chunks: int) -> None:
    """Chunked prefill of a lone prompt takes ceil(prompt / budget) steps, and its squares add up to prompt squared."""
    engine = make(EngineMode.CHUNKED)
    engine.add(EngineRequest("lone", prompt, 1))
    run = Run(engine)
    run.drain()
    assert len(run.log) == chunks
    linear_s = chunks * SMALL.base_prefill_s + SMALL.prefill_s_per_token * prompt
    total_s = sum(plan.duration_s for plan, _ in run.log)
    assert total_s - linear_s == pytest.approx(SMALL.prefill_s_per_token_squared * prompt**2, rel=1e-9)


def test_a_mixed_step_takes_the_longer_base_and_both_slopes() -> None:
    """A chunked step with both kinds costs max(decode base, prefill line) plus squares, context and sequences."""
    engine = make(EngineMode.CHUNKED)
    run = Run(engine)
    engine.add(EngineRequest("decoding", 30, 10))
    run.step()
    engine.add(EngineRequest("prompt", 50, 10))
    run.step()
    prefill_s = SMALL.base_prefill_s + 50 * SMALL.prefill_s_per_token
    extra_s = 50**2 * SMALL.prefill_s_per_token_squared + 30 * SMALL.context_s_per_token + SMALL.sequence_s
    assert run.log[1][0].duration_s == pytest.approx(max(SMALL.base_decode_s, prefill_s) + extra_s, rel=1e-12)


def test_prefill_first_never_mixes() -> None:
    """Prefill-first: a step either prefills or decodes."""
    run = Run(make(EngineMode.PREFILL_FIRST))
    for index in range(20):
        run.engine.add(EngineRequest(f"r{index}", 40, 15))
        run.step()
    run.drain()
    assert all((plan.prefill_tokens == 0) != (plan.decode_sequences == 0) for plan, _ in run.log)


def test_decode_tokens_use_up_the_token_budget() -> None:
    """A chunked step never computes more tokens than its budget."""
    run = Run(make(EngineMode.CHUNKED))
    for index in range(20):
        run.engine.add(EngineRequest(f"r{index}", 90, 15))
    run.drain()
    assert all(plan.prefill_tokens + plan.decode_sequences <= SMALL.token_budget for plan, _ in run.log)


@MODES
def test_the_youngest_is_preempted_and_still_gets_exactly_its_tokens(mode: EngineMode) -> None:
    """KV exhaustion preempts the youngest; it is recomputed and loses and repeats no token."""
    run = Run(make(mode))
    requests = [EngineRequest(name, 200, 120) for name in ("oldest", "middle", "youngest")]
    for request in requests:
        run.engine.add(request)
    run.drain()
    preempted = [request_id for plan, _ in run.log for request_id in plan.preempted]
    assert preempted
    assert preempted[0] == "youngest"
    assert "oldest" not in preempted
    assert run.engine.counters.preemptions_total == len(preempted)
    assert run.engine.counters.recomputed_tokens_total > 0
    assert run.produced == Counter({request.request_id: 120 for request in requests})


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (EngineRequest("x", 0, 5), "prompt_tokens"),
        (EngineRequest("x", -1, 5), "prompt_tokens"),
        (EngineRequest("x", 5, 0), "output_tokens"),
        (EngineRequest("x", 630, 11), "exceed the engine's 640 tokens of KV"),
        (EngineRequest("x", 10**9, 1), "exceed"),
        (EngineRequest("taken", 5, 5), "already in the engine"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(request_: EngineRequest, words: str) -> None:
    """Refusal is total: a refused request leaves the engine as it was."""
    engine = make(EngineMode.CHUNKED)
    engine.add(EngineRequest("taken", 5, 5))
    before = engine.counters
    with pytest.raises(InvalidRequestError, match=words):
        engine.add(request_)
    assert engine.counters == before


@MODES
def test_the_largest_request_that_fits_is_served(mode: EngineMode) -> None:
    """The bound of the refusal is tight."""
    run = Run(make(mode))
    run.engine.add(EngineRequest("whole", 630, 10))
    run.drain()
    assert run.produced == Counter({"whole": 10})


def test_steps_must_alternate() -> None:
    """A step cannot begin twice, finish twice, or begin without work."""
    engine = make(EngineMode.CHUNKED)
    with pytest.raises(RuntimeError, match="without work"):
        engine.begin_step()
    engine.add(EngineRequest("x", 5, 5))
    with pytest.raises(RuntimeError, match="no step"):
        engine.finish_step()
    engine.begin_step()
    with pytest.raises(RuntimeError, match="already under way"):
        engine.begin_step()

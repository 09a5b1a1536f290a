"""Conservation and causality of a whole run, on random worlds, interpreted. Each test states one law."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from support.sim_worlds import Case, cases, interpret

from llmrouter.sim.outcomes import Outcomes, Status

if TYPE_CHECKING:
    from llmrouter.sim.kernel.records import World

pytestmark = pytest.mark.timeout(600)  # random worlds, step by step
SLACK_S = 1e-9


@given(case=cases())
@settings(max_examples=150, deadline=None)
def test_requests_and_tokens_are_conserved(case: Case) -> None:
    """Every request ends in one way; engines count each token that a request got once, and a finished one got all."""
    last: list[World] = []
    outcomes = interpret(case, lambda world: last.__setitem__(slice(None), [world]))
    pool = last[0].pool
    assert (outcomes.status != Status.UNFINISHED).all()
    produced = np.array([sequence.produced for sequence in pool.sequences])
    assert (produced[outcomes.finished] == case.workload.output_tokens[outcomes.finished]).all()
    assert (produced <= case.workload.output_tokens).all()
    untold = produced.sum() - sum(engine.output_tokens_total for engine in pool.engines)
    assert 0 <= untold <= (outcomes.status == Status.CANCELLED).sum()  # the token of the step that a client left in
    began = ~np.isnan(outcomes.first_token_at_s)
    assert (began == (produced > 0)).all()
    assert sum(engine.prompt_tokens_total for engine in pool.engines) == case.workload.prompt_tokens[began].sum()
    assert sum(engine.finished_total for engine in pool.engines) == outcomes.finished.sum()
    assert sum(engine.preemptions_total for engine in pool.engines) == outcomes.preemptions.sum()
    assert sum(engine.recomputed_tokens_total for engine in pool.engines) == outcomes.recomputed_tokens.sum()
    assert all(engine.ledger_requests == 0 for engine in pool.engines)
    assert all(engine.blocks_used == 0 for engine in pool.engines)


@given(case=cases())
@settings(max_examples=150, deadline=None)
def test_nothing_comes_before_its_cause(case: Case) -> None:
    """Arrival, dispatch, first token and finish follow each other, none sooner than delays and a lone prefill allow."""
    outcomes, workload, side = interpret(case), case.workload, case.setup.routers
    assert not (outcomes.dispatched_at_s < outcomes.arrived_at_s).any()
    batch = np.zeros(len(workload)) if workload.batch is None else workload.batch
    longest_s = np.where(batch, side.batch_max_wait_s, side.max_wait_s)
    assert not (outcomes.wait_s > longest_s + SLACK_S).any()
    assert (np.isnan(outcomes.dispatched_at_s) == (outcomes.instance < 0)).all()
    assert (np.isfinite(outcomes.finished_at_s) == outcomes.finished).all()
    for row in np.flatnonzero(~np.isnan(outcomes.first_token_at_s)).tolist():
        assert _earliest_first_token_s(case, outcomes, row) <= outcomes.first_token_at_s[row] + SLACK_S
        steps_s = (workload.output_tokens[row] - 1) * min(engine.profile.base_decode_s for engine in case.setup.engines)
        assert not outcomes.finished_at_s[row] < outcomes.first_token_at_s[row] + steps_s - SLACK_S
    for row, before in enumerate(workload.after.tolist()):
        if before < 0:
            assert outcomes.arrived_at_s[row] == workload.arrived_at_s[row]
        elif outcomes.finished[before]:
            assert outcomes.arrived_at_s[row] == outcomes.finished_at_s[before] + workload.think_s[row]
        else:
            assert outcomes.arrived_at_s[row] >= outcomes.arrived_at_s[before]


def _earliest_first_token_s(case: Case, outcomes: Outcomes, row: int) -> float:
    engine = case.setup.engines[outcomes.instance[row]]
    prompt, cached = int(case.workload.prompt_tokens[row]), int(outcomes.cached_tokens[row])
    if outcomes.preemptions[row]:
        cached = prompt - 1  # what it computed before, or another did, may be cached when it comes back
    profile = engine.profile
    return float(
        outcomes.dispatched_at_s[row]
        + case.setup.routers.dispatch_s
        + (engine.front_s + engine.front_s_per_token * prompt)
        + profile.base_prefill_s
        + engine.prefill_sequence_s
        + profile.prefill_s_per_token * (prompt - cached)
        + profile.prefill_s_per_token_squared * (prompt**2 - cached**2)
    )


@given(case=cases())
@settings(max_examples=60, deadline=None)
def test_only_what_may_take_a_request_gets_it(case: Case) -> None:
    """A request goes to an instance that serves its model and takes new ones; disaggregated, it decodes elsewhere."""
    outcomes = interpret(case)
    for row in np.flatnonzero(outcomes.instance >= 0).tolist():
        engine = case.setup.engines[outcomes.instance[row]]
        model = case.workload.models[case.workload.model[row]]
        assert not case.setup.serves or model in case.setup.serves[outcomes.instance[row]]
        moved = outcomes.decode_instance[row] != outcomes.instance[row]
        decodes = case.setup.engines[outcomes.decode_instance[row]].role
        if case.setup.routers.stages is None:
            assert engine.role != "Decode"
            assert not moved or (engine.role, decodes) == ("Prefill", "Decode")
        else:
            assert moved == (engine.role == "Prefill")
            assert decodes != "Prefill"

"""The batch class in the simulator, interpreted: after all others, into gaps, never for ever, kin after kin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sim_books import check_books
from support.sim_worlds import ONE_AT_A_TIME, SMALL, Case, interpret

from llmrouter.routing.batch import MOST_IN_A_ROW, BatchRules, has_turn, kinship, leaves_headroom
from llmrouter.routing.rules import Rule
from llmrouter.sim.model import EngineModel
from llmrouter.sim.outcomes import Outcomes, Status
from llmrouter.sim.setup import CompiledPolicy, RouterSide, Setup
from llmrouter.sim.workload import Workload

pytestmark = pytest.mark.timeout(600)

ONE_EACH = CompiledPolicy(rule=Rule.ROUND_ROBIN, max_requests=1)
LEAST = CompiledPolicy(rule=Rule.LEAST_IN_FLIGHT, max_requests=None, kv_fraction=1.0)


def run(workload: Workload, side: RouterSide, *, policy: CompiledPolicy = ONE_EACH) -> Outcomes:
    profile = ONE_AT_A_TIME if policy is ONE_EACH else SMALL
    return interpret(Case(Setup(engines=(EngineModel(profile),), routers=side), workload, lambda: policy), check_books)


def crowd(load: float, count: int = 240, *, every: int = 3) -> Workload:
    """One request in so many is of the batch class; the others alone load an engine of ten a second so far."""
    rng = np.random.default_rng(7)
    gaps_s = rng.exponential(0.1 / load * (every - 1) / every, count)
    batch = (np.arange(count) % every == 0).astype(int)
    return Workload.of(np.cumsum(gaps_s), np.full(count, 10), np.full(count, 1), batch=batch)


WAITS_FOR_GAPS = BatchRules(least_share=0.0)


@pytest.mark.parametrize("load", [0.7, 1.2])
def test_a_batch_request_never_goes_while_another_is_held(load: float) -> None:
    """At each dispatch of the batch class nobody else was there."""
    workload = crowd(load)
    assert workload.batch is not None
    outcomes = run(workload, RouterSide(batch=WAITS_FOR_GAPS))
    ours = workload.batch == 0
    for at_s in outcomes.dispatched_at_s[~ours]:
        assert not (ours & (workload.arrived_at_s <= at_s) & (outcomes.dispatched_at_s > at_s)).any()
    assert outcomes.finished.all()


@pytest.mark.parametrize("load", [0.7, 1.2])
def test_others_wait_as_if_the_batch_class_were_one_request_in_service_at_most(load: float) -> None:
    """What is in service is not interrupted; beyond that the batch class delays nobody (M/G/1 with two priorities)."""
    both = crowd(load)
    assert both.batch is not None
    ours = both.batch == 0
    count = int(ours.sum())
    alone = run(Workload.of(both.arrived_at_s[ours], np.full(count, 10), np.full(count, 1)), RouterSide())
    beside = run(both, RouterSide(batch=WAITS_FOR_GAPS))
    assert (beside.wait_s[ours] - alone.wait_s <= 0.1 + 1e-9).all()


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_under_lasting_overload_the_batch_class_gets_its_least_share_and_no_more(share: float) -> None:
    """No gap ever comes: once its patience is over, it has one dispatch in so many; the others have the rest."""
    workload = crowd(2.0, 600, every=2)
    assert workload.batch is not None
    outcomes = run(workload, RouterSide(batch=BatchRules(patience_s=1.0, least_share=share)))
    rows = np.argsort(outcomes.dispatched_at_s)
    busy = rows[(outcomes.dispatched_at_s[rows] > 2.0) & (outcomes.dispatched_at_s[rows] < workload.arrived_at_s[-1])]
    assert workload.batch[busy].mean() == pytest.approx(share, abs=0.03)
    dispatched_s = outcomes.dispatched_at_s[busy[workload.batch[busy] == 1]]
    arrived_s = workload.arrived_at_s[busy[workload.batch[busy] == 1]]
    assert (dispatched_s - arrived_s >= 1.0).all()
    assert (np.diff(arrived_s) > 0).all()


def test_the_batch_class_has_its_own_longest_hold_and_most() -> None:
    """Others keep the engine busy until 10 s: of five batch requests one waits too long, and two find no place."""
    at_s = np.concatenate([np.arange(100) * 0.05, [0.5, 2.0, 2.1, 2.2, 2.3]])
    rows = np.argsort(at_s, kind="stable")
    batch = (rows >= 100).astype(int)
    workload = Workload.of(at_s[rows], np.full(105, 10), np.full(105, 1), batch=batch)
    side = RouterSide(batch=WAITS_FOR_GAPS, max_wait_s=5.5, batch_max_wait_s=9.0, batch_max_held=3)
    outcomes = run(workload, side)
    assert outcomes.finished[batch == 0].all()
    assert outcomes.status[batch == 1].tolist() == [Status.SHED, *[Status.FINISHED] * 2, *[Status.SHED] * 2]
    assert outcomes.wait_s[batch == 1][1:3] == pytest.approx([8.0, 8.0])


@pytest.mark.parametrize("fraction", [0.2, 0.6, 1.0])
def test_what_is_dispatched_of_the_batch_class_leaves_headroom(fraction: float) -> None:
    """With batch requests alone, an engine never holds more than its fraction; an idle one takes any."""
    count = 60
    workload = Workload.of(
        np.zeros(count),
        np.full(count, 20),
        np.full(count, 10),
        predicted_output_tokens=np.full(count, 10),
        batch=np.ones(count, int),
    )
    side = RouterSide(batch=BatchRules(fraction=fraction, most_queued_tokens=10_000, least_share=0.0))
    outcomes = run(workload, side, policy=LEAST)
    most = max(1, min(int(fraction * SMALL.kv_tokens / 30), int(np.ceil(fraction * SMALL.max_sequences))))
    events = [(at_s, 1) for at_s in outcomes.dispatched_at_s] + [(at_s, 0) for at_s in outcomes.finished_at_s]
    there, peak = 0, 0
    for _, came in sorted(events):
        there += 1 if came else -1
        peak = max(peak, there)
    assert outcomes.finished.all()
    assert peak == most


def test_kin_follow_kin_and_the_oldest_goes_after_so_many() -> None:
    """Ten families in turn: each is served in runs, and whoever came first is passed by a bounded number."""
    count, groups = 200, 10
    family = np.arange(count) % groups
    workload = Workload.of(
        np.zeros(count),
        np.full(count, 40),
        np.full(count, 1),
        batch=np.ones(count, int),
        prefix_start=np.arange(count + 1) * 2,
        prefix_blocks=np.stack([np.zeros(count, int), 1 + family], axis=1).ravel(),
        prefix_block_tokens=16,
    )
    order = family[np.argsort(run(workload, RouterSide(batch=WAITS_FOR_GAPS)).dispatched_at_s)]
    assert (np.diff(order) != 0).sum() < 2 * groups
    plain = RouterSide(batch=replace(WAITS_FOR_GAPS, grouped=False))
    assert (np.diff(family[np.argsort(run(workload, plain).dispatched_at_s)]) != 0).all()


def test_a_family_without_end_does_not_starve_the_others() -> None:
    """One stranger among kin that keep coming goes after at most ``MOST_IN_A_ROW`` of them."""
    count = 3 * MOST_IN_A_ROW
    stranger = 5
    blocks = np.where(np.arange(count) == stranger, 1, 0)
    workload = Workload.of(
        np.concatenate([np.zeros(10), np.arange(count - 10) * 0.09]),
        np.full(count, 40),
        np.full(count, 1),
        batch=np.ones(count, int),
        prefix_start=np.arange(count + 1),
        prefix_blocks=blocks,
        prefix_block_tokens=16,
    )
    outcomes = run(workload, RouterSide(batch=WAITS_FOR_GAPS))
    place = int((outcomes.dispatched_at_s < outcomes.dispatched_at_s[stranger]).sum())
    assert 10 <= place <= stranger + MOST_IN_A_ROW + 1


# --- formulas ---

TOKENS = st.floats(0, 1e6)


@given(
    requests=st.floats(1, 500), context=TOKENS, queued=TOKENS, left=TOKENS, prompt=TOKENS, output=TOKENS, more=TOKENS
)
def test_headroom_is_never_gained_by_load(**given_: float) -> None:
    requests, context, queued, left, prompt, output, more = given_.values()

    def leaves(requests: float, context: float, queued: float, left: float) -> bool:
        return leaves_headroom(requests, context, queued, left, 2e6, 600.0, prompt, output, 0.5, 1e5)

    if not leaves(requests, context, queued, left):
        assert not leaves(requests + 1, context, queued, left)
        assert not leaves(requests, context + more, queued, left)
        assert not leaves(requests, context, queued + more, left)
        assert not leaves(requests, context, queued, left + more)
    assert leaves(0.0, 0.0, queued, 0.0)


@given(waited_s=st.floats(0, 1e6), since=st.integers(0, 10**6), share=st.floats(0.001, 0.5))
def test_a_turn_comes_after_patience_and_in_proportion(waited_s: float, since: int, share: float) -> None:
    assert not has_turn(waited_s, waited_s + 1.0, since, share)
    assert not has_turn(waited_s, 0.0, since, 0.0)
    assert has_turn(waited_s, waited_s, since, share) == (since * share >= 1.0 - share)


def test_kinship_is_a_power_of_two_within() -> None:
    assert [kinship(blocks) for blocks in (0, 1, 2, 3, 4, 7, 8, 1000)] == [0, 1, 2, 2, 4, 4, 8, 512]

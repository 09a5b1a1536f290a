"""The routers of a run: order within an instant, lines, stale and private views, reserve calls, ticks, samples."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.sim_books import check_books
from support.sim_worlds import ONE_AT_A_TIME, SERVICE_S, Case, interpret

from llmrouter.domain import Candidate, Hold, Placement, Role
from llmrouter.errors import InvalidInputError
from llmrouter.routing.policies import request_bound
from llmrouter.routing.rules import Rule
from llmrouter.sim.arrays import lay_out
from llmrouter.sim.model import EngineModel
from llmrouter.sim.outcomes import Status
from llmrouter.sim.setup import CompiledPolicy, RouterSide, Setup
from llmrouter.sim.workload import Workload

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from llmrouter.domain import Decision, InstanceView, PoolSnapshot, Request, Room
    from llmrouter.routing.policies import Policy
    from llmrouter.sim.kernel.records import World
    from llmrouter.sim.outcomes import Outcomes

ONE = EngineModel(ONE_AT_A_TIME)
MANY = EngineModel(replace(ONE_AT_A_TIME, max_sequences=8))
ONE_EACH = CompiledPolicy(rule=Rule.ROUND_ROBIN, max_requests=1)
QUEUED = CompiledPolicy(rule=Rule.ROUND_ROBIN, max_requests=1_000)


def arrivals(at_s: Sequence[float], output: int = 1, **columns: object) -> Workload:
    return Workload.of(at_s, [10] * len(at_s), [output] * len(at_s), **columns)


def run(
    workload: Workload,
    *engines: EngineModel,
    policy: CompiledPolicy | Policy = ONE_EACH,
    side: RouterSide | None = None,
    sample_every_s: float | None = None,
) -> Outcomes:
    setup = Setup(engines=engines, routers=side or RouterSide())
    return interpret(Case(setup, workload, lambda: policy, sample_every_s=sample_every_s), check_books)


# --- order within one instant ---


def test_arrivals_of_one_instant_share_the_step_that_begins_then() -> None:
    """Engines begin their steps last: an idle one waits for the whole instant; a step's end comes before arrivals."""
    assert run(arrivals([1.0, 1.0]), MANY, policy=QUEUED).finished_at_s.tolist() == [1.1, 1.1]
    assert run(arrivals([1.0, 1.1]), MANY, policy=QUEUED).finished_at_s.tolist() == [1.1, 1.1 + 0.1]


def test_a_place_that_is_freed_in_the_instant_of_an_arrival_is_free_for_it() -> None:
    """Ends of steps come first, decisions after arrivals: who arrives as another finishes does not wait."""
    outcomes = run(arrivals([0.0, SERVICE_S]), ONE)
    assert outcomes.wait_s.tolist() == [0.0, 0.0]


def test_a_client_that_leaves_as_it_comes_is_never_dispatched() -> None:
    """Cancellations come before decisions."""
    outcomes = run(arrivals([0.0, 1.0], cancelled_after_s=[0.0, np.inf]), ONE)
    assert outcomes.status.tolist() == [Status.CANCELLED, Status.FINISHED]
    assert np.isnan(outcomes.dispatched_at_s[0])


def test_a_request_whose_time_is_up_as_a_place_is_freed_is_shed() -> None:
    """Expiries come before decisions: a hold of exactly the longest is too long."""
    outcomes = run(arrivals([0.0, 0.0]), ONE, side=RouterSide(max_wait_s=SERVICE_S))
    assert outcomes.status.tolist() == [Status.FINISHED, Status.SHED]


def test_arrivals_of_one_instant_are_taken_in_the_order_of_the_workload() -> None:
    """Within one instant the trace's order counts."""
    outcomes = run(arrivals([0.0] * 4), ONE)
    assert outcomes.dispatched_at_s.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_later_turns_come_before_the_arrivals_of_their_instant() -> None:
    """A later turn of a session joins the line before a new session of the same instant."""
    workload = arrivals([0.0, 0.0, SERVICE_S], after=[-1, 0, -1], think_s=[0.0, 0.0, 0.0])
    outcomes = run(workload, ONE)
    assert outcomes.dispatched_at_s.tolist() == pytest.approx([0.0, SERVICE_S, 2 * SERVICE_S])


# --- lines ---


def test_held_requests_go_first_come_first_served() -> None:
    """One line: dispatches come in the order of arrival."""
    at_s = [0.013 * row for row in range(60)]
    outcomes = run(arrivals(at_s), ONE, ONE)
    assert outcomes.wait_s.max() > 0.3
    assert (np.diff(outcomes.dispatched_at_s) >= 0).all()


def test_a_model_whose_instances_are_busy_holds_up_no_other() -> None:
    """One line per model: the head of one line does not stand before the others."""
    workload = arrivals([0.0, 0.01, 0.02], model=[0, 0, 1], models=("a", "b"))
    setup = Setup(engines=(ONE, ONE), serves=(frozenset({"a"}), frozenset({"b"})))
    outcomes = interpret(Case(setup, workload, lambda: ONE_EACH), check_books)
    assert outcomes.instance.tolist() == [0, 0, 1]
    assert outcomes.wait_s.tolist() == pytest.approx([0.0, 0.09, 0.0])


def test_in_ticks_too_a_line_that_holds_does_not_stop_another() -> None:
    """A hold uses up no tick: the next line of the router may place its head in the same one."""
    workload = arrivals([0.0, 0.0, 0.0], model=[0, 0, 1], models=("a", "b"))
    setup = Setup(
        engines=(ONE, ONE),
        serves=(frozenset({"a"}), frozenset({"b"})),
        routers=RouterSide(decision_every_s=0.02),
    )
    outcomes = interpret(Case(setup, workload, lambda: ONE_EACH), check_books)
    assert outcomes.dispatched_at_s.tolist() == pytest.approx([0.0, 0.1, 0.02])


def test_the_longest_wait_sheds_exactly_those_that_would_wait_longer() -> None:
    """max_wait_s: of eight at one server, those whose turn comes within it are served, the rest shed."""
    outcomes = run(arrivals([0.0] * 8), ONE, side=RouterSide(max_wait_s=3.5 * SERVICE_S))
    assert outcomes.status.tolist() == [Status.FINISHED] * 4 + [Status.SHED] * 4
    assert np.isnan(outcomes.finished_at_s[4:]).all()


def test_a_full_line_sheds_what_arrives() -> None:
    """max_held: beyond so many held at a router the next is shed; another router has a line of its own."""
    at_s = [0.0, 0.01, 0.02, 0.03, 0.04]
    outcomes = run(arrivals(at_s), ONE, side=RouterSide(max_held=2))
    assert outcomes.status.tolist() == [1, 1, 1, 2, 2]
    outcomes = run(arrivals(at_s), ONE, side=RouterSide(max_held=2, routers=2))
    assert outcomes.status.tolist() == [1, 1, 1, 1, 1]


def test_what_no_instance_serves_or_can_hold_is_refused() -> None:
    """Refused: a model that nobody serves, at once; and what the chosen instance's KV can never hold."""
    workload = Workload.of([0.0, 0.0, 0.0], [10, 15_990, 15_990], [1, 10, 11], model=[1, 0, 0], models=("a", "b"))
    setup = Setup(engines=(ONE,), serves=(frozenset({"a"}),))
    outcomes = interpret(Case(setup, workload, lambda: QUEUED), check_books)
    assert outcomes.status.tolist() == [Status.REFUSED, Status.FINISHED, Status.REFUSED]


# --- what routers see ---


@dataclass
class Watcher:
    """Sends everything to the first instance, and notes what it saw: request, requests in flight by instance."""

    name: str = "Watcher"
    seen: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        del rng
        self.seen.append((request.request_id, tuple(view.load.requests for view in snapshot.views)))
        first = snapshot.views[0]
        return Placement((Candidate(first.instance.instance_id, 0.0, first.load),), "first")

    def room_of(self, view: InstanceView) -> Room:
        return request_bound(1_000)(view)


def saw(side: RouterSide, at_s: Sequence[float]) -> list[int]:
    """Requests in flight on the one instance as each arrival's router saw them; every request takes 100 s."""
    watcher = Watcher()
    run(arrivals(at_s, output=1_000), EngineModel(replace(ONE_AT_A_TIME, max_sequences=50)), policy=watcher, side=side)
    return [loads[0] for _, loads in watcher.seen]


def test_exact_shared_views_count_everyone_at_once() -> None:
    """Shared, refresh 0: every router sees all dispatches."""
    assert saw(RouterSide(routers=2), [0.0, 0.0, 1.0, 1.0, 2.0]) == [0, 1, 2, 3, 4]


def test_private_routers_see_only_their_own() -> None:
    """Private: of two routers in turn each sees every second dispatch, at once."""
    assert saw(RouterSide(routers=2, shared=False), [0.0, 0.0, 1.0, 1.0, 2.0]) == [0, 0, 1, 1, 2]


def test_a_view_ages_until_it_is_refreshed_but_for_ones_own() -> None:
    """Refresh 10 s, two routers at 0 and 5 s: others' dispatches are seen from then on, one's own at once."""
    side = RouterSide(routers=2, refresh_s=10.0, reserves=False)
    at_s = [1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 11.0, 12.0]
    assert saw(side, at_s) == [0, 0, 1, 1, 2, 4, 6, 5]
    unaware = replace(side, counts_own=False)
    assert saw(unaware, at_s) == [0, 0, 0, 0, 0, 4, 6, 4]


@pytest.mark.parametrize("routers", [2, 5])
def test_a_reserve_call_keeps_routers_with_old_views_within_the_room(routers: int) -> None:
    """Reserves: the last place goes to one router; without, each takes it."""
    at_s = [1.0 + 0.01 * row for row in range(10)]
    for reserves, most in ((True, 2), (False, 2 * routers)):
        side = RouterSide(routers=routers, refresh_s=100.0, reserves=reserves)
        highest = 0

        def look(world: World) -> None:
            nonlocal highest
            highest = max(highest, world.pool.engines[0].ledger_requests)

        setup = Setup(engines=(EngineModel(replace(ONE_AT_A_TIME, max_sequences=50)),), routers=side)
        policy = CompiledPolicy(rule=Rule.LEAST_IN_FLIGHT, max_requests=2)
        outcomes = interpret(Case(setup, arrivals(at_s, output=30), lambda policy=policy: policy), look)  # type: ignore[misc]
        assert highest == most
        assert outcomes.finished.all()


def test_a_reserve_call_sends_the_herd_elsewhere() -> None:
    """Reserves: routers whose old views show both instances idle do not all take the faster one."""
    fast, slow = (EngineModel(replace(ONE_AT_A_TIME, max_sequences=50, base_decode_s=s)) for s in (0.1, 0.11))
    policy = CompiledPolicy(rule=Rule.OWN_LATENCY, max_requests=50)
    workload = arrivals([1.0 + 0.001 * row for row in range(8)], output=100, predicted_output_tokens=[100.0] * 8)
    shares = []
    for reserves in (False, True):
        side = RouterSide(routers=8, refresh_s=100.0, reserves=reserves)
        outcomes = run(workload, fast, slow, policy=policy, side=side)
        shares.append(np.bincount(outcomes.instance, minlength=2).tolist())
    assert shares[0] == [8, 0]
    assert shares[1][1] >= 2


def test_a_reserve_call_answers_with_the_loads_of_now() -> None:
    """Reserves: after its own dispatch a router sees what the others had in flight then."""
    side = RouterSide(routers=2, refresh_s=100.0)
    assert saw(side, [1.0, 2.0, 3.0, 4.0, 5.0]) == [0, 0, 1, 2, 3]


# --- ticks ---


def test_in_ticks_a_router_places_one_request_at_each_multiple() -> None:
    """decision_every_s: one placement a tick and router, at its multiples alone."""
    side = RouterSide(decision_every_s=0.02)
    outcomes = run(arrivals([0.0, 0.001, 0.002, 0.05]), MANY, policy=QUEUED, side=side)
    assert outcomes.dispatched_at_s.tolist() == pytest.approx([0.0, 0.02, 0.04, 0.06])


def test_no_router_decides_between_ticks() -> None:
    """A router that had nothing to place at a tick does not place off it."""
    side = RouterSide(decision_every_s=0.02, routers=2)
    outcomes = run(arrivals([0.001, 0.025, 0.045]), MANY, policy=QUEUED, side=side)
    assert outcomes.dispatched_at_s.tolist() == pytest.approx([0.02, 0.04, 0.06])


def test_ticks_late_in_a_long_run_still_move_on() -> None:
    """Rounding never brings the tick of now back: far from 0 held requests are placed one tick apart."""
    start_s = 0.02 * 123_456_789
    side = RouterSide(decision_every_s=0.02)
    outcomes = run(arrivals([start_s] * 4), MANY, policy=QUEUED, side=side)
    assert outcomes.finished.all()
    assert np.diff(outcomes.dispatched_at_s) == pytest.approx([0.02] * 3, rel=1e-3)


def test_a_long_lull_ends_no_run() -> None:
    """However often idle views are refreshed, what arrives after an hour is served."""
    setup = Setup(engines=(MANY,), routers=RouterSide(refresh_s=0.01, routers=10))
    assert interpret(Case(setup, arrivals([0.0, 60.0]), lambda: QUEUED)).finished.all()


# --- samples, and what cannot be run ---


def test_a_timeline_shows_what_there_was_at_its_instants() -> None:
    """Samples stand at multiples of their period and count what every instant left: held, waiting, running, KV."""
    outcomes = run(arrivals([0.0, 0.0, 0.0, 0.25]), ONE, sample_every_s=0.05)
    timeline = outcomes.timeline
    assert timeline is not None
    assert timeline.at_s.tolist() == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35])
    assert timeline.running[:, 0].tolist() == [1] * 8
    assert timeline.waiting[:, 0].tolist() == [0] * 8
    assert timeline.held.tolist() == [2, 2, 1, 1, 0, 1, 0, 0]
    assert timeline.kv_usage_fraction[:, 0].tolist() == [1 / 1_000] * 8


def test_setups_and_workloads_that_do_not_fit_are_refused() -> None:
    """Bad input is refused with the reason before anything runs."""
    workload = arrivals([0.0])
    with pytest.raises(InvalidInputError, match="at least one engine"):
        Setup(engines=())
    with pytest.raises(InvalidInputError, match="serves names"):
        Setup(engines=(ONE,), serves=(frozenset(), frozenset()))
    with pytest.raises(InvalidInputError, match="Decode"):
        Setup(engines=(replace(ONE, role=Role.PREFILL),))
    with pytest.raises(InvalidInputError, match="Decode"):
        Setup(engines=(replace(ONE, role=Role.DECODE),))
    with pytest.raises(InvalidInputError, match="max_held"):
        RouterSide(max_held=0)
    with pytest.raises(InvalidInputError, match="decision_every_s"):
        RouterSide(decision_every_s=1e-9)
    with pytest.raises(InvalidInputError, match="sample_every_s"):
        run(workload, ONE, sample_every_s=0.0)
    caching = EngineModel(replace(ONE_AT_A_TIME, block_tokens=16), prefix_caching=True)
    blocks: dict[str, Any] = {"prefix_start": [0, 1], "prefix_blocks": [0]}
    with pytest.raises(InvalidInputError, match="multiple"):
        lay_out(Setup(engines=(caching,)), arrivals([0.0], prefix_block_tokens=7, **blocks), seed=0)
    other = EngineModel(replace(ONE_AT_A_TIME, block_tokens=8), prefix_caching=True)
    with pytest.raises(InvalidInputError, match="one block size"):
        lay_out(Setup(engines=(caching, other)), arrivals([0.0], prefix_block_tokens=10, **blocks), seed=0)


def test_sparse_block_ids_take_no_room() -> None:
    """Prefix blocks are counted, not numbered: ids of a slice of a trace need no table up to the largest."""
    caching = EngineModel(replace(ONE_AT_A_TIME, block_tokens=5), prefix_caching=True)
    blocks: dict[str, Any] = {"prefix_start": [0, 1, 2], "prefix_blocks": [7, 4_000_000_000_000]}
    world = lay_out(Setup(engines=(caching,)), arrivals([0.0, 0.0], prefix_block_tokens=5, **blocks), seed=0)
    assert len(world.pool.prefix_refs) == 2


# --- holds until an instant ---


class Patient:
    """Holds every head for a time from when it became the head, then takes the first instance; notes what it saw."""

    name = "Patient"

    def __init__(self, hold_s: float, *, again_s: float = np.inf) -> None:
        self.hold_s, self.again_s = hold_s, again_s
        self.room_of = request_bound(1_000)
        self.seen: list[tuple[str, float, int, float | None]] = []

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        del rng
        now_s, since_s = snapshot.taken_at_s, snapshot.head_since_s
        self.seen.append((request.request_id, round(now_s, 6), snapshot.held, since_s))
        until_s = (now_s if since_s is None else since_s) + self.hold_s
        if now_s < until_s - 1e-9:
            return Hold("patient", min(until_s, now_s + self.again_s))
        view = snapshot.views[0]
        return Placement((Candidate(view.instance.instance_id, 0.0, view.load),), "patient")


def test_a_head_that_is_held_until_an_instant_tries_again_then() -> None:
    """Nothing else happens meanwhile; the next head's time begins when the one before it leaves."""
    policy = Patient(0.1)
    outcomes = run(arrivals([1.0, 1.03, 3.0]), MANY, policy=policy)
    assert outcomes.dispatched_at_s.tolist() == pytest.approx([1.1, 1.2, 3.1])
    assert policy.seen == [
        ("r0", 1.0, 1, None),
        ("r0", 1.1, 2, 1.0),
        ("r1", 1.1, 1, pytest.approx(1.1)),
        ("r1", 1.2, 1, pytest.approx(1.1)),  # the end of a step at 1.2 comes in the same instant
        ("r2", 3.0, 1, None),
        ("r2", 3.1, 1, 3.0),
    ]


def test_an_event_lets_a_held_head_try_before_its_instant() -> None:
    policy = Patient(0.25)
    run(arrivals([1.0, 1.0]), MANY, policy=policy)
    tried = [at_s for name, at_s, _, _ in policy.seen if name == "r1"]
    assert tried == [1.25, 1.35, 1.5]  # r0 leaves at 1.25 and is done at 1.35


@pytest.mark.parametrize("until_s", [np.nan, np.inf, -1.0, 0.0])
def test_an_instant_that_does_not_come_is_no_instant(until_s: float) -> None:
    """Held for ever, a run ends; nobody is asked in circles."""
    policy = Patient(1.0)
    policy.decide = lambda request, snapshot, rng: Hold("never", until_s)  # type: ignore[method-assign]  # noqa: ARG005
    outcomes = run(arrivals([1.0]), MANY, policy=policy)
    assert outcomes.status.tolist() == [0]


def test_the_longest_wait_bounds_a_hold_that_is_renewed() -> None:
    outcomes = run(arrivals([1.0, 1.0]), MANY, policy=Patient(1e6, again_s=0.01), side=RouterSide(max_wait_s=0.5))
    assert outcomes.status.tolist() == [Status.SHED, Status.SHED]


def test_lines_wake_each_at_its_own_instant() -> None:
    policy = Patient(0.1)
    outcomes = run(
        arrivals([1.0, 1.05], model=[0, 1], models=("a", "b")), MANY, MANY, policy=policy, side=RouterSide(routers=2)
    )
    assert outcomes.dispatched_at_s.tolist() == pytest.approx([1.1, 1.15])

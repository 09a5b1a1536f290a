"""Replicas that come and go in a run: who gets requests, what is lost, which GPUs are taken when."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sim_books import check_books
from support.sim_worlds import SMALL, Interpreted, columns

from bench.stepping import Stepping
from llmrouter.domain import Role
from llmrouter.errors import InvalidInputError
from llmrouter.planning.steps import Rules
from llmrouter.routing.catalogue import make_policy
from llmrouter.routing.policies import request_bound
from llmrouter.routing.rules import Rule
from llmrouter.routing.stages import StageRules
from llmrouter.sim.arrays import lay_out
from llmrouter.sim.model import EngineModel
from llmrouter.sim.outcomes import Status
from llmrouter.sim.replicas import Lifetimes, ReplicaPool, Replicas
from llmrouter.sim.run import play, simulate
from llmrouter.sim.setup import CompiledPolicy, RouterSide
from llmrouter.sim.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.sim.outcomes import Outcomes
    from llmrouter.sim.replicas import Planner

pytestmark = pytest.mark.timeout(600)  # the first simulation of a changed kernel compiles it
ROOMY = replace(SMALL, kv_tokens=6_400)
LEAST = CompiledPolicy(rule=Rule.LEAST_IN_FLIGHT)
SIDE = RouterSide(stages=StageRules(30))


class Scheduled:
    """A planner that follows a schedule: from each instant (s), so many replicas by pool, drained before they end."""

    def __init__(self, schedule: Sequence[tuple[float, dict[str, int]]]) -> None:
        self._schedule = sorted(schedule, key=lambda one: one[0])

    def look(self, replicas: Replicas, *, now_s: float) -> None:
        """Shrinks what has drained, and grows what may, at once: a schedule knows its budget."""
        wanted: dict[str, int] = {}
        for at_s, counts in self._schedule:
            if at_s <= now_s:
                wanted |= counts
        for state in replicas.observed():
            target = wanted.get(state.pool, state.declared)
            more = state.declared - target
            if more < 0:
                replicas.declare(state.pool, target)
            replicas.drain(state.pool, max(0, more))
            if 0 < more <= state.drained:
                replicas.declare(state.pool, target)


def pool(name: str, role: Role = Role.MIXED, replicas: int = 1, most: int = 3) -> ReplicaPool:
    return ReplicaPool(name=name, engine=EngineModel(ROOMY, role=role), replicas=replicas, most=most, min_replicas=1)


def steady(seconds: float, *, rate_rps: float = 20.0, output: int = 20) -> Workload:
    at_s = np.arange(0.0, seconds, 1.0 / rate_rps)
    rng = np.random.default_rng(1)
    return Workload.of(at_s, rng.integers(10, 200, len(at_s)), np.full(len(at_s), output))


def run(replicas: Replicas, workload: Workload, side: RouterSide = SIDE) -> Outcomes:
    return simulate(replicas.setup(side), workload, LEAST, replicas=replicas)


def test_a_replica_serves_once_it_has_started_and_never_after_it_was_drained() -> None:
    """Declared at 5 s, it serves from 9 s; drained from 20 s on, it gets nothing more, and ends empty."""
    schedule = Scheduled([(5.0, {"m": 2}), (20.0, {"m": 1})])
    times = Lifetimes(start_s=4.0, drain_s=50.0, stop_s=2.0, look_every_s=1.0)
    replicas = Replicas([pool("m")], schedule, times)
    outcomes = run(replicas, steady(40.0))
    assert outcomes.finished.all()
    by_second = outcomes.dispatched_at_s[outcomes.instance == 1]
    assert by_second.min() >= 9.0
    first = outcomes.dispatched_at_s[outcomes.instance == 0]
    gone = 0 if first.max() < by_second.max() else 1
    left = outcomes.dispatched_at_s[outcomes.instance == gone]
    assert left.max() <= 20.0
    assert [(one.at_s, one.pools[0].declared, one.pools[0].ready, one.gpus) for one in replicas.history][:3] == [
        *((0.0, 1, 1, 1), (5.0, 2, 1, 2), (9.0, 2, 2, 2)),
    ]
    assert replicas.history[-1].gpus == 1


def test_what_a_drain_does_not_wait_for_is_lost_and_counted() -> None:
    """Answers of 400 tokens outlive a drain of 1 s: they end as LOST, at the latest a step later, and free all."""
    replicas = Replicas(
        [pool("m", replicas=2)], Scheduled([(3.0, {"m": 1})]), Lifetimes(drain_s=1.0, stop_s=1.0, look_every_s=0.5)
    )
    outcomes = run(replicas, steady(6.0, rate_rps=4.0, output=400))
    lost = outcomes.status == Status.LOST
    assert lost.any()
    assert set(outcomes.instance[lost].tolist()) == {int(outcomes.instance[lost][0])}
    assert (outcomes.finished | lost).all()
    assert np.isnan(outcomes.finished_at_s[lost]).all()
    assert replicas.history[-1].pools[0].terminating == 0


def test_a_prompt_in_two_stages_is_lost_with_either_instance() -> None:
    for gone in ("p", "d"):
        slow = replace(ROOMY, prefill_s_per_token=0.01)
        pools = [
            ReplicaPool(name=name, engine=EngineModel(slow, role=role), replicas=2, most=2)
            for name, role in (("p", Role.PREFILL), ("d", Role.DECODE))
        ]
        times = Lifetimes(drain_s=0.0, stop_s=0.0, look_every_s=0.5)
        replicas = Replicas(pools, Scheduled([(1.5, {gone: 1})]), times)
        outcomes = run(replicas, steady(3.0, rate_rps=5.0, output=60))
        assert (outcomes.status == Status.LOST).any()
        assert (outcomes.finished | (outcomes.status == Status.LOST)).all()


def test_requests_wait_for_the_only_replica_and_are_refused_where_none_is_declared() -> None:
    """Nobody accepts for a while: as with a router without a ready instance."""
    schedule = Scheduled([(1.0, {"m": 0}), (4.0, {"m": 1})])
    times = Lifetimes(start_s=1.0, drain_s=0.0, stop_s=0.0, look_every_s=0.5)
    outcomes = run(Replicas([replace(pool("m"), min_replicas=0)], schedule, times), steady(8.0))
    between = (outcomes.arrived_at_s > 1.5) & (outcomes.arrived_at_s < 4.5)
    assert (outcomes.status[between] == Status.REFUSED).all()
    assert outcomes.finished[outcomes.arrived_at_s > 5.5].all()


class Scripted(Stepping):
    """Wants what a script says at random, and moves by the operator's steps within the budget."""

    def __init__(self, script: list[dict[str, int]], budget: int) -> None:
        super().__init__(Rules(gpu_budget=budget, stabilization_s=1.0, cooldown_s=0.5, max_step=2))
        self._script, self._budget = script, budget

    def wanted(self, replicas: Replicas, now_s: float) -> dict[str, int]:
        del replicas
        return self._script[min(int(now_s / 4.0), len(self._script) - 1)]

    def look(self, replicas: Replicas, *, now_s: float) -> None:
        super().look(replicas, now_s=now_s)
        assert replicas.gpus <= self._budget


SPLITS = st.integers(1, 3).flatmap(lambda p: st.integers(1, 4 - p).map(lambda d: {"p": p, "d": d}))


@given(script=st.lists(SPLITS, min_size=1, max_size=6), start_s=st.sampled_from([0.0, 1.7]), seed=st.integers(0, 3))
@settings(max_examples=5, deadline=None)
def test_books_and_budget_hold_whatever_comes_and_goes(script: list[dict[str, int]], start_s: float, seed: int) -> None:
    """Interpreted with the books recounted at every instant, and compiled, to the same bytes; within 4 GPUs."""
    rng = np.random.default_rng(seed)
    workload = Workload.of(np.sort(rng.uniform(0.0, 22.0, 24)), rng.integers(10, 300, 24), rng.integers(1, 60, 24))
    times = Lifetimes(start_s=start_s, drain_s=2.0, stop_s=0.6, look_every_s=0.5)

    def replicas() -> Replicas:
        pools = [pool("p", Role.PREFILL, 2, 4), pool("d", Role.DECODE, 2, 4)]
        return Replicas(pools, Scripted(script, 4), times)

    one = replicas()
    setup = one.setup(SIDE)
    world = lay_out(setup, workload, seed=seed)
    interpreted = play(world, setup, workload, LEAST, advance=Interpreted(check_books), seed=seed, replicas=one)
    other = replicas()
    assert columns(interpreted) == columns(simulate(setup, workload, LEAST, seed=seed, replicas=other))
    assert one.history == other.history
    assert (interpreted.finished | (interpreted.status == Status.LOST)).all()


def test_a_policy_outside_sees_the_replicas_that_are_there() -> None:
    """The object that serves and the compiled rule come to the same, with replicas that come and go."""

    def planned() -> Planner:
        return Scheduled([(2.0, {"m": 3}), (6.0, {"m": 1})])

    times = Lifetimes(start_s=1.0, drain_s=3.0, stop_s=0.5, look_every_s=0.5)
    workload = steady(10.0)
    rule = CompiledPolicy(rule=Rule.ROUND_ROBIN, max_requests=40)
    one, other = (Replicas([pool("m")], planned(), times) for _ in range(2))
    fast = simulate(one.setup(RouterSide()), workload, rule, replicas=one)
    policy = make_policy("RoundRobin", request_bound(40))
    slow = simulate(other.setup(RouterSide()), workload, policy, replicas=other)
    assert set(fast.instance.tolist()) == {0, 1, 2}
    assert columns(fast) == columns(slow)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="prefix caches"):
        replace(pool("m"), engine=EngineModel(ROOMY, prefix_caching=True))
    with pytest.raises(InvalidInputError, match="replicas must be 0 to most"):
        pool("m", replicas=4)
    with pytest.raises(InvalidInputError, match="look_every_s"):
        Lifetimes(look_every_s=0.0)
    with pytest.raises(InvalidInputError, match="a name of its own"):
        Replicas([pool("m"), pool("m")], Scheduled([]))

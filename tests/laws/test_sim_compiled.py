"""One source, interpreted and compiled; one rule, in the router and in the simulator; one seed, one outcome."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from support.sim_worlds import Case, cases, columns, compile_and_run, interpret

from llmrouter.domain import BatchHold, EngineMode, Hold, Placement, Role
from llmrouter.profiles import H100_MIX, PAPER_V100
from llmrouter.routing.catalogue import RULES, make_policy
from llmrouter.routing.policies import LeastInFlight, kv_gate, request_bound
from llmrouter.routing.rules import Rule
from llmrouter.sim.arrays import lay_out
from llmrouter.sim.model import EngineModel
from llmrouter.sim.run import REPORT_EVERY, simulate
from llmrouter.sim.setup import CompiledPolicy, RouterSide, Setup
from llmrouter.sim.workload import Workload

if TYPE_CHECKING:
    import random

    from llmrouter.domain import Decision, InstanceView, PoolSnapshot, Request, Room
    from llmrouter.routing.policies import Policy

pytestmark = pytest.mark.timeout(600)  # the first simulation of a changed kernel compiles it
ROOT = Path(__file__).resolve().parents[2]
SLOW = replace(H100_MIX, name="slow", base_decode_s=0.019, prefill_s_per_token=6.1e-5, kv_tokens=40_009)
UNEQUAL = (
    *(EngineModel(H100_MIX), EngineModel(replace(H100_MIX, kv_tokens=60_007, base_decode_s=0.0071))),
    *(EngineModel(SLOW, front_s=0.003), EngineModel(replace(SLOW, mode=EngineMode.PREFILL_FIRST))),
)


def lognormal(count: int, *, rate_rps: float, seed: int = 3) -> Workload:
    """Poisson arrivals of prompts and outputs of some hundred tokens; predictions are off by half."""
    rng = np.random.default_rng(seed)
    output = rng.lognormal(4.5, 0.8, count).astype(int).clip(1, 2_000)
    return Workload.of(
        np.cumsum(rng.exponential(1 / rate_rps, count)),
        rng.lognormal(6.5, 1.0, count).astype(int).clip(8, 16_000),
        output,
        predicted_output_tokens=output * rng.uniform(0.5, 1.5, count),
    )


@given(case=cases())
@settings(max_examples=250, deadline=None)
def test_interpreted_and_compiled_runs_are_equal_byte_for_byte(case: Case) -> None:
    """The kernel gives the same bytes over objects under Python as over arrays as machine code."""
    assert columns(interpret(case)) == columns(compile_and_run(case))


class Follower:
    """Decides as another run did, and holds every choice of that run against a policy that serves."""

    def __init__(self, policy: Policy, rule: Rule, chosen: list[int]) -> None:
        self.name = policy.name
        self.decisions = 0
        self._policy = policy
        self._rule = rule
        self._chosen = chosen

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        decision = self._policy.decide(request, snapshot, rng)
        if not isinstance(decision, Placement):
            return decision
        self.decisions += 1
        wanted = f"{self._chosen[int(request.request_id[1:])]:03d}"
        (candidate,) = [one for one in decision.candidates if one.instance_id == wanted]
        scores = [one.score for one in decision.candidates]
        if self._rule is Rule.ROUND_ROBIN:
            assert candidate is decision.candidates[0]
        elif self._rule is Rule.POWER_OF_TWO:
            assert len(scores) == 1 or candidate.score < max(scores) or scores.count(candidate.score) > 1
        elif self._rule is not Rule.RANDOM:
            assert candidate.score == min(scores)
        return Placement((candidate,), decision.reason)

    def room_of(self, view: InstanceView) -> Room:
        return self._policy.room_of(view)


ROOMS = {
    "requests": (request_bound(40), CompiledPolicy(rule=Rule.RANDOM, max_requests=40)),
    "gate": (kv_gate(0.15), CompiledPolicy(rule=Rule.RANDOM, max_requests=None, kv_fraction=0.15)),
}


@pytest.mark.parametrize("room", sorted(ROOMS))
@pytest.mark.parametrize("name", sorted(RULES))
def test_a_compiled_rule_decides_as_the_policy_that_serves(name: str, room: str) -> None:
    """Decision by decision, a rule inside the simulator takes an instance that the policy ranks first, or holds."""
    room_rule, compiled = ROOMS[room]
    setup = Setup(engines=UNEQUAL)
    workload = lognormal(1_500, rate_rps=60.0)
    fast = simulate(setup, workload, replace(compiled, rule=RULES[name]), seed=5)
    assert (fast.wait_s > 0).sum() > 20
    follower = Follower(make_policy(name, room_rule), RULES[name], fast.instance.tolist())
    assert columns(simulate(setup, workload, follower, seed=5)) == columns(fast)
    assert follower.decisions == len(workload)


SIDES = {
    "exact": RouterSide(routers=3),
    "stale": RouterSide(routers=3, refresh_s=0.2, reserves=False),
    "stale, not even its own": RouterSide(routers=3, refresh_s=0.2, reserves=False, counts_own=False),
    "stale, reserves": RouterSide(routers=3, refresh_s=0.2),
    "private": RouterSide(routers=3, shared=False),
    "private, stale": RouterSide(routers=3, shared=False, refresh_s=0.2),
    "ticks": RouterSide(routers=2, decision_every_s=0.02),
    "far": RouterSide(routers=2, dispatch_s=0.05, refresh_s=0.1),
}


@pytest.mark.parametrize("side", sorted(SIDES))
@pytest.mark.parametrize("name", ["RoundRobin", "WorkloadImpact"])
def test_a_compiled_rule_and_its_policy_come_to_the_same_under_every_view(name: str, side: str) -> None:
    """Where engines are so unequal that nothing ties, rule and policy come to equal bytes: stale, private, in ticks."""
    unequal = tuple(
        replace(engine, profile=replace(engine.profile, base_decode_s=engine.profile.base_decode_s * (1 + place / 91)))
        for place, engine in enumerate(UNEQUAL)
    )
    setup = Setup(engines=unequal, routers=SIDES[side])
    workload = lognormal(1_200, rate_rps=55.0)
    fast = simulate(setup, workload, CompiledPolicy(rule=RULES[name], max_requests=None, kv_fraction=0.9))
    assert columns(fast) == columns(simulate(setup, workload, make_policy(name, kv_gate(0.9))))


@pytest.mark.parametrize("side", ["exact", "stale, reserves", "ticks"])
def test_batch_hold_is_the_same_compiled_and_in_the_policy_that_serves(side: str) -> None:
    """On engines that prefill first it holds, and both come to equal bytes; on chunked ones nothing changes."""
    workload, hold = lognormal(600, rate_rps=30.0), BatchHold(3, 0.2)
    waits_s = {}
    for mode in EngineMode:
        engines = tuple(
            replace(
                one, profile=replace(one.profile, mode=mode, base_decode_s=one.profile.base_decode_s * (1 + place / 91))
            )
            for place, one in enumerate(UNEQUAL)
        )
        setup = Setup(engines=engines, routers=replace(SIDES[side], max_wait_s=5.0))
        rule = CompiledPolicy(rule=Rule.MARGINAL_COST, max_requests=None, kv_fraction=0.9)
        fast, plain = simulate(setup, workload, replace(rule, batch_hold=hold)), simulate(setup, workload, rule)
        policy = make_policy("WorkloadImpact", kv_gate(0.9), batch_hold=replace(hold, longest_wait_s=5.0))
        assert columns(fast) == columns(simulate(setup, workload, policy))
        assert (columns(fast) == columns(plain)) == (mode is EngineMode.CHUNKED)
        waits_s[mode] = float(np.mean(fast.wait_s - plain.wait_s))
    assert waits_s[EngineMode.PREFILL_FIRST] > 0.0 == waits_s[EngineMode.CHUNKED]


def test_a_compiled_rule_and_its_policy_agree_where_prefill_and_decode_are_apart() -> None:
    """The decode instance is chosen alike, whoever decides about the prefill."""
    roles = (Role.PREFILL, Role.PREFILL, Role.DECODE, Role.DECODE)
    setup = Setup(engines=tuple(replace(engine, role=role) for engine, role in zip(UNEQUAL, roles, strict=True)))
    workload = lognormal(1_000, rate_rps=20.0)
    fast = simulate(setup, workload, CompiledPolicy(rule=Rule.ROUND_ROBIN, max_requests=100))
    assert set(fast.decode_instance.tolist()) == {2, 3}
    assert columns(fast) == columns(simulate(setup, workload, make_policy("RoundRobin", request_bound(100))))


DIGEST = """
import hashlib
from laws.test_sim_compiled import digests
print(digests())
"""


def digests() -> str:
    """What a compiled rule and a policy come to on one workload, both with ties, as digests."""
    setup = Setup(engines=(EngineModel(H100_MIX),) * 3, routers=RouterSide(routers=2, refresh_s=0.1))
    workload = lognormal(800, rate_rps=30.0)
    found = []
    for policy in (CompiledPolicy(rule=Rule.POWER_OF_TWO), LeastInFlight(request_bound(50))):
        parts = columns(simulate(setup, workload, policy, seed=11, sample_every_s=0.5))
        found.append(hashlib.sha256(b"".join(parts[name] for name in sorted(parts))).hexdigest())
    return " ".join(found)


def test_equal_seeds_give_equal_bytes_in_every_process() -> None:
    """Setup, workload, policy and seed decide every byte: in this process twice, and in two others."""
    said = [digests(), digests()]
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        command = [sys.executable, "-c", DIGEST]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=500)
        said.append(done.stdout.strip())
    assert len(set(said)) == 1


def test_another_seed_is_another_draw() -> None:
    """The seed rules the draws and nothing else: other instances, the same arrivals."""
    setup, workload = Setup(engines=(EngineModel(H100_MIX),) * 4), lognormal(400, rate_rps=30.0)
    one, other = (simulate(setup, workload, CompiledPolicy(rule=Rule.RANDOM), seed=seed) for seed in (1, 2))
    assert (one.instance != other.instance).any()
    assert (one.arrived_at_s == other.arrived_at_s).all()


@pytest.mark.parametrize("rule", [Rule.RANDOM, Rule.LEAST_IN_FLIGHT, Rule.POWER_OF_TWO])
def test_draws_and_ties_favour_nobody(rule: Rule) -> None:
    """Random draws, and ties on an idle pool, give every instance the same share."""
    setup = Setup(engines=(EngineModel(PAPER_V100),) * 4)
    workload = Workload.of(np.arange(0.0, 80_000.0, 10.0), np.full(8_000, 8), np.full(8_000, 2))
    shares = np.bincount(simulate(setup, workload, CompiledPolicy(rule=rule), seed=3).instance, minlength=4)
    assert shares == pytest.approx(np.full(4, 2_000), abs=200)


def test_a_million_requests_take_bounded_memory_and_report_progress() -> None:
    """Memory is a sum of arrays: at most 400 bytes a request before the run, 500 at its peak with the outcomes."""
    count = 1_000_000
    rng = np.random.default_rng(0)
    prompts = rng.integers(10, 200, count)
    workload = Workload.of(np.cumsum(rng.exponential(1 / 500, count)), prompts, np.full(count, 3))
    setup = Setup(engines=(EngineModel(H100_MIX),) * 4)
    world = lay_out(setup, workload, seed=0)
    arrays = [part for part in (*world.pool, *world[1:]) if isinstance(part, np.ndarray)]
    assert sum(array.nbytes for array in arrays) / count <= 400
    del world, arrays
    simulate(setup, lognormal(10, rate_rps=1.0), CompiledPolicy(rule=Rule.ROUND_ROBIN))
    reports: list[int] = []
    tracemalloc.start()
    try:
        outcomes = simulate(setup, workload, CompiledPolicy(rule=Rule.ROUND_ROBIN), on_progress=reports.append)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert outcomes.finished.all()
    assert peak / count <= 500
    assert len(reports) == count // REPORT_EVERY
    assert reports == sorted(reports)


class Never:
    """A policy that holds whatever comes."""

    name = "Never"

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        del request, snapshot, rng
        return Hold("not now")

    def room_of(self, view: InstanceView) -> Room:
        return request_bound(1)(view)


@pytest.mark.parametrize(
    "side", [RouterSide(), RouterSide(refresh_s=0.5, routers=2), RouterSide(decision_every_s=0.02)], ids=str
)
def test_a_policy_that_always_holds_ends_with_unfinished_requests(side: RouterSide) -> None:
    """Nothing hangs: when nothing else is to come, held requests are reported as unfinished, with their arrivals."""
    workload = Workload.of([0.0, 1.0, 5_000.0], [10, 10, 10], [5, 5, 5])
    outcomes = simulate(Setup(engines=(EngineModel(H100_MIX),), routers=side), workload, Never())
    assert (outcomes.status == 0).all()
    assert outcomes.arrived_at_s.tolist() == [0.0, 1.0, 5_000.0]
    assert np.isnan(outcomes.dispatched_at_s).all()
    assert np.isnan(outcomes.makespan_s)


def test_a_load_far_above_capacity_ends() -> None:
    """Nothing hangs: at ten times what the engines can do every request is served at last."""
    setup = Setup(engines=(EngineModel(H100_MIX),) * 2)
    outcomes = simulate(setup, lognormal(3_000, rate_rps=500.0), CompiledPolicy(rule=Rule.ROUND_ROBIN))
    assert outcomes.finished.all()

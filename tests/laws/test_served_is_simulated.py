"""What a router decides on a snapshot is what the simulator decides on it, whoever took the snapshot."""

from __future__ import annotations

import ast
import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
from support.kernel_eye import KernelEye, Recorder, ranked
from support.router_world import Bench, FakeClock, bundle_of, config_of
from support.sim_worlds import Case, interpret

from llmrouter.domain import EngineMode
from llmrouter.profiles import H100_MIX, PAPER_V100
from llmrouter.resources import PlainPolicyType, PredictingPolicyType
from llmrouter.routing.guard import Guard
from llmrouter.routing.policies import LeastInFlight
from llmrouter.routing.rooms import request_bound
from llmrouter.sim.model import EngineModel
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import RouterSide, Setup
from llmrouter.sim.workload import Workload
from llmrouter.study.configured import policy_of
from router_grpc.reports import ReportKind
from router_grpc.runtime import RuntimeBuilder

if TYPE_CHECKING:
    from support.kernel_eye import Seen

    from llmrouter.config import RouterConfig
    from llmrouter.domain import Decision, EngineProfile, InstanceView, PoolSnapshot, Request, Room
    from llmrouter.routing.policies import Policy

pytestmark = pytest.mark.timeout(600)  # the first simulation of a changed kernel compiles it
PACKAGES = Path(__file__).resolve().parents[2]

FLOAT32 = 2e-5
"""Relative: a model computes in single precision; what is nearer than this ties for it."""

POOLS: dict[str, tuple[EngineProfile, ...]] = {
    "h100, unequal": (
        H100_MIX,
        replace(H100_MIX, name="small", kv_tokens=60_000, max_sequences=40),
        replace(H100_MIX, name="slow", base_decode_s=0.019, prefill_s_per_token=6.1e-5, kv_tokens=40_000),
        replace(H100_MIX, name="other", mode=EngineMode.PREFILL_FIRST, kv_tokens=50_000),
    ),
    "v100": (PAPER_V100,) * 4,
}
RATES_RPS = {"h100, unequal": 45.0, "v100": 16.0}
SIDES = {
    "exact": RouterSide(),
    "stale": RouterSide(routers=3, refresh_s=0.3),
    "private": RouterSide(routers=2, shared=False),
}
MOST = 12
"""Requests in flight that the policies of this page give an instance; the runs that are recorded go beyond."""

GATED = {"hold": {"kvFraction": 0.5}}
TYPES: dict[str, dict[str, Any]] = {
    **{name: {"type": name} for name in get_args(PlainPolicyType)},
    **{name: {"type": name} for name in get_args(PredictingPolicyType)},
    **{
        f"{name} {preset}": {"type": name, **GATED, "objective": {"preset": preset}} | model
        for preset in ("SLO", "Balanced", "E2E")
        for name, model in (("WorkloadImpact", {}), ("Onnx", {"model": {"builtin": "marginal-cost"}}))
    },
    "LeastInFlight gated": {"type": "LeastInFlight", "hold": {"room": "Kv", "kvFraction": 0.3}},
    "WorkloadImpact weights": {
        "type": "WorkloadImpact",
        "objective": {"waitWeight": 0, "stallWeight": 100, "coalesceWeight": 50},
    },
}
DRAWN = {"Random", "PowerOfTwo"}


def configured(policy: dict[str, Any]) -> RouterConfig:
    return config_of(policy=policy, limits={"maxInFlightPerInstance": MOST})


def served(config: RouterConfig) -> Policy:
    """The policy object that a router with this configuration runs."""
    return RuntimeBuilder(FakeClock()).build(bundle_of(config)).guard.primary


def workload(pool: str, count: int) -> Workload:
    rng = np.random.default_rng(11)
    output = rng.lognormal(4.5, 0.8, count).astype(int).clip(1, 900)
    return Workload.of(
        np.cumsum(rng.exponential(1 / RATES_RPS[pool], count)),
        rng.lognormal(6.0, 1.0, count).astype(int).clip(8, 1_000 if pool == "v100" else 8_000),
        output,
        predicted_output_tokens=output * rng.uniform(0.5, 1.5, count),
    )


def simulated(pool: str, side: str) -> list[Seen]:
    """Questions that a simulated run put to its routers, from idle to full."""
    setup = Setup(engines=tuple(map(EngineModel, POOLS[pool])), routers=SIDES[side])
    recorder = Recorder(LeastInFlight(request_bound(2 * MOST)))
    interpret(Case(setup, workload(pool, 260), lambda: recorder))
    return recorder.seen[:: max(1, len(recorder.seen) // 60)]


@pytest.fixture(scope="module", params=[(pool, side) for pool in POOLS for side in SIDES], ids=" / ".join)
def recorded(request: pytest.FixtureRequest) -> tuple[str, list[Seen]]:
    pool, side = request.param
    return pool, simulated(pool, side)


def hold_alike(name: str, config: RouterConfig, profiles: tuple[EngineProfile, ...], seen: list[Seen]) -> int:
    """Asserts that router and kernel answer every question alike; returns how often there was no room."""
    policy, eye, rng, holds = served(config), KernelEye(policy_of(config), profiles, seen), random.Random(3), 0
    for row, (request, snapshot) in enumerate(seen):
        answer = ranked(policy.decide(request, snapshot, rng), snapshot)
        named = eye.named(row, snapshot)
        assert sorted(named) == sorted(place for place, _ in answer), f"who has room, question {row}"
        holds += not named
        if not named or name in DRAWN:
            continue
        if name == "RoundRobin":
            assert named == [place for place, _ in answer], f"turns, question {row}"
            continue
        least = min(score for _, score in answer)
        ties = {place for place, score in answer if score <= least + FLOAT32 * abs(least)}
        best = eye.best(row, snapshot, draws=10 * len(ties) if len(ties) > 1 else 2)
        if name.startswith("Onnx"):
            assert best <= ties, f"who is best, question {row}"
        else:
            assert best == {place for place, score in answer if score == least}, f"who is best, question {row}"
    return holds


@pytest.mark.parametrize("name", sorted(TYPES))
def test_on_snapshots_of_simulated_runs(name: str, recorded: tuple[str, list[Seen]]) -> None:
    """The policy that a RoutingPolicy makes, and the rule that simulates it, name the same instances, ties included."""
    pool, seen = recorded
    hold_alike(name, configured(TYPES[name]), POOLS[pool], seen)


def test_the_recorded_snapshots_are_worth_replaying() -> None:
    """Among them are idle and full instances, questions that nobody has room for, and waits for a batch."""
    seen = simulated("v100", "exact")
    counts = {view.total.requests for _, snapshot in seen for view in snapshot.views}
    assert min(counts) == 0
    assert max(counts) > MOST
    gated = configured(TYPES["LeastInFlight gated"])
    assert 0 < hold_alike("LeastInFlight gated", gated, POOLS["v100"], seen) < len(seen)
    waits = configured({"type": "WorkloadImpact", "objective": {"preset": "E2E"}, "hold": {"batchSize": 4}})
    assert 0 < hold_alike("WorkloadImpact E2E", waits, POOLS["v100"], seen) < len(seen)


@pytest.fixture(scope="module")
def unequal_router() -> RouterConfig:
    inline = [
        {
            "baseDecodeSeconds": profile.base_decode_s,
            "basePrefillSeconds": profile.base_prefill_s,
            "prefillSecondsPerToken": profile.prefill_s_per_token,
            "prefillSecondsPerTokenSquared": profile.prefill_s_per_token_squared,
            "contextSecondsPerToken": profile.context_s_per_token,
            "sequenceSeconds": profile.sequence_s,
            "kvTokens": profile.kv_tokens,
            "maxSequences": profile.max_sequences,
            "tokenBudget": profile.token_budget,
            "mode": profile.mode.value,
        }
        for profile in POOLS["h100, unequal"]
    ]
    pools = [
        {"name": f"p{place}", "endpoints": [f"{place}:1"], "profile": {"inline": one}}
        for place, one in enumerate(inline)
    ]
    return config_of(pools=pools, limits={"maxInFlightPerInstance": 2 * MOST})


async def routed(config: RouterConfig) -> list[Seen]:
    """Questions that a real router put to its policy while requests came, made progress and ended."""
    bench = Bench(config)
    runtime = bench.service.runtime
    assert runtime is not None
    recorder = Recorder(LeastInFlight(request_bound(2 * MOST)))
    guard = Guard(recorder, LeastInFlight(request_bound(2 * MOST)), budget_s=1.0, clock=bench.clock)
    bench.service.swap(replace(runtime, guard=guard))
    rng = np.random.default_rng(5)
    for n in range(120):
        await bench.route(f"r{n}", prompt_tokens=int(np.clip(rng.lognormal(6.0, 1.0), 8, 8_000)))
        bench.clock.now_s += 0.05
        if n % 3:
            await bench.report(f"r{n - 1}", ReportKind.FIRST_TOKEN)
        if n % 4 == 0:
            await bench.report(f"r{n - 2}", ReportKind.PROGRESS, output_tokens=20)
        if n % 2:
            await bench.report(f"r{int(rng.integers(0, n + 1))}")
        if n % 10 == 0:
            bench.world.replica.replace(await bench.world.ledger.loads(), now_s=bench.clock())
    return recorder.seen


@pytest.mark.parametrize("name", sorted(TYPES))
async def test_on_snapshots_of_a_real_router(name: str, unequal_router: RouterConfig) -> None:
    """The reverse: what a router saw, shown to the kernel."""
    seen = await routed(unequal_router)
    assert len(seen) >= 120
    profiles = tuple(view.instance.profile for view in seen[0][1].views)
    assert len({id(profile) for profile in profiles}) == len(profiles)
    hold_alike(name, configured(TYPES[name]), profiles, seen[::2])


class Follower:
    """Decides as a run of the compiled rule did, and holds each choice against the policy that serves."""

    def __init__(self, policy: Policy, chosen: list[int]) -> None:
        self.name = policy.name
        self.decisions = 0
        self.cached = 0
        self._policy = policy
        self._chosen = chosen

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        decision = self._policy.decide(request, snapshot, rng)
        answer = dict(ranked(decision, snapshot))
        if not answer:
            return decision
        self.decisions += 1
        self.cached += bool(request.cached_tokens)
        chosen, least = self._chosen[int(request.request_id[1:])], min(answer.values())
        assert answer[chosen] <= least + FLOAT32 * abs(least)
        (kept,) = [one for one in decision.candidates if int(one.instance_id) == chosen]  # type: ignore[union-attr]
        return replace(decision, candidates=(kept,))  # type: ignore[arg-type]

    def room_of(self, view: InstanceView) -> Room:
        return self._policy.room_of(view)


def follow(name: str, setup: Setup, requests: Workload) -> Follower:
    """Machine code and the router's objects, decision by decision, come to the same bytes."""
    config = configured(TYPES[name])
    fast = simulate(setup, requests, policy_of(config), seed=4)
    follower = Follower(served(config), fast.instance.tolist())
    slow = simulate(setup, requests, follower, seed=4)
    assert slow.instance.tolist() == fast.instance.tolist()
    assert slow.finished_at_s.tobytes() == fast.finished_at_s.tobytes()
    assert follower.decisions == len(requests)
    return follower


@pytest.mark.parametrize("name", ["Onnx Balanced", "Onnx SLO", "WorkloadImpact E2E", "LMetric"])
def test_a_whole_compiled_run_is_the_routers_own(name: str) -> None:
    setup = Setup(engines=tuple(map(EngineModel, POOLS["h100, unequal"])))
    follow(name, setup, workload("h100, unequal", 1_200))


@pytest.mark.parametrize("name", ["Onnx Balanced", "WorkloadImpact Balanced", "LMetric", "MinMin"])
def test_so_is_one_with_prompts_that_begin_alike(name: str) -> None:
    """Expected prefix hits enter both alike."""
    engines = tuple(EngineModel(profile, prefix_caching=True) for profile in POOLS["h100, unequal"])
    plain, blocks, block_tokens = workload("h100, unequal", 800), 8, 64
    rng = np.random.default_rng(2)
    shared = [100 * int(rng.integers(0, 12)) for _ in range(len(plain))]
    requests = Workload.of(
        plain.arrived_at_s,
        np.maximum(plain.prompt_tokens, blocks * block_tokens),
        plain.output_tokens,
        predicted_output_tokens=plain.predicted_output_tokens,
        prefix_start=[blocks * n for n in range(len(plain) + 1)],
        prefix_blocks=[first + block for first in shared for block in range(blocks)],
        prefix_block_tokens=block_tokens,
    )
    assert follow(name, Setup(engines=engines), requests).cached > 100


PROFILE_FEATURES = {"max_sequences", "prefill_s_per_token_squared", "context_s_per_token", "sequence_s"}
ROOMS = (
    "llmrouter/routing",
    "llmrouter/training",
    "llmrouter/study",
    "llmrouter/tuning",
    "router_grpc",
    "llmrouter/sim",
)
ROWS = {
    ("llmrouter/routing/features.py", "profile_features"),  # served, exported, and asked by the simulator
    ("llmrouter/sim/kernel/decisions.py", "fill_idle_row"),  # the same, compiled: the tests above hold them together
}


def test_features_are_made_in_one_place() -> None:
    """Nobody else lays an engine's profile out as a row of features."""
    found = set()
    for room in ROOMS:
        for path in sorted((PACKAGES / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef) and _reads(node) >= PROFILE_FEATURES:
                    found.add((str(path.relative_to(PACKAGES)), node.name))
    assert found == ROWS


def _reads(function: ast.FunctionDef) -> set[str]:
    return {
        node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }

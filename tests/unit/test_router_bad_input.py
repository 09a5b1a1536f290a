"""What a router makes of weights, deadlines and clocks that make no sense: nothing hangs, nothing starves."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support import provoking
from support.pools import request, snapshot, view
from support.router_world import Bench, bundle_of, config_of, until

from llmrouter.domain import Load, ObjectiveWeights, Placement
from llmrouter.errors import InvalidRequestError, SaturatedError
from llmrouter.resources import RoutingPolicySpec
from llmrouter.routing.catalogue import make_policy
from llmrouter.routing.guard import Guard, GuardRules, Why
from llmrouter.routing.guard_shares import ENOUGH_PLACEMENTS, Shares
from llmrouter.routing.lateness import REST_S, Lateness
from llmrouter.routing.policies import LeastInFlight
from llmrouter.routing.rooms import kv_gate, request_bound
from router_grpc.reports import ReportKind
from router_grpc.runtime import RuntimeBuilder

if TYPE_CHECKING:
    from llmrouter.domain import PoolSnapshot

NOTHING = dict.fromkeys(
    ("waitWeight", "decodeWeight", "stallWeight", "slowdownWeight", "coalesceWeight", "overflowWeight", "spreadWeight"),
    0,
)


def small() -> Bench:
    """One instance with room for one request."""
    return Bench(config_of("a:1", limits={"maxInFlightPerInstance": 1}, policy={"hold": {"maxWaitSeconds": 0.5}}))


class TestWeights:
    @pytest.mark.parametrize("value", [math.nan, math.inf, 1e12, -1.0])
    def test_no_resource_has_them(self, value: float) -> None:
        with pytest.raises(ValueError, match="stallWeight"):
            RoutingPolicySpec.model_validate({"type": "WorkloadImpact", "objective": {"stallWeight": value}})

    @pytest.mark.parametrize(
        "policy", [{"type": "WorkloadImpact"}, {"type": "Onnx", "model": {"builtin": "marginal-cost"}}]
    )
    def test_weights_of_nothing_place_anywhere_with_room(self, policy: dict[str, object]) -> None:
        """All costs are 0, all instances tie, and ties are drawn: nobody is left out, nobody is overfilled."""
        guard = RuntimeBuilder(lambda: 0.0).build(bundle_of(config_of(policy={**policy, "objective": NOTHING}))).guard
        full = replace(view("full"), load=Load(requests=10_000, context_tokens=10**9))
        shown, rng = snapshot([view("a", 3), view("b", 1), view("c"), full]), random.Random(2)
        counts: dict[str, int] = {}
        for _ in range(300):
            guarded = guard.decide(request(), shown, rng)
            assert isinstance(guarded.decision, Placement)
            assert guarded.fallback_reason is None
            first = guarded.decision.candidates[0].instance_id
            counts[first] = counts.get(first, 0) + 1
        assert set(counts) == {"a", "b", "c"}

    @pytest.mark.parametrize("weight", [math.nan, math.inf])
    def test_weights_that_are_no_numbers_leave_it_to_the_fallback(self, weight: float) -> None:
        """Past every check of a resource, the score says it: NaN, or infinite."""
        primary = make_policy("WorkloadImpact", kv_gate(1.0), ObjectiveWeights(wait=weight))
        guard = Guard(primary, LeastInFlight(request_bound(8)), budget_s=1.0, clock=lambda: 0.0)
        guarded = guard.decide(request(), snapshot([view("a", 2), view("b", 1)]), random.Random(1))
        assert guarded.fallback_reason == Why.NOT_FINITE
        assert isinstance(guarded.decision, Placement)
        assert guarded.decision.candidates[0].instance_id == "b"

    def test_huge_weights_still_order(self) -> None:
        primary = make_policy("WorkloadImpact", kv_gate(1.0), ObjectiveWeights(*[1e12] * 7))
        guard = Guard(primary, LeastInFlight(request_bound(8)), budget_s=1.0, clock=lambda: 0.0)
        guarded = guard.decide(request(), snapshot([view("a", 9), view("b", 1)]), random.Random(1))
        assert guarded.fallback_reason is None
        assert isinstance(guarded.decision, Placement)
        assert guarded.decision.candidates[0].instance_id == "b"

    @pytest.mark.parametrize("length", [math.nan, math.inf])
    def test_a_length_that_is_no_number_leaves_it_to_the_fallback(self, length: float) -> None:
        """The gate would find no room for it anywhere, ever."""
        primary = make_policy("WorkloadImpact", kv_gate(1.0))
        guard = Guard(primary, LeastInFlight(request_bound(8)), budget_s=1.0, clock=lambda: 0.0)
        asked = request(predicted_output_tokens=length)
        guarded = guard.decide(asked, snapshot([view("a", 2), view("b", 1)]), random.Random(1))
        assert guarded.fallback_reason == Why.MISSING_FEATURES
        assert isinstance(guarded.decision, Placement)


class TestDeadlines:
    async def test_a_call_whose_deadline_is_over_is_placed_or_refused_at_once(self) -> None:
        bench = small()
        await bench.route("r", deadline_s=bench.clock() - 3_600.0)
        with pytest.raises(SaturatedError):
            await bench.route("late", deadline_s=bench.clock() - 3_600.0)
        assert bench.service.held == 0

    async def test_a_negative_deadline_is_refused_by_name(self) -> None:
        with pytest.raises(InvalidRequestError, match="deadline_ms: -5"):
            await small().route(deadline_ms=-5)

    async def test_deadlines_that_are_over_keep_nobody_waiting_for_ever(self) -> None:
        """Who is most overdue goes first, and ages no faster than the rest: one without a deadline gets its turn."""
        bench = Bench(
            config_of(
                "a:1",
                limits={"maxInFlightPerInstance": 1},
                policy={"queue": {"order": "LeastSlack", "agingSeconds": 1}},
            )
        )
        await bench.route("first")
        patient = asyncio.create_task(bench.route("patient"))
        await until(lambda: bench.service.held == 1, what="patient held")
        current, rounds = "first", 0
        while not patient.done() and rounds < 50:
            rounds += 1
            hasty = asyncio.create_task(bench.route(f"hasty{rounds}", deadline_ms=1))
            await until(lambda: bench.service.held == 2, what="both held")
            bench.clock.now_s += 0.3
            await bench.report(current)
            await until(lambda hasty=hasty: hasty.done() or patient.done(), what="one placed")  # type: ignore[misc]
            current = f"hasty{rounds}" if hasty.done() else "patient"
        assert patient.done()
        await bench.report(current)
        await hasty


class TestClocks:
    @pytest.mark.parametrize("jump_s", [-1e6, -10.0, 10.0, 1e6])
    async def test_a_jump_while_requests_are_held_and_in_flight(self, jump_s: float) -> None:
        """A finish still makes room, whoever is held goes, and what comes later is served."""
        bench = small()
        await bench.route("r")
        held = asyncio.create_task(bench.route("held"))
        await until(lambda: bench.service.held == 1, what="held")
        await bench.report("r", ReportKind.FIRST_TOKEN)
        bench.clock.now_s += jump_s
        await bench.report("r", ReportKind.PROGRESS, output_tokens=10)
        await bench.report("r")
        assert (await held).instance_id == "a:1"
        await bench.report("held")
        assert (await bench.route("later")).held_s == 0.0
        assert bench.service.held == 0

    async def test_a_clock_that_goes_back_makes_no_wait_longer(self) -> None:
        """The hold ends by the event loop's clock, however often its head tries in between."""
        bench = small()
        await bench.route("r")
        held = asyncio.create_task(bench.route("held"))
        await until(lambda: bench.service.held == 1, what="held")
        bench.clock.now_s -= 3_600.0
        while not held.done():
            bench.service.kick()
            await asyncio.sleep(0.02)
        with pytest.raises(SaturatedError) as refusal:
            await held
        assert refusal.value.reason == "HoldTimeout"

    @pytest.mark.parametrize("jump_s", [-1e9, -1.0, 1.0, 1e9])
    def test_a_rest_is_never_longer_than_it_should_be(self, jump_s: float) -> None:
        clock = provoking.Clock()
        lateness = Lateness(budget_s=0.1, clock=clock)
        for _ in range(5):
            lateness.note(1.0)
        assert lateness.resting
        clock.move(jump_s)
        assert lateness.resting is (jump_s == 1.0)
        clock.now_s = REST_S
        assert not lateness.resting

    @pytest.mark.parametrize("jump_s", [-1e9, 1e9])
    def test_shares_are_known_again_after_a_jump(self, jump_s: float) -> None:
        shares = Shares(2.0)
        views = [view("a", 4), view("b", 2), view("c", 2)]

        def at(now_s: float) -> PoolSnapshot:
            return replace(snapshot(views), taken_at_s=now_s)

        for n in range(2 * ENOUGH_PLACEMENTS):
            shares.placed("a", request(), at(float(n)))
        assert shares.over("a", request(), at(40.0))
        for n in range(2 * ENOUGH_PLACEMENTS):
            shares.placed("a", request(), at(jump_s + n))
        assert shares.over("a", request(), at(jump_s + 40.0))
        assert not shares.over("b", request(), at(jump_s + 40.0))

    @pytest.mark.parametrize("jump_s", [-1e6, 1e6])
    def test_a_hold_at_will_does_not_outlive_a_jump(self, jump_s: float) -> None:
        """Nobody can say how long the head has waited: it goes."""
        guard = Guard(
            provoking.always_holds(), LeastInFlight(provoking.ROOM), budget_s=1.0, clock=lambda: 0.0, rules=GuardRules()
        )
        shown = replace(snapshot([view("a", 1)]), taken_at_s=100.0 + jump_s, head_since_s=100.0)
        guarded = guard.decide(request(), shown, random.Random(1))
        assert guarded.fallback_reason == Why.HOLD_OVERRULED
        assert isinstance(guarded.decision, Placement)


async def test_a_policy_that_may_not_hold_refuses_nobody_at_will() -> None:
    """With holds off a wish to wait would be a refusal."""
    bench = Bench(config_of(policy={"hold": {"enabled": False}}, limits={"maxInFlightPerInstance": 8}))
    runtime = bench.service.runtime
    assert runtime is not None
    rules = runtime.guard.rules
    guard = Guard(provoking.always_holds(), LeastInFlight(provoking.ROOM), budget_s=1.0, clock=bench.clock, rules=rules)
    bench.service.swap(replace(runtime, guard=guard))
    assert [(await bench.route()).policy for _ in range(6)] == ["LeastInFlight"] * 6

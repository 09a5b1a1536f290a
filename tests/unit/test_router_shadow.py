"""A candidate in shadow: asked of requests that are on their way, and of nothing else is anything different."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import pytest
from support import provoking
from support.pools import request, snapshot, view
from support.router_world import Bench, config_of, until
from support.trials import put_on_trial, trial_config

from llmrouter.objectives import PRESETS
from llmrouter.routing.marginal_cost import marginal_costs
from llmrouter.routing.policies import LeastInFlight
from llmrouter.routing.stages import row_of
from router_grpc.candidate_told import candidate_told
from router_grpc.shadowing import BEHIND_S, DELAY_S, MOST_PER_S, Shadow, cost_difference_s

if TYPE_CHECKING:
    from llmrouter.acknowledgement import RouterShadow
    from llmrouter.routing.policies import Policy


def shadowed(policy: Policy | None = None) -> Bench:
    bench = Bench(trial_config(mode="Shadow"))
    bench.world.trial.shadow = Shadow(behind_s=math.inf)
    if policy is not None:
        put_on_trial(bench, policy)
    return bench


def told(bench: Bench) -> RouterShadow:
    runtime = bench.service.runtime
    assert runtime is not None
    said = candidate_told(bench.world, runtime)
    assert said is not None
    assert (said.arms, said.mode) == ({}, "Shadow")
    assert said.shadow is not None
    return said.shadow


async def asked(bench: Bench, request_id: str) -> None:
    """One request, and its shadow."""
    shadow = bench.world.trial.shadow
    shadow._not_before_s = 0.0
    before = shadow.counts.decisions
    await bench.route(request_id)
    await until(lambda: shadow.counts.decisions > before, what="the shadow's decision")


async def test_one_that_would_do_the_same_agrees_and_costs_nothing() -> None:
    bench = shadowed(LeastInFlight(provoking.ROOM))
    for number in range(2):
        await asked(bench, f"r{number}")
    said = told(bench)
    assert said.decisions == said.placements == said.compared == 2
    assert said.cost_difference_seconds is not None
    assert said.decision_seconds is not None


async def test_it_sees_what_the_policy_saw_and_changes_nothing() -> None:
    """Its choice is the full instance; nothing is reserved there, and the live stream of draws is as it was."""
    fullest = provoking.Provoking(
        lambda _request, snapshot: provoking.placed(max(snapshot.views, key=lambda one: one.total.requests))
    )
    bench = shadowed(fullest)
    await bench.route("first")
    await until(lambda: bench.world.trial.shadow.counts.decisions == 1)
    with_shadow = bench.world.rng.getstate()
    await asked(bench, "second")
    said = told(bench)
    assert said.agreements < said.placements
    assert said.cost_difference_seconds is not None
    assert said.cost_difference_seconds > 0
    loads = await bench.world.ledger.loads()
    assert sorted(one.requests for one in loads.values()) == [1, 1]
    plain = Bench(config_of())
    await plain.route("first")
    assert with_shadow == plain.world.rng.getstate()
    assert bench.count("llmrouter_shadow_decisions_total", outcome="Disagreed") >= 1
    assert bench.count("llmrouter_arm_requests_total", arm="current", event="dispatched") == 0


async def test_holds_and_failures_are_counted_and_reach_no_request() -> None:
    for bad, outcome in ((provoking.raises(), "Fallback"), (provoking.always_holds(), "Fallback")):
        bench = shadowed(bad)
        await asked(bench, "r")
        assert bench.count("llmrouter_shadow_decisions_total", outcome=outcome) == 1
        assert bench.count("llmrouter_policy_fallback_total", reason="Error") == 0
        assert (told(bench).fallbacks, told(bench).placements) == (1, 0)
    bench = shadowed(provoking.holds_while_busy(1.0))
    for name in ("a", "b"):
        await asked(bench, name)
    await bench.report("a")
    await asked(bench, "c")
    assert told(bench).fallbacks == 0


async def test_its_rate_is_bounded_and_what_is_left_out_is_counted() -> None:
    bench = shadowed()
    for number in range(6):
        await bench.route(f"r{number}")
    said = told(bench)
    assert (said.decisions, said.skipped) == (0, 5)
    assert bench.count("llmrouter_shadow_skipped_total", reason="Busy") == 5
    await until(lambda: told(bench).decisions == 1)
    assert bench.world.trial.shadow._not_before_s > 0
    assert MOST_PER_S <= 100


async def test_a_loop_that_is_behind_asks_no_shadow() -> None:
    bench = Bench(trial_config(mode="Shadow"))
    await bench.route("r")
    time.sleep(DELAY_S + 2 * BEHIND_S)  # noqa: ASYNC251 - keeps the loop, which is the point
    await until(lambda: told(bench).skipped == 1)
    assert bench.count("llmrouter_shadow_skipped_total", reason="LoopBehind") == 1


def test_the_difference_of_costs_is_that_of_the_marginal_cost() -> None:
    views = (view("a"), view("b", 3), view("c"))
    asked, seen = request(), snapshot(views)
    weights = PRESETS["SLO"].in_order
    costs = marginal_costs([row_of(asked, one) for one in views], weights)
    assert cost_difference_s(asked, seen, weights, ("b", "a")) == pytest.approx(costs[1] - costs[0])
    assert cost_difference_s(asked, seen, weights, ("a", "gone")) is None

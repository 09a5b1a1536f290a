"""Every guard, provoked in the simulator by a policy that is up to no good: it acts, says why, and nothing starves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support import provoking
from support.router_world import bundle_of, config_of
from support.sim_worlds import Case, interpret

from llmrouter.profiles import H100_MIX, PAPER_V100
from llmrouter.routing.guard import Guard, GuardRules, Why
from llmrouter.routing.lateness import LATE_IN_A_ROW, REST_S
from llmrouter.routing.policies import LeastInFlight
from llmrouter.sim.guarded import GuardedPolicy
from llmrouter.sim.model import EngineModel
from llmrouter.sim.setup import RouterSide, Setup
from llmrouter.sim.workload import Workload
from router_grpc.runtime import RuntimeBuilder

if TYPE_CHECKING:
    from llmrouter.routing.envelope import Envelope
    from llmrouter.routing.policies import Policy
    from llmrouter.sim.outcomes import Outcomes

REQUESTS = 250
LONGEST_WAIT_S = 30.0
BUDGET_S = 0.02


def workload(count: int = REQUESTS, *, rate_rps: float = 12.0) -> Workload:
    rng = np.random.default_rng(7)
    arrivals = np.cumsum(rng.exponential(1 / rate_rps, count))
    return Workload.of(arrivals, rng.integers(50, 900, count), rng.integers(5, 60, count))


def play(
    primary: Policy,
    *,
    rules: GuardRules | None = None,
    envelope: Envelope | None = None,
    clock: provoking.Clock | None = None,
    side: RouterSide | None = None,
    engines: int = 3,
    requests: Workload | None = None,
) -> tuple[GuardedPolicy, Outcomes]:
    """A run of the guarded policy, by the interpreted simulator."""
    guard = Guard(
        primary,
        LeastInFlight(provoking.ROOM),
        budget_s=BUDGET_S,
        clock=clock or provoking.Clock(),
        rules=rules,
        envelope=envelope,
    )
    policy = GuardedPolicy(guard)
    side = side or RouterSide(max_wait_s=LONGEST_WAIT_S)
    setup = Setup(engines=(EngineModel(replace(H100_MIX, kv_tokens=30_000)),) * engines, routers=side)
    outcomes = interpret(Case(setup, requests or workload(), lambda: policy))
    return policy, outcomes


def all_served(outcomes: Outcomes) -> bool:
    return bool(outcomes.finished.all())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (provoking.raises, Why.ERROR),
        (provoking.scores_nan, Why.NOT_FINITE),
        (provoking.scores_nothing, Why.NOT_FINITE),
        (provoking.sees_too_little, Why.MISSING_FEATURES),
        (provoking.names_a_stranger, Why.INVALID),
        (provoking.sees_nobody, Why.INVALID),
    ],
)
def test_the_fallback_decides_where_the_policy_cannot(make: type[Policy], reason: Why) -> None:
    policy, outcomes = play(make())
    assert all_served(outcomes)
    assert policy.reasons == {reason: pytest.approx(REQUESTS, abs=REQUESTS)}
    assert policy.reasons[reason] >= REQUESTS


def test_late_decisions_rest_the_policy() -> None:
    clock = provoking.Clock()
    slow = provoking.Slow(2 * BUDGET_S, clock.move)
    policy, outcomes = play(slow, clock=clock)
    assert all_served(outcomes)
    assert slow.asked == LATE_IN_A_ROW
    assert policy.reasons[Why.LATE] >= REQUESTS - LATE_IN_A_ROW


def test_what_the_model_was_not_made_for_is_clamped_and_rests_it() -> None:
    scored, envelope = provoking.out_of_range()
    policy, outcomes = play(scored, envelope=envelope, requests=workload(rate_rps=5.0))
    assert all_served(outcomes)
    assert policy.reasons[Why.CLAMPED] >= 32
    assert policy.reasons[Why.OUT_OF_DISTRIBUTION] > 0
    assert outcomes.arrived_at_s[-1] > 3 * REST_S  # it was tried again after each rest


def test_a_model_that_may_be_clamped_is_only_counted() -> None:
    scored, envelope = provoking.out_of_range(max_clamped_fraction=1.0)
    policy, outcomes = play(scored, envelope=envelope)
    assert all_served(outcomes)
    assert policy.reasons == {Why.CLAMPED: pytest.approx(REQUESTS, rel=1)}


def test_a_policy_that_always_holds_is_overruled() -> None:
    """An idle instance gets its request at once, and the others wait for no more than the policy's time-out."""
    policy, outcomes = play(provoking.always_holds())
    assert all_served(outcomes)
    assert policy.reasons[Why.HOLD_OVERRULED] > REQUESTS / 2
    assert np.nanmax(outcomes.wait_s) < LONGEST_WAIT_S


def test_a_hold_ends_though_nothing_happens() -> None:
    """One request and one that keeps the engine busy: no event comes, and the hold has its end."""
    pair = Workload.of([0.0, 0.1], [100, 100], [3_000, 10])
    policy, outcomes = play(provoking.holds_while_busy(1e9), engines=1, requests=pair, side=RouterSide())
    assert all_served(outcomes)
    assert policy.reasons == {Why.HOLD_SHORTENED: 1, Why.HOLD_OVERRULED: 1}
    assert outcomes.dispatched_at_s[1] == pytest.approx(0.1 + 5.0)


@pytest.mark.parametrize("until_s", [-1.0, 0.0, 1e12, float("nan"), float("inf")])
def test_a_hold_until_no_sensible_instant_ends(until_s: float) -> None:
    """An instant that is over, one that never comes, and none."""
    policy, outcomes = play(provoking.always_holds(until_s), rules=GuardRules(longest_hold_s=0.5))
    assert all_served(outcomes)
    assert policy.reasons[Why.HOLD_OVERRULED] > 0


def test_a_hold_on_stale_loads_is_refused() -> None:
    side = RouterSide(refresh_s=4.0, max_wait_s=LONGEST_WAIT_S)
    policy, outcomes = play(provoking.holds_while_busy(0.2), rules=GuardRules(stale_after_s=0.5), side=side)
    assert all_served(outcomes)
    assert policy.reasons[Why.STALE] > 0
    fresh, _ = play(provoking.holds_while_busy(0.2), rules=GuardRules(stale_after_s=0.5))
    assert Why.STALE not in fresh.reasons


def test_a_policy_that_always_picks_one_instance_is_sent_on() -> None:
    """Without the cap one instance gets nearly everything; with it no more than its share and what the window lags."""
    free, uncapped = play(provoking.always_picks_the_first(), rules=GuardRules(max_share_factor=1000.0), engines=4)
    policy, capped = play(provoking.always_picks_the_first(), rules=GuardRules(max_share_factor=2.0), engines=4)
    assert all_served(uncapped)
    assert all_served(capped)
    assert free.reasons[Why.SHARE_CAPPED] <= 3
    assert policy.reasons[Why.SHARE_CAPPED] > 0
    before, after = (largest_share(one) for one in (uncapped, capped))
    assert before > 0.7
    assert after < 0.2 + 2.0 / (2.0 + 3.0)
    assert np.nanmean(capped.finished_at_s - capped.arrived_at_s) < np.nanmean(
        uncapped.finished_at_s - uncapped.arrived_at_s
    )


def largest_share(outcomes: Outcomes) -> float:
    tokens = outcomes.workload.prompt_tokens + outcomes.workload.predicted_output_tokens
    return float(np.bincount(outcomes.instance, weights=tokens).max() / tokens.sum())


def test_the_kill_switch_takes_the_policy_out() -> None:
    primary = provoking.always_holds()
    policy, outcomes = play(primary, rules=GuardRules(forced=True))
    assert all_served(outcomes)
    assert primary.asked == 0
    assert set(policy.reasons) == {Why.FORCED}


@pytest.mark.parametrize("preset", ["Balanced", "E2E"])
def test_the_guard_has_nothing_to_say_about_the_default_policy(preset: str) -> None:
    """Its waits for a batch are holds at will: they end by themselves, and keep nobody from an idle instance."""
    policy = {
        "type": "WorkloadImpact",
        "objective": {"preset": preset},
        "hold": {"batchSize": 4, "batchWaitSeconds": 0.15},
    }
    guard = RuntimeBuilder(provoking.Clock()).build(bundle_of(config_of(policy=policy))).guard
    guarded = GuardedPolicy(guard)
    setup = Setup(engines=(EngineModel(PAPER_V100),) * 3, routers=RouterSide(routers=2, refresh_s=0.1))
    outcomes = interpret(Case(setup, workload(rate_rps=10.0), lambda: guarded))
    assert all_served(outcomes)
    assert (outcomes.wait_s > 0.0).sum() > REQUESTS / 10
    assert not guarded.reasons

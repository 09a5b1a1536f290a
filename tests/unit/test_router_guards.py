"""Every guard, provoked in a router by a policy that is up to no good: it acts, says why in answer and metric."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support import provoking
from support.router_world import Bench, config_of, live_router, until

from llmrouter.errors import SaturatedError
from llmrouter.routing.guard import Guard, GuardRules, Why
from llmrouter.routing.lateness import LATE_IN_A_ROW, REST_S
from llmrouter.routing.policies import LeastInFlight
from router_grpc.reports import ReportKind

if TYPE_CHECKING:
    from llmrouter.domain import Load
    from llmrouter.routing.envelope import Envelope
    from llmrouter.routing.policies import Policy

BUDGET_S = 0.02


def guarded(
    primary: Policy,
    *endpoints: str,
    rules: GuardRules | None = None,
    envelope: Envelope | None = None,
    hold_s: float = 10.0,
) -> Bench:
    """A router in memory whose policy is ``primary``, with room for eight requests on each of two instances."""
    config = config_of(*endpoints, policy={"hold": {"maxWaitSeconds": hold_s}}, limits={"maxInFlightPerInstance": 8})
    bench = Bench(config)
    runtime = bench.service.runtime
    assert runtime is not None
    guard = Guard(
        primary,
        LeastInFlight(provoking.ROOM),
        budget_s=BUDGET_S,
        clock=bench.clock,
        rules=rules,
        envelope=envelope,
    )
    bench.service.swap(replace(runtime, guard=guard))
    return bench


def fallbacks(bench: Bench, reason: str) -> float:
    return bench.count("llmrouter_policy_fallback_total", reason=reason)


def changes(bench: Bench, reason: str) -> float:
    return bench.count("llmrouter_guard_actions_total", reason=reason)


async def loads(bench: Bench) -> dict[str, Load]:
    return dict(await bench.world.ledger.loads())


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
async def test_the_fallback_decides_where_the_policy_cannot(make: type[Policy], reason: Why) -> None:
    bench = guarded(make())
    answers = [await bench.route() for _ in range(4)]
    assert {answer.policy for answer in answers} == {"LeastInFlight"}
    assert all(answer.reason.startswith(f"{reason}: ") for answer in answers)
    assert fallbacks(bench, reason) == 4
    assert sorted(load.requests for load in (await loads(bench)).values()) == [2, 2]


async def test_late_decisions_rest_the_policy_and_the_router_says_so() -> None:
    bench = guarded(provoking.raises())
    runtime = bench.service.runtime
    assert runtime is not None
    slow = provoking.Slow(2 * BUDGET_S, lambda by_s: setattr(bench.clock, "now_s", bench.clock.now_s + by_s))
    guard = Guard(slow, LeastInFlight(provoking.ROOM), budget_s=BUDGET_S, clock=bench.clock)
    runtime = replace(runtime, guard=guard)
    bench.service.swap(runtime)
    answers = [await bench.route() for _ in range(LATE_IN_A_ROW + 1)]
    assert [answer.policy for answer in answers] == ["Provoking"] * LATE_IN_A_ROW + ["LeastInFlight"]
    assert fallbacks(bench, Why.LATE) == 1
    assert (runtime.policy_now.reason, runtime.deciding) == ("TooSlow", "LeastInFlight")
    bench.clock.now_s += REST_S
    assert (await bench.route()).policy == "Provoking"


async def test_what_the_model_was_not_made_for_is_clamped_and_rests_it() -> None:
    scored, envelope = provoking.out_of_range()
    bench = guarded(scored, envelope=envelope)
    runtime = bench.service.runtime
    assert runtime is not None
    for _ in range(33):
        answer = await bench.route("r")
        assert await bench.report("r")
    assert (changes(bench, Why.CLAMPED), fallbacks(bench, Why.OUT_OF_DISTRIBUTION)) == (32, 1)
    assert answer.policy == "LeastInFlight"
    assert "32 of 32 decisions beyond the model's ranges, last in prompt_tokens" in answer.reason
    assert runtime.policy_now.reason == "OutOfDistribution"
    bench.clock.now_s += REST_S
    assert (await bench.route()).policy == scored.name


async def test_a_hold_while_an_instance_idles_is_overruled() -> None:
    bench = guarded(provoking.always_holds())
    answers = [await bench.route() for _ in range(2)]
    assert {answer.instance_id for answer in answers} == {"a:1", "b:1"}
    assert fallbacks(bench, Why.HOLD_OVERRULED) == 2
    assert "is idle" in answers[0].reason


async def test_a_policy_that_always_holds_starves_nobody() -> None:
    """All are busy, with room: whoever is held goes when the longest hold is over, and then the policy rests."""
    bench = guarded(provoking.always_holds(), rules=GuardRules(longest_hold_s=0.05))
    await asyncio.gather(*(bench.route() for _ in range(2)))
    held = [asyncio.create_task(bench.route()) for _ in range(6)]
    await until(lambda: bench.service.held > 0, what="held")
    assert changes(bench, Why.HOLD_SHORTENED) >= 1
    while bench.service.held:
        bench.clock.now_s += 0.06
        bench.service.kick()
        await asyncio.sleep(0.001)
    assert {(await one).policy for one in held} == {"LeastInFlight"}
    assert fallbacks(bench, Why.HOLD_OVERRULED) >= 5


async def test_a_hold_on_stale_loads_is_refused() -> None:
    bench = guarded(provoking.holds_while_busy(1.0), "a:1", rules=GuardRules(stale_after_s=0.5))
    assert (await bench.route()).policy == "Provoking"
    bench.world.replica.replace(await loads(bench), now_s=bench.clock())
    waiting = asyncio.create_task(bench.route())
    await until(lambda: bench.service.held == 1, what="a hold on fresh loads")
    bench.clock.now_s += 0.6
    bench.service.kick()
    answer = await waiting
    assert answer.reason.startswith("Stale: loads are 0.6 s old")
    assert fallbacks(bench, Why.STALE) == 1


async def test_holds_for_want_of_room_stay_whatever_the_age_of_the_loads() -> None:
    bench = guarded(provoking.always_holds(), "a:1", rules=GuardRules(longest_wait_s=0.0))
    for _ in range(8):
        await bench.route()
        bench.clock.now_s += REST_S  # no rest of the policy is left over
    bench.world.replica.replace(await loads(bench), now_s=bench.clock())
    bench.clock.now_s += 60.0
    with pytest.raises(SaturatedError):
        await bench.route(deadline_s=bench.clock())
    assert fallbacks(bench, Why.STALE) == 0


async def test_nobody_is_refused_because_a_policy_wished_to_wait() -> None:
    """A request that may wait for 0.2 s is held at will for half of it; then it goes where there is room."""
    rules = GuardRules(longest_wait_s=0.2)
    bench = guarded(provoking.holds_while_busy(60.0), "a:1", rules=rules, hold_s=0.2)
    await bench.route()
    waiting = asyncio.create_task(bench.route())
    await until(lambda: bench.service.held == 1, what="held")
    bench.clock.now_s += 0.11
    answer = await waiting
    assert answer.reason.startswith("HoldOverruled: it waits for 0.11 s and would soon be refused")


async def test_a_policy_that_always_picks_one_instance_is_sent_on() -> None:
    """Until the window knows enough the first instance gets all; then it is left behind until the others catch up."""
    bench = guarded(
        provoking.always_picks_the_first(), "a:1", "b:1", "c:1", "d:1", rules=GuardRules(max_share_factor=2.0)
    )
    places = []
    for n in range(80):
        places.append((await bench.route(f"r{n}")).instance_id)
        bench.clock.now_s += 0.1
        if n >= 6:
            await bench.report(f"r{n - 6}", ReportKind.FINISHED)
    assert set(places[:20]) == {"a:1"}
    assert places[40:].count("a:1") < 30
    assert len(set(places[40:])) == 4
    assert changes(bench, Why.SHARE_CAPPED) >= 20


async def test_the_kill_switch_takes_effect_at_once_and_is_acknowledged() -> None:
    """A configuration with the switch set decides the next request; without it, the policy is back. No restart."""
    policy = {"type": "Onnx", "model": {"builtin": "marginal-cost"}}
    on, off = (config_of(policy={**policy, "guard": {"forceFallback": forced}}) for forced in (True, False))
    async with live_router(off) as live:
        assert (await live.route()).policy == "Onnx"
        for config, decides, reason in ((on, "LeastInFlight", "Forced"), (off, "Onnx", "Active")):
            live.source.push(config)
            await until(
                lambda reason=reason: bool(  # type: ignore[misc]
                    live.acknowledgements and live.acknowledgements[-1].policy_reason == reason
                ),
                what=f"acknowledged {reason}",
            )
            said = live.acknowledgements[-1]
            assert (said.deciding, said.policy_ready) == (decides, reason == "Active")
            answer = await live.route()
            assert answer.policy == decides
        assert live.count("llmrouter_policy_fallback_total", reason="Forced") == 1


async def test_what_a_decision_foretold_is_held_against_what_it_took() -> None:
    """A request alone is foretold by its profile; one that takes half as long again is counted there."""
    bench = guarded(provoking.raises(), "a:1")
    instance = bench.instances.instances[0]
    profile = instance.profile
    p, d = 100, 100.0
    own_s = profile.prefill_s_per_token * p + profile.prefill_s_per_token_squared * p * p
    own_s += d * (profile.base_decode_s + profile.sequence_s + profile.context_s_per_token * p)
    await bench.route("r", prompt_tokens=p)
    bench.clock.now_s += 1.45 * own_s
    await bench.report("r")
    labels = {"policy": "LeastInFlight"}
    assert bench.count("llmrouter_cost_ratio_count", **labels) == 1
    assert bench.count("llmrouter_cost_ratio_sum", **labels) == pytest.approx(1.45, rel=1e-6)

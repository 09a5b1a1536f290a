"""A candidate in canary: whose requests it decides, what is counted of both arms, and that a bad one does no harm."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support import provoking
from support.router_world import Bench, bundle_of, config_of, until
from support.trials import candidate_of, ids_of, pair_of, put_on_trial, trial_config

from llmrouter.domain import Candidate, Hold, Placement
from llmrouter.errors import SaturatedError
from llmrouter.rollout.arms import ARMS, CANDIDATE, CURRENT
from llmrouter.routing.policies import LeastInFlight, request_bound
from router_grpc.candidate import LONGEST_HOLD_S, HoldAllowance
from router_grpc.candidate_told import arms_pause_s, candidate_told
from router_grpc.readiness import Readiness
from router_grpc.reports import ReportKind

if TYPE_CHECKING:
    from llmrouter.acknowledgement import RouterCandidate
    from llmrouter.domain import Decision, PoolSnapshot, Request
    from llmrouter.rollout.arm_stats import ArmStats
    from llmrouter.routing.policies import Policy

MANY = 400


def arms_of(bench: Bench) -> dict[str, ArmStats]:
    return bench.world.trial.arms(bench.world)


def told(bench: Bench) -> RouterCandidate:
    runtime = bench.service.runtime
    assert runtime is not None
    said = candidate_told(bench.world, runtime)
    assert said is not None
    return said


async def served(bench: Bench, request_id: str, *, ttft_s: float = 0.1, tokens: int = 11, tpot_s: float = 0.01) -> None:
    """One request from its arrival to its end."""
    await bench.route(request_id)
    bench.clock.now_s += ttft_s
    await bench.report(request_id, ReportKind.FIRST_TOKEN)
    bench.clock.now_s += (tokens - 1) * tpot_s
    await bench.report(request_id, output_tokens=tokens)


async def test_a_share_of_the_request_ids_is_the_candidates_for_good() -> None:
    bench = Bench(trial_config(percent=25))
    digests = {CURRENT: bench.service.runtime.policy_digest, CANDIDATE: candidate_of(bench).digest}  # type: ignore[union-attr]
    theirs = set(ids_of(bench, CANDIDATE, MANY))
    for name in (f"r{number}" for number in range(MANY)):
        answer = await bench.route(name)
        arm = CANDIDATE if name in theirs else CURRENT
        assert (answer.policy, answer.policy_digest) == (
            "RoundRobin" if arm == CANDIDATE else "LeastInFlight",
            digests[arm],
        )
        await bench.report(name)
    counted = {arm: stats.requests for arm, stats in arms_of(bench).items()}
    assert sum(counted.values()) == MANY
    assert counted[CANDIDATE] == pytest.approx(0.25 * MANY, abs=40)


async def test_what_comes_of_a_request_counts_for_its_arm() -> None:
    bench = Bench(trial_config())
    current, candidate = pair_of(bench)
    await served(bench, current, ttft_s=0.1)
    await served(bench, candidate, ttft_s=0.3, tpot_s=0.02)
    arms = arms_of(bench)
    assert arms[CURRENT].ttft.mean_s == pytest.approx(0.1)
    assert arms[CANDIDATE].ttft.mean_s == pytest.approx(0.3)
    assert arms[CANDIDATE].tpot.mean_s == pytest.approx(0.02)
    assert arms[CANDIDATE].e2e.mean_s == pytest.approx(0.5)
    assert bench.count("llmrouter_arm_e2e_seconds_sum", arm=CANDIDATE) == pytest.approx(0.5)
    assert bench.count("llmrouter_arm_requests_total", arm=CURRENT, event="finished") == 1
    said = told(bench).arms[CANDIDATE].stats()
    assert (said.requests, said.finished, said.ttft.count) == (1, 1, 1)
    assert said.e2e.y == pytest.approx(arms[CANDIDATE].e2e.y)


@pytest.mark.parametrize(
    ("kind", "fields", "errors", "waiting"),
    [
        (ReportKind.FAILED, {}, 1, 0),
        (ReportKind.FAILED, {"is_fault": False}, 0, 0),
        (ReportKind.CANCELLED, {}, 0, 1),
        (ReportKind.CANCELLED, {"is_late": True}, 0, 1),
    ],
)
async def test_ends_that_are_no_success(kind: ReportKind, fields: dict[str, bool], errors: int, waiting: int) -> None:
    """A client that leaves after a long wait has seen a first token that is at least so late; its own fault is none."""
    bench = Bench(trial_config())
    _, candidate = pair_of(bench)
    await bench.route(candidate)
    bench.clock.now_s += 5.0
    await bench.report(candidate, kind, **fields)
    one = arms_of(bench)[CANDIDATE]
    assert (one.requests, one.finished, one.errors, one.waiting) == (1, 0, errors, waiting)


async def test_requests_that_still_wait_for_long_count_as_at_least_so_late() -> None:
    bench = Bench(trial_config())
    current, candidate = pair_of(bench)
    await served(bench, current)
    await bench.route(candidate)
    bench.world.trial.will_tell_start(bench.world, candidate)
    assert arms_of(bench)[CANDIDATE].waiting == 0
    bench.clock.now_s += 30.0
    assert arms_of(bench)[CANDIDATE].ttft.mean_s == pytest.approx(30.0)
    await bench.report(candidate, ReportKind.FIRST_TOKEN)
    assert arms_of(bench)[CANDIDATE].waiting == 0


async def test_a_held_request_stays_in_its_arm_and_one_that_is_refused_is_an_error_of_it() -> None:
    limits = {"maxInFlightPerInstance": 1}
    bench = Bench(trial_config("a:1", limits=limits, policy={"hold": {"maxWaitSeconds": 5}}))
    current, candidate = pair_of(bench)
    await bench.route(current)
    held = asyncio.create_task(bench.route(candidate))
    await until(lambda: bench.service.held == 1)
    await bench.report(current)
    answer = await held
    assert (answer.policy, arms_of(bench)[CANDIDATE].requests) == ("RoundRobin", 1)
    late = ids_of(bench, CANDIDATE, 2)[1]
    with pytest.raises(SaturatedError):
        await bench.route(late, deadline_s=bench.clock.now_s + 0.01)
    one = arms_of(bench)[CANDIDATE]
    assert (one.requests, one.errors) == (2, 1)


async def test_a_candidate_that_takes_less_keeps_the_line_waiting_for_a_moment_only() -> None:
    """It sees no room where the current policy does: its request is first in the line, and then the other decides."""
    bench = Bench(trial_config("a:1"))
    put_on_trial(bench, LeastInFlight(request_bound(1)))
    current, candidate = pair_of(bench)
    await bench.route(current)
    held = asyncio.create_task(bench.route(candidate))
    await until(lambda: bench.service.held == 1)
    bench.clock.now_s += LONGEST_HOLD_S / 2
    bench.service.kick()
    await asyncio.sleep(0)
    assert not held.done()
    bench.clock.now_s += LONGEST_HOLD_S / 2
    bench.service.kick()
    answer = await held
    assert answer.policy_digest != candidate_of(bench).digest
    assert bench.count("llmrouter_arm_requests_total", arm=CANDIDATE, event="overruled") == 1
    assert arms_of(bench)[CANDIDATE].requests == 1
    bench.clock.now_s += 0.01
    following = asyncio.create_task(bench.route(ids_of(bench, CANDIDATE, 2)[1]))
    await until(lambda: bench.service.held == 1)
    bench.clock.now_s += 0.2
    bench.service.kick()
    assert (await following).policy_digest != candidate_of(bench).digest, "it has taken its tenth of the time"


def test_a_candidate_holds_a_second_at_most_and_a_tenth_of_the_time() -> None:
    holds, forever = HoldAllowance(), Hold("no room")
    assert holds.bounded("a", forever, 100.0).until_s == pytest.approx(101.0)
    assert holds.bounded("a", forever, 100.6).until_s == pytest.approx(101.0)
    assert holds.bounded("a", Hold("a little", until_s=100.7), 100.6).until_s == pytest.approx(100.7)
    assert (holds.is_over("a", 100.9), holds.is_over("a", 101.0), holds.is_over("b", 200.0)) == (False, True, False)
    assert holds.bounded("b", forever, 102.0).until_s == pytest.approx(102.2)
    assert holds.bounded("c", forever, 200.0).until_s == pytest.approx(201.0)


def everything_on_one(request: Request, snapshot: PoolSnapshot) -> Decision:
    del request
    first = snapshot.views[0]
    return Placement((Candidate(first.instance.instance_id, 0.0, first.load),), "the first")


@pytest.mark.parametrize(
    "bad",
    [
        provoking.raises(),
        provoking.scores_nan(),
        provoking.names_a_stranger(),
        provoking.always_holds(),
        provoking.sees_nobody(),
    ],
    ids=["raises", "scores NaN", "names a stranger", "always holds", "sees nobody"],
)
async def test_a_candidate_that_cannot_decide_harms_no_request_and_is_told_of(bad: Policy) -> None:
    bench = Bench(trial_config())
    put_on_trial(bench, bad)
    for name in ids_of(bench, CANDIDATE, 30):
        answer = await bench.route(name)
        assert answer.policy == "LeastInFlight"
        await bench.report(name)
    said = told(bench)
    assert (said.ready, said.fallbacks, said.decisions) == (False, 30, 30)
    assert said.reason in {"FallbackDecides", "HoldOverruled"}
    assert "fallback" in said.message or "rests" in said.message
    runtime = bench.service.runtime
    assert runtime is not None
    assert runtime.policy_now.ready


async def test_a_candidate_that_is_worse_is_paused_by_the_router_itself() -> None:
    """It needs no operator for that; the other requests of its arm go to the current policy, at once."""
    bench = Bench(trial_config())
    put_on_trial(bench, provoking.Provoking(everything_on_one))
    current, candidate = (ids_of(bench, arm, 120) for arm in ARMS)
    trial = bench.world.trial
    for number, names in enumerate(zip(current, candidate, strict=True)):
        await served(bench, names[0], ttft_s=0.1 + 0.001 * (number % 7))
        await served(bench, names[1], ttft_s=0.4 + 0.001 * (number % 5))
        if trial.judge(bench.world, candidate_of(bench)):
            break
    said = told(bench)
    assert (said.paused, said.paused_reason) == (True, "TtftWorse")
    assert "time to first token" in said.paused_message
    assert bench.count("llmrouter_candidate_paused") == 1
    counted = said.arms[CANDIDATE].requests
    answer = await bench.route(ids_of(bench, CANDIDATE, 200)[-1])
    assert (answer.policy, told(bench).arms[CANDIDATE].requests) == ("LeastInFlight", counted)
    assert not trial.judge(bench.world, candidate_of(bench))


async def test_another_trial_begins_with_nothing_and_without_what_is_left_of_the_one_before() -> None:
    bench = Bench(trial_config())
    _, candidate = pair_of(bench)
    await bench.route(candidate)
    bench.put(trial_config(limits={"maxInFlightPerInstance": 8}))
    assert arms_of(bench)[CANDIDATE].requests == 1, "the same trial goes on"
    bench.put(trial_config(percent=60))
    await bench.report(candidate, ReportKind.FIRST_TOKEN)
    await bench.report(candidate, output_tokens=5)
    assert arms_of(bench)[CANDIDATE] == arms_of(bench)[CURRENT]
    bench.put(config_of())
    assert (arms_of(bench), bench.world.trial.name) == ({}, "")
    assert (await bench.route(candidate)).policy == "LeastInFlight"


async def test_nothing_is_counted_while_one_policy_decides_for_both_arms() -> None:
    bench = Bench(trial_config())
    bench.degraded = True
    _, candidate = pair_of(bench)
    assert (await bench.route(candidate)).policy == "PowerOfTwo"
    assert arms_of(bench)[CANDIDATE].requests == 0


async def test_a_candidate_whose_model_is_refused_gets_no_request() -> None:
    model = {"type": "Onnx", "model": {"configMap": {"name": "m"}, "sha256": "0" * 64}}
    config = trial_config(candidate=model, model_sha256="0" * 64)
    bench = Bench(config)
    for name in ids_of(bench, CANDIDATE, 5):
        assert (await bench.route(name)).policy == "LeastInFlight"
    said = told(bench)
    assert (said.ready, said.reason, said.arms) == (False, "ModelNotFound", {})
    spoiled = bench.builder.build(replace(bundle_of(config), candidate_model=b"no model", candidate_manifest=b"{}"))
    assert spoiled.policy_now.ready
    assert spoiled.candidate is not None
    assert (spoiled.candidate.guard, spoiled.candidate.readiness.ready) == (None, False)


async def test_a_candidate_that_is_repaired_is_tried_from_then_on() -> None:
    bench = Bench(trial_config())
    good, candidate = bench.service.runtime, candidate_of(bench)
    assert good is not None
    refused = replace(candidate, guard=None, readiness=Readiness(ready=False, reason="ModelCorrupt"))
    bench.put(config_of())
    bench.service.swap(replace(good, candidate=refused))
    name = ids_of(bench, CANDIDATE, 1)[0]
    assert (await bench.route(name)).policy == "LeastInFlight"
    await bench.report(name)
    bench.service.swap(good)
    assert (await bench.route(name)).policy == "RoundRobin"
    assert arms_of(bench)[CANDIDATE].requests == 1


def test_what_a_trial_cannot_compare_is_named() -> None:
    queue = {"queue": {"order": "LeastSlack"}, "hold": {"maxWaitSeconds": 3}, "objective": {"preset": "E2E"}}
    bench = Bench(trial_config(candidate=queue))
    assert told(bench).not_compared == ("queue", "hold.maxWaitSeconds")


def test_arms_are_told_the_more_seldom_the_more_routers_there_are() -> None:
    runtime = Bench(trial_config()).service.runtime
    assert arms_pause_s(runtime, longest_s=5.0) == 1.0
    assert arms_pause_s(None, longest_s=5.0) == 5.0
    fleet = Bench(trial_config(router={"replicas": 30}, state={"redis": {"address": "redis:6379"}})).service.runtime
    assert arms_pause_s(fleet, longest_s=5.0) == 3.0

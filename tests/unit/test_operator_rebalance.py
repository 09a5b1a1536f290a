"""Which pools are left alone and why, what is remembered, and what is said of it: without a cluster."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmrouter.planning.steps import Wish
from llmrouter.rebalance_specs import RebalanceSpec, ScaleTargetRef
from llmrouter.resources import PoolSpec
from llmrouter_operator.instants import instant_of
from llmrouter_operator.rebalance_decide import Situation, back_off, footing_of, states_of
from llmrouter_operator.rebalance_memory import Applied, Block, Change, Past, past_of
from llmrouter_operator.rebalance_status import NO_MIX, Told, rebalance_status, verdict_of
from llmrouter_operator.scaling_view import (
    DRAINING_ANNOTATION,
    TargetView,
    drained,
    selector_of,
    trouble_of,
    view_of,
)

Object = dict[str, Any]
NOW_S = 1_800_000_000.0
TARGET = ScaleTargetRef(kind="Deployment", name="decode")
GROUPS = ScaleTargetRef(api_version="leaderworkerset.x-k8s.io/v1", kind="LeaderWorkerSet", name="decode")
LABELS = {"app": "decode"}
SPEC = RebalanceSpec.model_validate(
    {"mode": "Auto", "gpuBudget": 8, "slo": {"ttftSeconds": 1, "tpotSeconds": 0.1}, "progressDeadlineSeconds": 60}
)
POOL = PoolSpec.model_validate(
    {
        "name": "decode",
        "selector": {"matchLabels": LABELS},
        "profile": {"name": "paper-v100"},
        "scaleTargetRef": {"kind": "Deployment", "name": "decode"},
        "gpusPerReplica": 2,
    }
)


def deployment(replicas: int = 2, keeper: str = "llmrouter-operator", **parts: Any) -> Object:  # noqa: ANN401
    field = {"manager": keeper, "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    spec = {
        "replicas": replicas,
        "selector": {"matchLabels": LABELS},
        "template": {"metadata": {"labels": LABELS}},
    } | parts.pop("spec", {})
    return {"metadata": {"name": "decode", "resourceVersion": "1", "managedFields": [field]}, "spec": spec} | parts


def pod(name: str, *, ready: bool = True, age_s: float = 1000.0, **metadata: Any) -> Object:  # noqa: ANN401
    made = {"name": name, "creationTimestamp": instant_of(NOW_S - age_s)} | metadata
    return {"metadata": made, "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}}


def draining(name: str, age_s: float, **more: Any) -> Object:  # noqa: ANN401
    return pod(name, annotations={DRAINING_ANNOTATION: instant_of(NOW_S - age_s)}, **more)


def view(value: Object | None, *pods: Object, target: ScaleTargetRef = TARGET, **changes: Any) -> TargetView:  # noqa: ANN401
    arguments: Object = {"pool_labels": LABELS, "autoscalers": []} | changes
    return view_of("decode", target, value, pods=pods, **arguments)


def situation(one: TargetView, *, generation: int = 1, in_flight: list[dict[str, int]] | None = None) -> Situation:
    return Situation(pools={"decode": POOL}, views=[one], in_flight=in_flight or [], generation=generation, now_s=NOW_S)


def ours(replicas: int = 2, *, ready: int | None = None, failures: int = 0) -> dict[str, Applied]:
    return {"decode": Applied(replicas, replicas if ready is None else ready, is_ours=True, failures=failures)}


def scaler(**metadata: Any) -> Object:  # noqa: ANN401
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "decode"}
    return {"metadata": {"name": "keda-hpa-decode"} | metadata, "spec": {"scaleTargetRef": target}}


KEDA = scaler(ownerReferences=[{"kind": "ScaledObject", "name": "decode", "controller": True}])
CASES = [
    ("TargetNotFound", "there is no Deployment decode", view(None)),
    (
        "TargetNotFound",
        "is being deleted",
        view({"metadata": {"name": "decode", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}}),
    ),
    ("TargetPaused", "resume it", view(deployment(spec={"paused": True}))),
    ("OwnedByOther", "HorizontalPodAutoscaler keda-hpa-decode keeps", view(deployment(), autoscalers=[scaler()])),
    ("OwnedByOther", "ScaledObject decode (HorizontalPodAutoscaler", view(deployment(), autoscalers=[KEDA])),
    ("SelectorMismatch", "does not select the pods", view(deployment(), pool_labels={"app": "other"})),
    (
        "SelectorMismatch",
        "more than labels",
        view(deployment(spec={"selector": {"matchLabels": LABELS, "matchExpressions": [{"key": "a"}]}})),
    ),
    ("TargetRollingOut", "new template", view(deployment(status={"replicas": 3, "updatedReplicas": 1}))),
]


@pytest.mark.parametrize(("reason", "message", "one"), CASES, ids=[f"{case[0]} {case[1]}" for case in CASES])
def test_a_pool_is_left_alone_and_the_reason_said(reason: str, message: str, one: TargetView) -> None:
    found = footing_of(situation(one), Past(), SPEC)

    assert found.blocked["decode"].reason == reason
    assert message in found.blocked["decode"].message
    assert states_of(situation(one), found, SPEC)[0].is_held


def test_an_edit_by_hand_is_respected_until_the_spec_changes() -> None:
    edited = view(deployment(5, keeper="kubectl-jane"), pod("a"), pod("b"))
    past = Past(applied=ours())

    found = footing_of(situation(edited), past, SPEC)
    block = found.blocked["decode"]
    assert (block.reason, block.generation) == ("EditedByHand", 1)
    assert "kubectl-jane set 5 replicas of Deployment decode where 2 were set here" in block.message

    later = Past(applied=found.applied, blocked=found.blocked)
    assert footing_of(situation(edited), later, SPEC).blocked == found.blocked
    released = footing_of(situation(edited, generation=2), later, SPEC)
    assert released.blocked == {}
    assert released.applied["decode"] == Applied(5, 2)


def test_replicas_that_were_never_set_here_are_taken_over() -> None:
    found = footing_of(situation(view(deployment(1, keeper="helm"), pod("a"))), Past(), SPEC)

    assert (found.blocked, found.applied) == ({}, {"decode": Applied(1, 1)})


def test_a_recommendation_is_made_whoever_keeps_the_replicas() -> None:
    spec = SPEC.model_copy(update={"mode": "Recommend"})

    assert footing_of(situation(view(deployment(), autoscalers=[KEDA])), Past(), spec).blocked == {}
    assert footing_of(situation(view(None)), Past(), spec).blocked["decode"].reason == "TargetNotFound"


def stuck(*, ready: int = 2) -> TargetView:
    pods = [pod(f"old-{n}") for n in range(ready)] + [pod("new", ready=False, age_s=90.0)]
    pods[-1]["status"]["containerStatuses"] = [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]
    return view(deployment(3), *pods)


def test_a_growth_that_gets_stuck_is_rolled_back_and_named() -> None:
    grown = Past(applied=ours(3, ready=2), last=Change("decode", 2, 3, NOW_S - 90.0))

    found = footing_of(situation(stuck()), grown, SPEC)

    assert found.roll_back is not None
    assert (found.roll_back.pool, found.roll_back.replicas) == ("decode", 2)
    assert "new is not ready after 60 s (CrashLoopBackOff): back from 3 to 2 replicas" in found.roll_back.message
    late = Past(applied=ours(3, ready=2), last=Change("decode", 2, 3, NOW_S - 30.0))
    young = view(deployment(3), pod("a"), pod("b"), pod("new", ready=False, age_s=30.0))
    assert footing_of(situation(young), late, SPEC).roll_back is None


def test_replicas_that_fail_without_a_growth_are_named_and_kept() -> None:
    found = footing_of(situation(stuck()), Past(applied=ours(3)), SPEC)

    assert found.roll_back is None
    assert found.blocked["decode"].reason == "ReplicasNotReady"


def test_replicas_that_cannot_even_be_made_are_stuck_too() -> None:
    refusal = {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]}
    grown = Past(applied=ours(3, ready=2), last=Change("decode", 2, 3, NOW_S - 90.0))

    found = footing_of(situation(view(deployment(3, status=refusal), pod("a"), pod("b"))), grown, SPEC)

    assert found.roll_back is not None
    assert "1 replicas of Deployment decode are not there after 60 s (exceeded quota)" in found.roll_back.message


def test_what_failed_is_tried_again_ever_later() -> None:
    applied, waits = Applied(2, 2, is_ours=True), []
    for _ in range(8):
        applied, block = back_off(applied, "RolloutStuck", "new is not ready", NOW_S)
        assert block.until_s is not None
        waits.append(block.until_s - NOW_S)
    assert waits == [60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0]

    held = Past(applied={"decode": applied}, blocked={"decode": block})
    fine = view(deployment(2), pod("a"), pod("b"))
    assert footing_of(situation(fine), held, SPEC).blocked == {"decode": block}
    over = Past(applied={"decode": applied}, blocked={"decode": Block("RolloutStuck", "", until_s=NOW_S - 1.0)})
    assert footing_of(situation(fine), over, SPEC).blocked == {}


def test_an_instance_may_go_once_every_router_says_that_it_is_empty() -> None:
    def may_go(one: Object, *said: dict[str, int]) -> int:
        return drained(view(deployment(1), one), said, drain_s=100.0, now_s=NOW_S)

    waiting = draining("a", 10.0)
    assert may_go(pod("a"), {}) == 0, "it was not told to drain"
    assert may_go(waiting, {"a": 1}) == 0
    assert may_go(waiting, {"a": 0}, {}) == 0, "a router has not seen it yet"
    assert may_go(waiting, {"a": 0}, {"a": 0}) == 1
    assert may_go(waiting, {"a:8000": 0, "a:8001": 2}) == 0
    assert may_go(waiting, {"a:8000": 0, "a:8001": 0, "ab": 3}) == 1
    assert may_go(waiting) == 0, "no router says anything"
    assert may_go(draining("a", 101.0), {"a": 7}) == 1, "its time is over"
    assert may_go(draining("a", 1.0), {"a": 0}) == 0, "decisions may be under way"
    assert may_go(pod("a", ready=False)) == 1


def test_who_goes_first() -> None:
    pods = (pod("old"), pod("new", age_s=10.0), draining("told", 5.0), pod("starting", ready=False))
    assert [one.instance for one in view(deployment(4), *pods).going()] == ["starting", "told", "new", "old"]

    known = replace(view(deployment(4), *pods), in_flight={"old": 0, "new": 2})
    assert [one.instance for one in known.going()] == ["starting", "told", "old", "new"]

    ordinals = ScaleTargetRef(kind="StatefulSet", name="decode")
    ending = pod("decode-10", deletionTimestamp="2026-01-01T00:00:00Z")
    found = view(deployment(4), pod("decode-2"), pod("decode-9"), ending, target=ordinals)
    assert [one.instance for one in found.going()] == ["decode-9", "decode-2"]
    assert (found.ready, found.terminating) == (2, 1)


def test_a_replica_of_a_leader_worker_set_is_a_group() -> None:
    def member(group: int, worker: int, **more: Any) -> Object:  # noqa: ANN401
        prefix = "leaderworkerset.sigs.k8s.io/"
        labels = {f"{prefix}group-index": str(group), f"{prefix}worker-index": str(worker)}
        return pod(f"decode-{group}" + (f"-{worker}" if worker else ""), labels=labels, **more)

    value = deployment(
        2, spec={"leaderWorkerTemplate": {"size": 2, "workerTemplate": {"metadata": {"labels": LABELS}}}}
    )
    found = view(value, member(0, 1), member(0, 0), member(1, 0), target=GROUPS)

    assert selector_of(GROUPS, value) == {"leaderworkerset.sigs.k8s.io/name": "decode"}
    assert [(one.instance, one.pods, one.is_ready) for one in found.going()] == [
        ("decode-1", ("decode-1",), False),
        ("decode-0", ("decode-0", "decode-0-1"), True),
    ]
    assert found.problem is None
    states = states_of(situation(found), footing_of(situation(found), Past(), SPEC), SPEC)
    assert (states[0].ready, states[0].starting, states[0].taken_gpus) == (1, 1, 4)


def test_pods_that_have_ended_hold_no_gpu() -> None:
    evicted = pod("a", ready=False) | {"status": {"phase": "Failed"}}
    assert view(deployment(1), evicted, pod("b")).replicas[0].instance == "b"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3"}]},
         "Unschedulable: 0/3"),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "no"}}}]},
         "ErrImagePull: no"),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}, ""),
        ({}, ""),
    ],
)  # fmt: skip
def test_why_a_pod_does_not_serve(status: Object, said: str) -> None:
    assert trouble_of({"metadata": {"name": "a"}, "status": status}) == said


def test_the_status_keeps_what_the_next_look_needs() -> None:
    told = Told(
        mode="Auto",
        phase="Growing",
        verdict=verdict_of("Growing", "scaling up", {}, "decode is the bottleneck"),
        budget=8,
        taken=6,
        wanted={"decode": 4},
        wishes={"decode": Wish(3, NOW_S - 60.0)},
        applied={"decode": Applied(2, 2, is_ours=True, failures=1)},
        blocked={"decode": Block("RolloutStuck", "why", until_s=NOW_S + 60.0, generation=7)},
        last=Change("decode", 3, 2, NOW_S - 5.0),
        declared={"decode": 2},
    )

    status = rebalance_status(None, told, instant_of(NOW_S))
    past = past_of(status)

    assert past == Past(told.wishes, told.applied, told.blocked, told.last)
    assert (past.memory.changed_at_s, past.memory.has_shrunk) == (NOW_S - 5.0, True)
    assert (status["summary"], status["since"]) == ("decode 2->4", instant_of(NOW_S))
    later = rebalance_status(status, told, instant_of(NOW_S + 9.0))
    assert later["since"] == instant_of(NOW_S), "nothing has changed since"
    assert past_of(None) == past_of({"proposed": [{"pool": "a"}], "last": {"at": "soon"}}) == Past()


def test_the_condition_says_which_pool_is_left_alone_though_others_move() -> None:
    verdict = verdict_of("Growing", "scaling up", {"a": Block("TargetPaused", "why"), "b": Block("X", "y")}, "")

    assert (verdict.status, verdict.reason) == ("False", "TargetPaused")
    assert verdict.message == "pool a: why (and 1 more); scaling up"
    assert NO_MIX.status == "Unknown"

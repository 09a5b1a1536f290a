"""Conditions, counts and Events from what was observed: Unknown stays Unknown."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from support.acknowledgements import said_by
from support.crd_cases import router

from llmrouter.config import PolicyConfig, PredictorConfig, canonical_json
from llmrouter.resources import LLMRouterSpec
from llmrouter_operator.models import Object, ObjectKey, Plan, PolicyChoice, PredictorChoice, Problem
from llmrouter_operator.status import (
    Acknowledgements,
    Facts,
    build_status,
    gather_facts,
    live_pods,
    pod_of,
    read_acknowledgements,
    transitions,
)

if TYPE_CHECKING:
    from llmrouter.acknowledgement import RouterAcknowledgement

POLICY = PolicyConfig(name="plain", type="RoundRobin")
REDIS = {"redis": {"address": "redis:6379"}}
SPEC = LLMRouterSpec.model_validate(router(state=REDIS, router={"replicas": 2}))
PLAN = Plan(key=ObjectKey("team", "fleet"), spec=SPEC, choice=PolicyChoice(POLICY), config_digest="new")
NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:00:09Z"


def said(router_id: str, **changes: Any) -> RouterAcknowledgement:  # noqa: ANN401 - any field
    return said_by(router_id, **{"predictor_ready": True, "state_backend_ready": True} | changes)


def facts(*acknowledgements: RouterAcknowledgement, **changes: Any) -> Facts:  # noqa: ANN401 - any field
    base = Facts(
        generation=3,
        routers_desired=2,
        routers_ready=2,
        rolled_out=True,
        said=Acknowledgements({one.router_id: one for one in acknowledgements}),
        plan=PLAN,
    )
    return replace(base, **changes)


def status_of(what: Facts, old: Object | None = None, now: str = NOW) -> Object:
    return build_status(old or {}, what, in_force=None, now=now)


def condition(what: Facts, kind: str) -> tuple[str, str]:
    (found,) = [one for one in status_of(what)["conditions"] if one["type"] == kind]
    return found["status"], found["reason"]


def message(what: Facts, kind: str) -> str:
    (found,) = [one for one in status_of(what)["conditions"] if one["type"] == kind]
    return str(found["message"])


BOTH = (said("a"), said("b"))


def test_all_is_well_when_all_say_so() -> None:
    status = status_of(facts(*BOTH))

    assert {one["type"]: one["status"] for one in status["conditions"]} == {
        "Ready": "True",
        "Progressing": "False",
        "PolicyReady": "True",
        "PredictorReady": "True",
        "LengthDrift": "Unknown",
        "StateBackendReady": "True",
        "InstancesAvailable": "True",
    }
    assert status["observedGeneration"] == 3
    assert status["activePolicy"]["acknowledged"] == "2/2"
    assert status["activePolicy"]["digest"] == f"sha256:{POLICY.digest[:12]}"


@pytest.mark.parametrize(
    ("what", "kind", "expected"),
    [
        (facts(), "PolicyReady", ("Unknown", "NotAcknowledged")),
        (facts(), "PredictorReady", ("Unknown", "NotAcknowledged")),
        (facts(), "StateBackendReady", ("Unknown", "NotAcknowledged")),
        (facts(), "InstancesAvailable", ("Unknown", "NotAcknowledged")),
        (facts(), "Ready", ("Unknown", "NotAcknowledged")),
        (facts(*BOTH, routers_ready=None), "Ready", ("Unknown", "NotObserved")),
        (facts(*BOTH, routers_ready=0), "Ready", ("False", "NoRouterReady")),
        (facts(routers_desired=0, routers_ready=0), "Ready", ("False", "ScaledToZero")),
        (facts(said("a"), said("b", config_digest="old")), "PolicyReady", ("Unknown", "Adopting")),
        (facts(said("a"), said("b", config_digest="old")), "Progressing", ("True", "Adopting")),
        (facts(said("a"), said("b", config_digest="old")), "Ready", ("True", "Serving")),
        (facts(said("a")), "PolicyReady", ("True", "Acknowledged")),
        (facts(*BOTH, rolled_out=False), "Progressing", ("True", "RollingOut")),
        (
            facts(said("a", policy_ready=False, policy_reason="ModelCorrupt")),
            "PolicyReady",
            ("False", "ModelCorrupt"),
        ),
        (
            facts(said("a", config_digest="old", refused_digest="new", policy_ready=False, policy_reason="Shape")),
            "PolicyReady",
            ("False", "Shape"),
        ),
        (facts(said("a", predictor_ready=None)), "PredictorReady", ("Unknown", "NotAcknowledged")),
        (facts(said("a", predictor_ready=False)), "PredictorReady", ("False", "NotReady")),
        (facts(*BOTH), "LengthDrift", ("Unknown", "NotAcknowledged")),
        (facts(said("a", length_drift=False), said("b")), "LengthDrift", ("False", "LengthsSteady")),
        (facts(said("a", length_drift=False), said("b", length_drift=True)), "LengthDrift", ("True", "LengthsDrifted")),
        (facts(said("a", length_drift=True)), "Ready", ("True", "Serving")),
        (
            facts(said("a"), said("b", state_backend_ready=False, state_backend_reason="Unreachable")),
            "StateBackendReady",
            ("False", "Unreachable"),
        ),
        (facts(said("a"), said("b", instances_ready=0)), "InstancesAvailable", ("False", "NoInstanceReady")),
        (facts(said("a", instances_ready=0, instances_total=0)), "InstancesAvailable", ("False", "NoInstances")),
        (facts(said("a", instances_ready=0)), "Ready", ("False", "NoInstanceReady")),
    ],
)
def test_conditions(what: Facts, kind: str, expected: tuple[str, str]) -> None:
    assert condition(what, kind) == expected


def test_what_is_not_configured_needs_nobody_to_say_so() -> None:
    alone = LLMRouterSpec.model_validate(router(predictor={"type": "Constant"}))
    what = facts(plan=replace(PLAN, spec=alone))
    remarked = facts(said("a", predictor_message="tokenizer x of llama: missing"), plan=replace(PLAN, spec=alone))

    assert condition(what, "StateBackendReady") == ("True", "NotConfigured")
    assert condition(what, "PredictorReady") == ("True", "Constant")
    assert message(remarked, "PredictorReady").endswith("256 tokens; tokenizer x of llama: missing")


@pytest.mark.parametrize(("kind", "reason"), [("Text", "Loaded"), ("Applications", "Applications")])
def test_a_ready_predictor_is_named_by_what_it_is(kind: str, reason: str) -> None:
    spec = LLMRouterSpec.model_validate(router(predictor={"type": kind}))

    assert condition(facts(*BOTH, plan=replace(PLAN, spec=spec)), "PredictorReady") == ("True", reason)


def test_a_policy_that_cannot_run_is_told_with_what_runs_instead() -> None:
    choice = PolicyChoice(POLICY, problem=Problem("PolicyNotFound", "gone"), last_known_good=True)
    what = facts(*BOTH, plan=replace(PLAN, choice=choice))

    assert condition(what, "PolicyReady") == ("False", "PolicyNotFound")
    assert condition(what, "Ready") == ("False", "PolicyNotFound")
    assert status_of(what)["activePolicy"]["lastKnownGood"] is True


def test_a_predictor_that_cannot_run_is_told_with_what_runs_instead() -> None:
    choice = PredictorChoice(PredictorConfig(type="Applications"), problem=Problem("ModelNotFound", "no ConfigMap"))
    what = facts(*BOTH, plan=replace(PLAN, predictor=choice))

    assert condition(what, "PredictorReady") == ("False", "ModelNotFound")
    assert message(what, "PredictorReady") == "no ConfigMap; Applications is in force"
    assert condition(what, "Ready") == ("False", "ModelNotFound")
    assert condition(what, "PolicyReady") == ("True", "Acknowledged")


@pytest.mark.parametrize(
    ("ready", "expected"),
    [(True, "2/2 routers say so; tokenizer x of llama: missing"), (False, "a: tokenizer x of llama: missing")],
)
def test_what_routers_say_of_the_predictor_is_told(ready: bool, expected: str) -> None:  # noqa: FBT001 - a parameter
    remark = {"predictor_ready": ready, "predictor_message": "tokenizer x of llama: missing"}

    assert message(facts(said("a", **remark), said("b", **remark)), "PredictorReady") == expected


def test_drift_is_told_when_it_begins_and_ends() -> None:
    unknown = status_of(facts(*BOTH))
    steady = status_of(facts(said("a", length_drift=False)), unknown)
    drifting = status_of(facts(said("a", length_drift=True, length_drift_message="chat: 40 % covered")), steady, LATER)
    still = status_of(facts(said("a", length_drift=True, length_drift_message="chat: 35 % covered")), drifting, LATER)

    assert transitions(unknown, steady) == []
    (begun,) = transitions(steady, drifting)
    assert (begun.reason, begun.warning) == ("LengthsDrifted", True)
    assert begun.message == "LengthDrift: a: chat: 40 % covered"
    assert transitions(drifting, still) == []
    (ended,) = transitions(still, steady)
    assert (ended.reason, ended.warning) == ("LengthsSteady", False)


def test_what_could_not_be_applied_is_not_observed() -> None:
    what = facts(*BOTH, plan=replace(PLAN, problem=Problem("Forbidden", "no")))

    assert condition(what, "Ready") == ("False", "Forbidden")
    assert status_of(what, {"observedGeneration": 2})["observedGeneration"] == 2


def test_an_invalid_spec_is_observed_and_changes_no_policy() -> None:
    plan = Plan(key=PLAN.key, spec=None, choice=None, config_digest="new", problem=Problem("UnknownProfile", "x"))
    status = build_status({}, facts(*BOTH, plan=plan), in_force=POLICY, now=NOW)

    assert status["observedGeneration"] == 3
    assert status["activePolicy"]["name"] == "plain"
    assert status["activePolicy"]["lastKnownGood"] is True


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    first = status_of(facts(*BOTH))
    same = status_of(facts(*BOTH, routers_ready=1), first, LATER)
    other = status_of(facts(*BOTH, routers_ready=0), first, LATER)

    assert {one["lastTransitionTime"] for one in same["conditions"]} == {NOW}
    times = {one["type"]: one["lastTransitionTime"] for one in other["conditions"]}
    assert times["Ready"] == LATER
    assert times["PolicyReady"] == NOW


def test_the_same_observation_gives_the_same_status() -> None:
    first = status_of(facts(*BOTH))

    assert status_of(facts(*BOTH), first, LATER) == first
    assert transitions(first, first) == []


def test_events_are_for_transitions_and_not_for_the_unknown() -> None:
    nothing = status_of(facts(routers_ready=None))
    well = status_of(facts(*BOTH), nothing)
    choice = PolicyChoice(POLICY, problem=Problem("PolicyNotFound", "gone"), last_known_good=True)
    troubled = status_of(facts(*BOTH, plan=replace(PLAN, choice=choice)), well, LATER)

    assert [note.reason for note in transitions({}, nothing)] == ["PolicyChanged"]
    assert not any(note.warning for note in transitions(nothing, well))
    assert [(note.reason, note.warning) for note in transitions(well, troubled)] == [
        ("NotReady", True),
        ("PolicyNotFound", True),
    ]


def test_only_live_routers_are_heard() -> None:
    pods: list[Object] = [
        {"metadata": {"name": "live"}, "status": {"phase": "Running"}},
        {"metadata": {"name": "ending", "deletionTimestamp": NOW}},
        {"metadata": {"name": "ended"}, "status": {"phase": "Failed"}},
    ]
    assert live_pods(pods) == ["live"]


def test_malformed_acknowledgements_are_counted() -> None:
    good = canonical_json(said("a")).decode()
    data = {"a": good, "b": good, "c": "{", "d": "x" * 10_000, "stranger": good}

    read = read_acknowledgements({"data": data}, ["a", "b", "c", "d", "silent"])

    assert list(read.by_router) == ["a"]
    assert read.malformed == 3


def test_each_process_of_a_pod_says_what_it_runs() -> None:
    data = {name: canonical_json(said(name)).decode() for name in ("pod-a-0", "pod-a-1", "pod-gone-0", "pod-b")}
    read = read_acknowledgements({"data": data}, ["pod-a", "pod-b"])
    assert list(read.by_router) == ["pod-a-0", "pod-a-1", "pod-b"]
    found = [pod_of(key, {"pod-a", "pod-b"}) for key in ("pod-a-15", "pod-b", "pod-a-x", "pod-c-0", "pod")]
    assert found == ["pod-a", "pod-b", None, None, None]
    assert facts(routers_desired=2, processes=3).voices == 6


def test_the_deployment_is_believed_once_its_controller_has_looked() -> None:
    llm_router: Object = {"metadata": {"generation": 1}}
    fresh: Object = {"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": {}}
    stale = fresh | {"status": {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}}
    done = fresh | {"status": stale["status"] | {"observedGeneration": 2}}
    nobody = Acknowledgements({})

    assert gather_facts(llm_router, PLAN, fresh, nobody).routers_ready is None
    assert gather_facts(llm_router, PLAN, stale, nobody).rolled_out is False
    assert gather_facts(llm_router, PLAN, done, nobody).rolled_out is True


def test_a_certificate_is_spoken_of_where_there_is_tls() -> None:
    def tls(*acknowledgements: RouterAcknowledgement, **picker: Any) -> Facts:  # noqa: ANN401 - any field
        declared = LLMRouterSpec.model_validate(
            router(state=REDIS, router={"replicas": 2}, listeners={"extProc": picker})
        )
        return facts(*acknowledgements, plan=replace(PLAN, spec=declared))

    good = {"certificate_ready": True, "certificate_reason": "SelfSigned", "certificate_message": "good until x"}
    own = tls(said("a", **good), said("b", **good))
    assert condition(own, "CertificateReady") == ("True", "SelfSigned")
    assert "good until" not in message(own, "CertificateReady")
    mounted = {**good, "certificate_reason": "Mounted"}
    theirs = tls(said("a", **mounted), said("b", **mounted), certificateSecretRef={"name": "tls"})
    assert condition(theirs, "CertificateReady") == ("True", "Mounted")
    assert message(theirs, "CertificateReady") == "2/2 routers say so; good until x"
    missing = {
        "certificate_ready": False,
        "certificate_reason": "CertificateMissing",
        "certificate_message": "certificate: tls.crt: No such file or directory",
    }
    lacking = tls(said("a", **mounted), said("b", **missing), certificateSecretRef={"name": "tls"})
    assert condition(lacking, "CertificateReady") == ("False", "CertificateMissing")
    assert condition(lacking, "Ready") == ("False", "CertificateMissing")
    plain = tls(said("a"), said("b"), secureServing=False)
    assert "CertificateReady" not in {one["type"] for one in status_of(plain)["conditions"]}
    assert condition(tls(said("a"), said("b")), "CertificateReady") == ("Unknown", "NotAcknowledged")

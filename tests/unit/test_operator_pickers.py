"""What InferencePools ask for, and the Services that are made for them: pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.crd_cases import router
from support.inference_pools import inference_pool

from llmrouter.config import PolicyConfig
from llmrouter.resources import LLMRouterSpec
from llmrouter_operator.builders import Owner
from llmrouter_operator.models import SERVICE, Object, ObjectKey, Plan, PolicyChoice, Ref
from llmrouter_operator.pickers import (
    PoolChoice,
    build_picker_services,
    choose_pools,
    picker_services,
    referenced_pools,
)
from llmrouter_operator.status import Acknowledgements, Facts, build_status

OWNER = Owner(ObjectKey("team", "fleet"), "uid-1")
PICKER = {"name": "chat-picker", "port": {"number": 9002}}
LABELS = {"app": "engine"}


def spec(*names: str, listeners: Object | None = None) -> LLMRouterSpec:
    pools = [{"name": f"p-{name}", "inferencePoolRef": {"name": name}, "profile": {"name": "p"}} for name in names]
    declared = router(pools=pools, listeners={"extProc": {}} if listeners is None else listeners)
    return LLMRouterSpec.model_validate(declared)


def chosen(picker: Object | None, service: Object | None = None, listeners: Object | None = None) -> PoolChoice:
    pool = inference_pool("chat", LABELS, picker=picker)
    owned = {Ref(SERVICE, (picker or {}).get("name", "")): service}
    (choice,) = choose_pools(OWNER, spec("chat", listeners=listeners), {"chat": pool}, owned)
    return choice


def service_of(owner: Owner, **selector: str) -> Object:
    return owner.build(SERVICE, "chat-picker", spec={"selector": selector})


def test_what_is_referred_to_is_found_in_specs_that_may_be_anything() -> None:
    pools = [{"inferencePoolRef": {"name": "b"}}, {"inferencePoolRef": {"name": "a"}}, {"endpoints": []}, "junk"]
    assert referenced_pools({"pools": pools}) == ["a", "b"]
    assert referenced_pools({"pools": [{"inferencePoolRef": {"name": 3}}]}) == []
    assert referenced_pools({}) == []


def test_services_that_pools_name_are_looked_up() -> None:
    other = inference_pool("b", LABELS, picker={"kind": "Picker", "group": "x.example", "name": "elsewhere"})
    broken = {"metadata": {"name": "c"}, "spec": {}}
    assert picker_services([inference_pool("a", LABELS, picker=PICKER), other, broken, None]) == ["chat-picker"]


def test_a_service_is_made_where_there_is_none_and_kept_where_it_is_ours() -> None:
    for service in (None, service_of(OWNER)):
        choice = chosen(PICKER, service)
        assert (choice.problem, choice.picker_problem) == (None, None)
        assert choice.said == "Service chat-picker port 9002, failureMode FailClose"
        (made,) = build_picker_services(OWNER, [choice])
        assert made["metadata"]["name"] == "chat-picker"
        assert made["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
        assert made["spec"]["selector"] == OWNER.pod_labels
        (port,) = made["spec"]["ports"]
        assert (port["port"], port["targetPort"], port["appProtocol"]) == (9002, "ext-proc", "http2")


def test_two_pools_of_one_picker_share_its_service() -> None:
    pools = {
        "chat": inference_pool("chat", LABELS, picker=PICKER),
        "code": inference_pool("code", LABELS, picker=PICKER | {"port": {"number": 9003}}),
    }
    choices = choose_pools(OWNER, spec("chat", "code"), pools, {})
    (made,) = build_picker_services(OWNER, choices)
    assert [(port["name"], port["port"]) for port in made["spec"]["ports"]] == [
        ("ext-proc-9002", 9002),
        ("ext-proc-9003", 9003),
    ]


OTHERS = Owner(ObjectKey("team", "other"), "uid-2")


@pytest.mark.parametrize(
    ("picker", "service", "listeners", "reason"),
    [
        (PICKER, None, {}, "NoEndpointPicker"),
        (PICKER, service_of(OTHERS, app="x"), None, "AnotherPicker"),
        (PICKER, service_of(OTHERS), None, "AnotherPicker"),
        ({"kind": "Picker", "group": "x.example", "name": "chat-picker"}, None, None, "AnotherPicker"),
        ({"name": "fleet-router", "port": {"number": 9999}}, None, None, "AnotherPort"),
    ],
)
def test_whoever_else_is_asked_is_said_and_nothing_made(
    picker: Object, service: Object | None, listeners: Object | None, reason: str
) -> None:
    choice = chosen(picker, service, listeners)
    assert choice.picker_problem is not None
    assert choice.picker_problem.reason == reason
    assert build_picker_services(OWNER, [choice]) == ()


@pytest.mark.parametrize(
    ("picker", "service"),
    [
        ({"name": "fleet-router", "port": {"number": 9002}}, None),
        (PICKER, service_of(OTHERS, **{"llmrouter.dev/router": "fleet"})),
    ],
)
def test_a_service_that_leads_here_already_is_left_alone(picker: Object, service: Object | None) -> None:
    choice = chosen(picker, service)
    assert choice.picker_problem is None
    assert build_picker_services(OWNER, [choice]) == ()


def conditions(*choices: PoolChoice) -> dict[str, tuple[str, str, str]]:
    plan = Plan(
        key=OWNER.key,
        spec=spec("chat"),
        choice=PolicyChoice(PolicyConfig(name="p", type="RoundRobin")),
        config_digest="d",
        inference_pools=choices,
    )
    facts = Facts(
        generation=1, routers_desired=1, routers_ready=1, rolled_out=True, said=Acknowledgements({}), plan=plan
    )
    status = build_status({}, facts, in_force=None, now="2026-01-01T00:00:00Z")
    return {one["type"]: (one["status"], one["reason"], one["message"]) for one in status["conditions"]}


def test_conditions_name_the_pool_and_the_failure_mode() -> None:
    good = chosen(PICKER | {"failureMode": "FailOpen"})
    said = conditions(good)
    assert said["InferencePoolsResolved"][:2] == ("True", "Resolved")
    assert said["EndpointPickerReferenced"] == (
        "True",
        "Referenced",
        "chat: Service chat-picker port 9002, failureMode FailOpen",
    )


def test_a_missing_pool_is_the_reason_that_routers_are_not_ready() -> None:
    (lost,) = choose_pools(OWNER, spec("chat"), {"chat": None}, {})
    said = conditions(lost)
    assert said["InferencePoolsResolved"][:2] == ("False", "InferencePoolNotFound")
    assert said["EndpointPickerReferenced"][0] == "Unknown"
    assert said["Ready"][:2] == ("False", "InferencePoolNotFound")
    (broken,) = choose_pools(OWNER, spec("chat"), {"chat": {"metadata": {}, "spec": {}}}, {})
    assert conditions(broken)["InferencePoolsResolved"][1] == "InferencePoolInvalid"
    plan = Plan(OWNER.key, spec("chat"), None, None, inference_pools=(lost,))
    assert plan.troubled
    assert not replace(plan, inference_pools=()).troubled


def test_another_picker_is_a_warning_alone() -> None:
    said = conditions(chosen(PICKER, service_of(OTHERS)))
    assert said["InferencePoolsResolved"][0] == "True"
    assert said["EndpointPickerReferenced"][:2] == ("False", "AnotherPicker")
    assert said["Ready"][0] != "False"


def test_a_pool_without_a_picker_asks_nobody() -> None:
    value: dict[str, Any] = inference_pool("chat", LABELS)
    del value["spec"]["endpointPickerRef"]
    (choice,) = choose_pools(OWNER, spec("chat"), {"chat": value}, {})
    assert conditions(choice)["EndpointPickerReferenced"][2] == "chat: asks no endpoint picker"


def test_nothing_is_said_of_inference_pools_where_there_are_none() -> None:
    assert "InferencePoolsResolved" not in conditions()

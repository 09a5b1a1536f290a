"""The API server refuses what it can, naming the field and the bound, and serves what people type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.crd_cases import BAD_ROUTERS, GOOD_ROUTERS, Case
from support.operator_process import Space, make_namespace
from support.policy_cases import BAD_POLICIES, GOOD_POLICIES
from support.rebalance_cases import BAD_REBALANCES, GOOD_REBALANCES

from llmrouter.testbed.cluster.api import ApiError

if TYPE_CHECKING:
    from llmrouter.testbed.cluster.control_plane import ControlPlane

pytest_plugins = ["support.control_plane"]


@pytest.fixture(scope="module")
def space(control_plane: ControlPlane) -> Space:
    return make_namespace(control_plane, "crds")


def wrap(kind: str, spec: dict[str, Any], name: str = "case") -> dict[str, Any]:
    return {"apiVersion": "llmrouter.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def refusal(space: Space, kind: str, spec: dict[str, Any], name: str = "case") -> str:
    with pytest.raises(ApiError) as caught:
        space.create(wrap(kind, spec, name))
    assert caught.value.status in {400, 422}
    return str(caught.value)


@pytest.mark.parametrize("case", [*BAD_ROUTERS, *BAD_REBALANCES], ids=lambda case: case.name)
def test_a_bad_llmrouter_is_refused_by_name_of_the_field(space: Space, case: Case) -> None:
    message = refusal(space, "LLMRouter", case.spec)

    assert case.field in message
    assert case.bound in message


@pytest.mark.parametrize("case", BAD_POLICIES, ids=lambda case: case.name)
def test_a_bad_policy_is_refused_by_name_of_the_field(space: Space, case: Case) -> None:
    message = refusal(space, "RoutingPolicy", case.spec)

    assert case.field in message
    assert case.bound in message


@pytest.mark.parametrize("spec", [*GOOD_ROUTERS, *GOOD_REBALANCES])
def test_a_good_llmrouter_is_taken(space: Space, spec: dict[str, Any]) -> None:
    space.create(wrap("LLMRouter", spec))
    space.delete("LLMRouter", "case")


@pytest.mark.parametrize("spec", GOOD_POLICIES)
def test_a_good_policy_is_taken(space: Space, spec: dict[str, Any]) -> None:
    space.create(wrap("RoutingPolicy", spec))
    space.delete("RoutingPolicy", "case")


@pytest.mark.parametrize("name", ["a" * 51, "9lives", "dotted.name"])
def test_a_name_that_cannot_name_a_service_is_refused(space: Space, name: str) -> None:
    assert "metadata.name: at most 50 characters" in refusal(space, "LLMRouter", GOOD_ROUTERS[0], name)


def test_an_unknown_field_is_refused_when_asked_for(control_plane: ControlPlane, space: Space) -> None:
    spec = GOOD_ROUTERS[0] | {"polices": 1}

    with pytest.raises(ApiError, match=r"unknown field.*spec\.polices"):
        control_plane.api.call("POST", space.path("LLMRouter") + "?fieldValidation=Strict", wrap("LLMRouter", spec))


def test_people_can_ask_what_a_field_means(control_plane: ControlPlane) -> None:
    explained = control_plane.kubectl("explain", "llmr.spec.pools")

    assert "Pools of engine instances" in explained
    assert "targetPort" in explained


def test_short_names_and_columns(control_plane: ControlPlane, space: Space) -> None:
    space.create(wrap("LLMRouter", GOOD_ROUTERS[0], "shown"))
    space.create(wrap("RoutingPolicy", GOOD_POLICIES[0], "shown"))

    listed = control_plane.kubectl("get", "llmr,rpol", "-n", space.name)
    by_category = control_plane.kubectl("get", "llm-routing", "-n", space.name, "-o", "name")

    for column in ("READY", "POLICY", "INSTANCES", "ROUTERS", "MIX", "TYPE", "MODEL", "FALLBACK"):
        assert column in listed
    assert len(by_category.split()) == 2
    assert "shown" in control_plane.kubectl("get", "llmrouter", "shown", "-n", space.name)

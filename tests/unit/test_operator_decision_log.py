"""What the operator does for a decision log: volumes, credentials, and what it says of one that cannot be written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.acknowledgements import said_by
from support.crd_cases import router

from llmrouter.config import PolicyConfig
from llmrouter.decision_log_spec import DECISIONS_FOLDER
from llmrouter.resources import LLMRouterSpec
from llmrouter_operator.builders import Owner, build_deployment
from llmrouter_operator.models import Object, ObjectKey, Plan, PolicyChoice, RouterDefaults
from llmrouter_operator.status import Acknowledgements, Facts, build_status

KEY = ObjectKey("team", "fleet")
NOW = "2026-01-01T00:00:00Z"


def spec(log: dict[str, Any] | None, **changes: Any) -> LLMRouterSpec:  # noqa: ANN401 - fields of a spec
    return LLMRouterSpec.model_validate(router(decisionLog=log, **changes))


def pod(log: dict[str, Any] | None, **changes: Any) -> Object:  # noqa: ANN401 - fields of a spec
    defaults = RouterDefaults(image="example.test/router:1", pull_policy="Never")
    deployment = build_deployment(Owner(KEY, "uid-1"), spec(log, **changes), defaults)
    found: Object = deployment["spec"]["template"]["spec"]
    return found


def test_files_have_a_volume_that_is_larger_than_they_may_be() -> None:
    log = {"fraction": 0.1, "sink": "File", "maxBytes": 1_000_000}
    made = pod(log, router={"replicas": 1, "processes": 2}, state={"redis": {"address": "redis:6379"}})
    (volume,) = [one for one in made["volumes"] if one["name"] == "decisions"]
    assert int(volume["emptyDir"]["sizeLimit"]) > 2 * 1_000_000
    mounts = made["containers"][0]["volumeMounts"]
    assert {"name": "decisions", "mountPath": DECISIONS_FOLDER} in mounts


def test_files_may_be_kept_on_a_claim() -> None:
    made = pod({"sink": "File", "claimName": "kept"})
    (volume,) = [one for one in made["volumes"] if one["name"] == "decisions"]
    assert volume["persistentVolumeClaim"] == {"claimName": "kept"}


@pytest.mark.parametrize("log", [None, {"fraction": 1.0}, {"sink": "ObjectStore", "url": "s3://a/b"}])
def test_other_sinks_need_no_volume(log: dict[str, Any] | None) -> None:
    made = pod(log)
    assert [one["name"] for one in made["volumes"]] == ["tmp"]
    assert made["containers"][0]["envFrom"] == []


def test_an_object_stores_credentials_are_the_secrets_keys() -> None:
    made = pod({"sink": "ObjectStore", "url": "s3://a/b", "secretRef": {"name": "store"}})
    assert made["containers"][0]["envFrom"] == [{"secretRef": {"name": "store", "optional": True}}]


def conditions(log: dict[str, Any] | None, **said: Any) -> dict[str, Object]:  # noqa: ANN401 - fields of one
    one = said_by("r", predictor_ready=True, **said)
    choice = PolicyChoice(PolicyConfig(name="plain", type="RoundRobin"))
    facts = Facts(
        generation=1,
        routers_desired=1,
        routers_ready=1,
        rolled_out=True,
        said=Acknowledgements({"r": one}),
        plan=Plan(key=KEY, spec=spec(log), choice=choice, config_digest="new"),
    )
    status = build_status({}, replace(facts), in_force=None, now=NOW)
    return {condition["type"]: condition for condition in status["conditions"]}


def test_a_full_disk_is_a_condition_and_no_reason_not_to_be_ready() -> None:
    full = {"decision_log_ready": False, "decision_log_reason": "DiskFull", "decision_log_message": "no space left"}
    found = conditions({"fraction": 0.1}, **full)
    assert (found["DecisionLogReady"]["status"], found["DecisionLogReady"]["reason"]) == ("False", "DiskFull")
    assert found["DecisionLogReady"]["message"] == "r: no space left"
    assert found["Ready"]["status"] == "True"


def test_a_log_that_is_written_says_so_and_one_that_is_off_says_nothing() -> None:
    assert conditions({"fraction": 0.1}, decision_log_ready=True)["DecisionLogReady"]["reason"] == "Written"
    assert conditions({"fraction": 0.1})["DecisionLogReady"]["status"] == "Unknown"
    assert "DecisionLogReady" not in conditions(None)

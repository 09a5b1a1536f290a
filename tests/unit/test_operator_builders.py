"""What an LLMRouter owns, without a cluster."""

from __future__ import annotations

import json

import pytest
from support.crd_cases import router, tokenizer

from llmrouter.config import (
    CONFIG_KEY,
    DIGEST_ANNOTATION,
    MANIFEST_KEY,
    MODEL_KEY,
    PREDICTOR_MANIFEST_KEY,
    PREDICTOR_MODEL_KEY,
    TOKENIZERS_FOLDER,
    digest_of,
)
from llmrouter.resources import LLMRouterSpec
from llmrouter_operator.builders import (
    RESTART_ANNOTATION,
    Owner,
    build_config_map,
    build_deployment,
    build_objects,
    build_role,
)
from llmrouter_operator.models import ModelFiles, Object, ObjectKey, RouterDefaults

OWNER = Owner(ObjectKey("team", "fleet"), "uid-1")
DEFAULTS = RouterDefaults(image="example.test/router:1", pull_policy="Never", pull_secrets=("registry",))


def spec(**changes: object) -> LLMRouterSpec:
    return LLMRouterSpec.model_validate(router(**changes))


def pod(**changes: object) -> Object:
    template: Object = build_deployment(OWNER, spec(**changes), DEFAULTS)["spec"]["template"]
    return template


def container(**changes: object) -> Object:
    only: Object = pod(**changes)["spec"]["containers"][0]
    return only


def test_pods_meet_the_restricted_profile() -> None:
    security = pod()["spec"]["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] != 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_environment_names_everything_a_router_needs() -> None:
    redis = {"address": "redis:6379", "passwordSecretRef": {"name": "s", "key": "k"}}
    values = {entry["name"]: entry for entry in container(state={"redis": redis})["env"]}

    assert values["LLMROUTER_CONFIG_MAP"]["value"] == "fleet-router-config"
    assert values["LLMROUTER_ACKNOWLEDGEMENTS_CONFIG_MAP"]["value"] == "fleet-routers"
    assert values["LLMROUTER_LEDGER_NAMESPACE"]["value"] == "team/fleet/uid-1"
    assert values["POD_NAME"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert values["LLMROUTER_REDIS_PASSWORD"]["valueFrom"] == {"secretKeyRef": {"name": "s", "key": "k"}}
    assert "LLMROUTER_REDIS_PASSWORD" not in {entry["name"] for entry in container()["env"]}


def test_no_secret_is_in_anything_built() -> None:
    redis = {"address": "redis:6379", "passwordSecretRef": {"name": "s", "key": "k"}}
    objects = build_objects(OWNER, spec(state={"redis": redis}), build_config_map(OWNER, b"{}", None), DEFAULTS)

    assert "Secret" not in {value["kind"] for value in objects}


@pytest.mark.parametrize(
    "changes",
    [
        {"policyRef": {"name": "other"}},
        {"limits": {"maxPromptTokens": 7}},
        {"models": [{"name": "llama"}, {"name": "more"}]},
        {"router": {"replicas": 1, "logLevel": "DEBUG"}},
        {"predictor": {"type": "Constant"}},
        {"predictor": {"model": {"configMap": {"name": "m"}, "sha256": "a" * 64}, "deadlineMilliseconds": 5}},
    ],
)
def test_what_routers_swap_live_changes_no_pod(changes: dict[str, object]) -> None:
    assert pod(**changes) == pod()


@pytest.mark.parametrize(
    "changes",
    [
        {"listeners": {"grpcPort": 9001}},
        {"state": {"redis": {"address": "other:6379"}}},
        {"router": {"replicas": 1, "image": "example.test/router:2"}},
        {"router": {"replicas": 1, "tokenizers": {"configMap": {"name": "t"}}}},
    ],
)
def test_what_routers_read_at_their_start_rolls_the_pods(changes: dict[str, object]) -> None:
    assert pod(**changes) != pod()


def test_the_restart_digest_is_stable() -> None:
    assert pod()["metadata"]["annotations"][RESTART_ANNOTATION] == pod()["metadata"]["annotations"][RESTART_ANNOTATION]


def test_probes_ask_the_health_service() -> None:
    only = container(listeners={"grpcPort": 9001})

    assert only["readinessProbe"]["grpc"] == {"port": 9001, "service": "readiness"}
    assert only["livenessProbe"]["grpc"] == {"port": 9001, "service": "liveness"}
    assert only["startupProbe"]["grpc"] == {"port": 9001, "service": "liveness"}


def test_resources_default_to_small_requests() -> None:
    assert container()["resources"] == {"requests": {"cpu": "100m", "memory": "256Mi"}}
    declared = {"replicas": 1, "resources": {"limits": {"cpu": 2, "memory": "1Gi"}}}
    assert container(router=declared)["resources"] == {"limits": {"cpu": "2", "memory": "1Gi"}}


def test_installed_defaults_reach_the_pods() -> None:
    assert container()["image"] == "example.test/router:1"
    assert container()["imagePullPolicy"] == "Never"
    assert pod()["spec"]["imagePullSecrets"] == [{"name": "registry"}]


def test_a_role_names_the_two_config_maps_and_pods_only_if_selected() -> None:
    rules = build_role(OWNER, spec())["rules"]
    assert [rule.get("resourceNames") for rule in rules] == [["fleet-router-config"], ["fleet-routers"]]

    selecting = [{"name": "a", "selector": {"matchLabels": {"app": "x"}}, "profile": {"name": "p"}}]
    rules = build_role(OWNER, spec(pools=selecting))["rules"]
    assert rules[2] == {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}


def test_the_config_map_carries_its_digest_and_the_model() -> None:
    config_map = build_config_map(OWNER, b'{"a":1}', ModelFiles("b25ueA==", "{}"))

    assert config_map["metadata"]["annotations"] == {DIGEST_ANNOTATION: digest_of(b'{"a":1}')}
    assert config_map["data"] == {CONFIG_KEY: '{"a":1}', MANIFEST_KEY: "{}"}
    assert config_map["binaryData"] == {MODEL_KEY: "b25ueA=="}
    assert "binaryData" not in build_config_map(OWNER, b"{}", None)


def test_the_config_map_carries_the_predictor_beside_the_policy() -> None:
    both = build_config_map(OWNER, b"{}", ModelFiles("cG9s", "{p}"), predictor=ModelFiles("bGVu", "{l}"))

    assert both["data"] == {CONFIG_KEY: "{}", MANIFEST_KEY: "{p}", PREDICTOR_MANIFEST_KEY: "{l}"}
    assert both["binaryData"] == {MODEL_KEY: "cG9s", PREDICTOR_MODEL_KEY: "bGVu"}


@pytest.mark.parametrize(
    ("source", "volume"),
    [
        (
            {"persistentVolumeClaim": {"claimName": "t"}},
            {"persistentVolumeClaim": {"claimName": "t", "readOnly": True}},
        ),
        ({"configMap": {"name": "t"}}, {"configMap": {"name": "t", "optional": True}}),
    ],
)
def test_tokenizers_are_mounted_to_read_alone(source: Object, volume: Object) -> None:
    mounted = spec(**tokenizer("llama.json", router={"replicas": 1, "tokenizers": source}))
    template = build_deployment(OWNER, mounted, DEFAULTS)["spec"]["template"]["spec"]

    assert template["volumes"][1:] == [{"name": "tokenizers"} | volume]
    assert template["containers"][0]["volumeMounts"][1:] == [
        {"name": "tokenizers", "mountPath": TOKENIZERS_FOLDER, "readOnly": True}
    ]
    assert len(pod()["spec"]["volumes"]) == len(container()["volumeMounts"]) == 1


def test_everything_belongs_to_the_llmrouter_and_is_plain_json() -> None:
    objects = build_objects(OWNER, spec(), build_config_map(OWNER, b"{}", None), DEFAULTS)

    assert len(objects) == 8
    for value in objects:
        (owner,) = value["metadata"]["ownerReferences"]
        assert owner["uid"] == "uid-1"
        assert "blockOwnerDeletion" not in owner
        assert json.loads(json.dumps(value)) == value

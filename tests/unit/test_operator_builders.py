"""What an LLMRouter owns, without a cluster."""

from __future__ import annotations

import json

import pytest
from support.crd_cases import router, tokenizer

from llmrouter.config import (
    CERTIFICATE_FOLDER,
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
        {"listeners": {"extProc": {}}},
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


def test_a_role_names_the_inference_pools_that_are_referred_to() -> None:
    referring = [
        {"name": name, "inferencePoolRef": {"name": pool}, "profile": {"name": "p"}}
        for name, pool in (("a", "chat"), ("b", "code"), ("c", "chat"))
    ]
    rules = build_role(OWNER, spec(pools=referring))["rules"]
    assert rules[2] == {
        "apiGroups": ["inference.networking.k8s.io"],
        "resources": ["inferencepools"],
        "resourceNames": ["chat", "code"],
        "verbs": ["get", "list", "watch"],
    }
    assert rules[3]["resources"] == ["pods"]


def ports(**changes: object) -> tuple[list[str], dict[str, Object]]:
    """Container ports by name, and those of the Service."""
    objects = build_objects(OWNER, spec(**changes), build_config_map(OWNER, b"{}", None), DEFAULTS)
    (service,) = [value for value in objects if value["kind"] == "Service"]
    named = [f"{port['name']}={port['containerPort']}" for port in container(**changes)["ports"]]
    return named, {port["name"]: port for port in service["spec"]["ports"]}


def values(**changes: object) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(**changes)["env"] if "value" in entry}


def test_listeners_that_are_not_declared_have_no_port() -> None:
    assert ports()[0] == ["grpc=9000", "metrics=9090"]
    assert not [name for name in values() if "EXT_PROC" in name or "TLS" in name or "OPENAI" in name]


def test_the_endpoint_picker_has_a_port_and_makes_its_own_certificate() -> None:
    declared = {"listeners": {"extProc": {"transport": "Grpc"}}}
    names, service = ports(**declared)
    assert names == ["grpc=9000", "metrics=9090", "ext-proc=9002"]
    assert (service["ext-proc"]["port"], service["ext-proc"]["appProtocol"]) == (9002, "http2")
    said = values(**declared)
    assert (said["LLMROUTER_EXT_PROC_PORT"], said["LLMROUTER_EXT_PROC_TRANSPORT"]) == ("9002", "Grpc")
    assert (said["LLMROUTER_TLS_SERVICE"], said["LLMROUTER_TLS_MOUNTED"]) == ("fleet-router", "false")
    assert "certificate" not in {volume["name"] for volume in pod(**declared)["spec"]["volumes"]}
    assert container(**declared)["readinessProbe"]["grpc"]["port"] == 9000


def test_several_processes_have_a_port_each_behind_the_one_that_they_share() -> None:
    declared = {
        "listeners": {"extProc": {}},
        "router": {"replicas": 1, "processes": 2},
        "state": {"redis": {"address": "redis:6379"}},
    }
    names, service = ports(**declared)
    assert names == ["grpc=9000", "metrics=9090", "ext-proc=9002", "ext-proc-0=9003", "ext-proc-1=9004"]
    assert [service[f"ext-proc-{number}"]["port"] for number in range(2)] == [9003, 9004]
    assert values(**declared)["LLMROUTER_PROCESSES"] == "2"
    assert "LLMROUTER_PROCESSES" not in values()


def test_plain_text_names_no_certificate() -> None:
    said = values(listeners={"extProc": {"secureServing": False}})
    assert said["LLMROUTER_EXT_PROC_PORT"] == "9002"
    assert not [name for name in said if "TLS" in name]


def test_a_certificate_is_mounted_and_pods_start_without_it() -> None:
    declared = {"listeners": {"extProc": {"certificateSecretRef": {"name": "tls"}}}}
    (volume,) = [one for one in pod(**declared)["spec"]["volumes"] if one["name"] == "certificate"]
    assert volume["secret"] == {"secretName": "tls", "optional": True, "defaultMode": 0o440}
    (mount,) = [one for one in container(**declared)["volumeMounts"] if one["name"] == "certificate"]
    assert (mount["mountPath"], mount["readOnly"]) == (CERTIFICATE_FOLDER, True)
    assert values(**declared)["LLMROUTER_TLS_MOUNTED"] == "true"


def test_the_openai_front_has_a_port() -> None:
    names, service = ports(listeners={"openai": {"port": 8088}})
    assert names[-1] == "openai=8088"
    assert (service["openai"]["port"], service["openai"]["targetPort"]) == (8088, "openai")
    assert values(listeners={"openai": {"port": 8088}})["LLMROUTER_OPENAI_PORT"] == "8088"


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


def test_the_volume_of_models_is_mounted_to_read_alone() -> None:
    mounted = spec(router={"replicas": 1, "models": {"persistentVolumeClaim": {"claimName": "m"}}})

    template = build_deployment(OWNER, mounted, DEFAULTS)["spec"]["template"]["spec"]
    claim = {"claimName": "m", "readOnly": True}
    assert {"name": "models", "persistentVolumeClaim": claim} in template["volumes"]
    mount = {"name": "models", "mountPath": "/var/lib/llmrouter/models", "readOnly": True}
    assert mount in template["containers"][0]["volumeMounts"]

"""The operator against a real API server, under the rights that the chart gives it. Tests play the routers."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from support.operator_process import OWNED, Space, llm_router, routing_policy
from support.played_routers import (
    EVERYTHING,
    acknowledge,
    become_ready,
    config_of,
    model_config_map,
    policy_in_force,
    router_pods,
    spoiled_manifest,
)

from llmrouter.acknowledgement import RouterCalibration, RouterMix
from llmrouter.artefacts import builtin_model
from llmrouter.testbed.cluster.api import Api, ApiError

if TYPE_CHECKING:
    from llmrouter.testbed.cluster.control_plane import ControlPlane

pytest_plugins = ["support.control_plane", "support.operator_space"]


def test_an_llmrouter_owns_what_it_needs(space: Space) -> None:
    assert sorted(space.owned("fleet")) == sorted(EVERYTHING)
    uid = space.get("LLMRouter", "fleet")["metadata"]["uid"]
    for kind, name in EVERYTHING:
        (owner,) = space.get(kind, name)["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (uid, True)
    digest, config = config_of(space)
    assert (config.name, config.generation, config.policy.type) == ("fleet", 1, "RoundRobin")
    assert len(digest) == 64
    metadata = space.get("LLMRouter", "fleet")["metadata"]
    assert "finalizers" not in metadata
    assert not [name for name in metadata.get("annotations", {}) if "kopf" in name]


def test_before_routers_speak_nothing_is_guessed(space: Space) -> None:
    space.wait(lambda: space.condition("fleet", "Ready")["reason"] == "NoRouterReady", "no router is ready")

    assert space.condition("fleet", "PolicyReady")["status"] == "Unknown"
    assert space.condition("fleet", "InstancesAvailable")["status"] == "Unknown"
    assert "instances" not in space.status("fleet")


def test_routers_that_acknowledge_make_it_ready(control_plane: ControlPlane, space: Space) -> None:
    acknowledge(space)
    become_ready(space)

    # Ready holds with one router already: all is said when the roll-out is over.
    space.wait(lambda: space.condition("fleet", "Progressing")["reason"] == "UpToDate", "rolled out")

    status = space.status("fleet")
    assert status["activePolicy"]["acknowledged"] == "2/2"
    assert status["activePolicy"]["lastKnownGood"] is False
    assert status["instances"] == {"ready": 8, "total": 8, "summary": "8/8"}
    assert status["routers"] == {"ready": 2, "desired": 2, "summary": "2/2"}
    assert {one["type"]: one["status"] for one in status["conditions"]} == {
        "Ready": "True",
        "Progressing": "False",
        "PolicyReady": "True",
        "PredictorReady": "True",
        "LengthDrift": "Unknown",
        "StateBackendReady": "True",
        "InstancesAvailable": "True",
    }
    (line,) = control_plane.kubectl("get", "llmr", "-n", space.name, "--no-headers").splitlines()
    assert line.split()[:5] == ["fleet", "True", "plain", "8/8", "2/2"]
    space.wait(lambda: bool(space.events("fleet", "Ready")), "the event")


def test_the_traffics_mix_is_shown_and_goes_when_routers_fall_silent(control_plane: ControlPlane, space: Space) -> None:
    amounts = {"requests_per_s": 10, "prefill_tokens_per_s": 5_000, "decode_tokens_per_s": 2_000, "engine_s_per_s": 2}
    law = (10.0, 20.0, 50.0, 100.0, 200.0, 400.0, 600.0)
    mix = RouterMix(requests=600, prefill_time_fraction=0.62, prompt_tokens=law, output_tokens=law, **amounts)

    acknowledge(space, mixes={"llama": mix}, at_s=time.time())

    space.wait(lambda: "mix" in space.status("fleet"), "the mix")
    shown = space.status("fleet")["mix"]
    assert (shown["requestsPerSecond"], shown["prefillTokensPerSecond"]) == (20, 10_000)
    assert (shown["decodeTokensPerSecond"], shown["prefillTimeFraction"]) == (4_000, 0.62)
    (model,) = shown["models"]
    assert (model["model"], model["engineSecondsPerSecond"], model["outputTokens"]) == (
        "llama",
        4,
        {"p50": 100, "p90": 400},
    )
    assert "62% prefill" in control_plane.kubectl("get", "llmr", "-n", space.name, "--no-headers")

    acknowledge(space)

    space.wait(lambda: "mix" not in space.status("fleet"), "no mix")


def test_a_slow_instance_is_named_and_told_of_once(space: Space) -> None:
    known = {"pool": "main", "calibrate": "Full", "observations": 500, "relative_residual": 0.04}
    slow = RouterCalibration(**known, profile_residual=0.5, slow={"10.0.0.1:8000": 2.04})

    acknowledge(space, calibration=(slow,), at_s=time.time())

    space.wait(lambda: "calibration" in space.status("fleet"), "the calibration")
    (pool,) = space.status("fleet")["calibration"]["pools"]
    assert pool == {
        "pool": "main",
        "calibrate": "Full",
        "observations": 1_000,
        "relativeResidual": 0.04,
        "profileResidual": 0.5,
        "slowInstances": [{"instance": "10.0.0.1:8000", "slowness": 2.04}],
    }
    space.wait(lambda: len(space.events("fleet", "SlowInstance")) == 1, "the event")


def test_a_policy_switch_reaches_the_config_and_restarts_nothing(space: Space) -> None:
    acknowledge(space)
    space.wait(lambda: space.condition("fleet", "PolicyReady")["status"] == "True", "acknowledged")
    before, _ = config_of(space)
    template = space.get("Deployment", "fleet-router")["metadata"]["generation"]

    space.apply(routing_policy("plain", type="LeastInFlight"))

    space.wait(lambda: config_of(space)[1].policy.type == "LeastInFlight", "the new configuration")
    space.wait(
        lambda: space.condition("fleet", "PolicyReady")["status"] == "Unknown", "old acknowledgements do not count"
    )
    assert config_of(space)[0] != before
    assert space.status("fleet")["activePolicy"]["acknowledged"] == "0/2"
    assert space.get("Deployment", "fleet-router")["metadata"]["generation"] == template
    acknowledge(space)
    space.wait(lambda: space.status("fleet")["activePolicy"]["acknowledged"] == "2/2", "acknowledged again")
    assert len(space.events("fleet", "PolicyChanged")) == 2


def test_what_a_router_cannot_do_is_a_condition(space: Space) -> None:
    acknowledge(space, policy_ready=False, policy_reason="ModelCorrupt", deciding="LeastInFlight")
    space.wait(lambda: space.condition("fleet", "PolicyReady")["reason"] == "ModelCorrupt", "policy")
    acknowledge(space, state_backend_ready=False, state_backend_reason="Unreachable")
    space.wait(lambda: space.condition("fleet", "StateBackendReady")["reason"] == "Unreachable", "state backend")
    acknowledge(space, predictor_ready=False, predictor_reason="DigestMismatch")
    space.wait(lambda: space.condition("fleet", "PredictorReady")["reason"] == "DigestMismatch", "predictor")
    acknowledge(space, instances_ready=0)
    space.wait(lambda: space.condition("fleet", "InstancesAvailable")["reason"] == "NoInstanceReady", "instances")


def test_malformed_acknowledgements_are_left_out_and_gone_pods_removed(space: Space) -> None:
    pods = acknowledge(space)
    forged = {"data": {pods[0]: "{", "not-a-pod": "anything"}}
    space.patch("ConfigMap", "fleet-routers", forged)

    space.wait(lambda: "not-a-pod" not in space.get("ConfigMap", "fleet-routers")["data"], "the gone pod's key removed")
    space.wait(lambda: space.status("fleet")["activePolicy"]["acknowledged"] == "1/2", "one counts")

    space.delete("Pod", pods[1])
    space.wait(lambda: pods[1] not in space.get("ConfigMap", "fleet-routers")["data"], "a deleted pod's key removed")


def test_a_router_may_do_what_it_must_and_no_more(control_plane: ControlPlane, space: Space) -> None:
    pods = acknowledge(space)
    kubeconfig = control_plane.service_account_kubeconfig(space.name, "fleet-router")
    token = json.loads(kubeconfig.read_text())["users"][0]["user"]["token"]
    router = Space(Api(control_plane.server, control_plane.ca_file, token), space.name)

    assert router.find("ConfigMap", "?fieldSelector=metadata.name=fleet-router-config")
    router.patch("ConfigMap", "fleet-routers", {"data": {pods[0]: "said"}})
    assert len(router.find("Pod")) == 2
    for forbidden in (
        lambda: router.patch("ConfigMap", "fleet-router-config", {"data": {"router.json": "{}"}}),
        lambda: router.get("ConfigMap", "fleet-routers"),
        lambda: router.find("ConfigMap"),
        lambda: router.get("LLMRouter", "fleet"),
        lambda: router.api.get(f"/api/v1/namespaces/{space.name}/secrets"),
        lambda: router.delete("Pod", pods[0]),
    ):
        with pytest.raises(ApiError) as refused:
            forbidden()
        assert refused.value.status == 403


def test_pods_are_hidden_from_routers_that_select_none(space: Space) -> None:
    pool = {"name": "fixed", "endpoints": ["10.0.0.1:8000"], "profile": {"name": "llama-3.1-8b-rtx4090"}}
    space.apply(llm_router("fleet", pools=[pool]))

    space.wait(lambda: len(space.get("Role", "fleet-router")["rules"]) == 2, "the rule about pods gone")


def test_a_deleted_policy_leaves_the_last_good_one_in_force(space: Space) -> None:
    acknowledge(space)
    space.wait(lambda: space.condition("fleet", "PolicyReady")["status"] == "True", "acknowledged")

    space.delete("RoutingPolicy", "plain")

    space.wait(lambda: space.condition("fleet", "PolicyReady")["reason"] == "PolicyNotFound", "the condition")
    assert policy_in_force(space) == "plain"
    assert space.status("fleet")["activePolicy"]["lastKnownGood"] is True
    changed = llm_router("fleet", limits={"maxPromptTokens": 1000})
    space.apply(changed)
    space.wait(lambda: config_of(space)[1].limits.max_prompt_tokens == 1000, "the rest of the spec still applies")
    space.wait(lambda: space.status("fleet")["observedGeneration"] == 2, "seen")
    assert policy_in_force(space) == "plain"
    (event,) = space.events("fleet", "PolicyNotFound")
    assert event["type"] == "Warning"
    space.apply(routing_policy("plain"))
    space.wait(lambda: space.condition("fleet", "PolicyReady")["reason"] != "PolicyNotFound", "the policy is back")


def test_without_a_last_good_policy_the_fallback_runs(space: Space) -> None:
    space.apply(llm_router("fresh", policyRef={"name": "absent"}))

    space.wait(lambda: space.condition("fresh", "PolicyReady")["reason"] == "PolicyNotFound", "the condition")
    active = space.status("fresh")["activePolicy"]
    assert (active["name"], active["type"], active["lastKnownGood"]) == ("fallback", "LeastInFlight", False)


def test_a_changed_config_map_is_restored(space: Space) -> None:
    before, _ = config_of(space)

    space.patch("ConfigMap", "fleet-router-config", {"data": {"router.json": "{}"}})

    space.wait(lambda: space.get("ConfigMap", "fleet-router-config")["data"]["router.json"] != "{}", "restored")
    assert config_of(space)[0] == before
    space.wait(lambda: bool(space.events("fleet", "Restored")), "the event")


@pytest.mark.parametrize(("kind", "name"), EVERYTHING)
def test_what_is_deleted_comes_back(space: Space, kind: str, name: str) -> None:
    uid = space.get(kind, name)["metadata"]["uid"]

    space.delete(kind, name)

    space.wait(lambda: bool(space.get(kind, name)["metadata"]["uid"] != uid), "made anew")


def test_labels_and_owners_taken_away_come_back(space: Space) -> None:
    path = {"metadata": {"labels": {"llmrouter.dev/router": None}}}
    space.patch("Service", "fleet-router", path)
    space.wait(lambda: ("Service", "fleet-router") in space.owned("fleet"), "the label")

    space.patch("Role", "fleet-router", {"rules": [], "metadata": {"ownerReferences": None}})
    space.wait(lambda: len(space.get("Role", "fleet-router")["rules"] or []) == 3, "the rules")
    assert space.get("Role", "fleet-router")["metadata"]["ownerReferences"]


def test_a_scaled_deployment_is_scaled_back(space: Space) -> None:
    space.patch("Deployment", "fleet-router", {"spec": {"replicas": 5}})

    space.wait(lambda: space.get("Deployment", "fleet-router")["spec"]["replicas"] == 2, "two replicas")


def test_ports_and_replicas_change_the_deployment(space: Space) -> None:
    space.apply(llm_router("fleet", listeners={"grpcPort": 9100}, router={"replicas": 3, "image": "example.test/r:2"}))

    def rolled() -> bool:
        spec = space.get("Deployment", "fleet-router")["spec"]
        container = spec["template"]["spec"]["containers"][0]
        return bool(
            spec["replicas"] == 3
            and container["image"] == "example.test/r:2"
            and container["ports"][0]["containerPort"] == 9100
        )

    space.wait(rolled, "the new template")
    space.wait(lambda: space.get("Service", "fleet-router")["spec"]["ports"][0]["port"] == 9100, "the Service's port")


def test_a_spec_that_only_the_library_refuses_changes_nothing(space: Space) -> None:
    before, _ = config_of(space)
    pools = llm_router("fleet")["spec"]["pools"]
    space.apply(llm_router("fleet", pools=[pools[0] | {"profile": {"name": "no-such-engine"}}]))

    space.wait(lambda: space.condition("fleet", "Ready")["reason"] == "UnknownProfile", "the condition")
    assert "no-such-engine" in space.condition("fleet", "Ready")["message"]
    assert space.status("fleet")["observedGeneration"] == 2
    assert config_of(space)[0] == before
    space.apply(llm_router("fleet"))
    space.wait(lambda: space.condition("fleet", "Ready")["reason"] != "UnknownProfile", "it is over")


def test_what_the_api_server_refuses_is_told_and_tried_again(space: Space) -> None:
    too_much = {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}
    space.apply(llm_router("fleet", router={"replicas": 2, "resources": too_much}))

    space.wait(lambda: space.condition("fleet", "Ready")["reason"] == "ApplyFailed", "the condition")
    assert "must be less than or equal to cpu limit" in space.condition("fleet", "Ready")["message"]
    assert space.status("fleet")["observedGeneration"] == 1
    space.apply(llm_router("fleet", router={"replicas": 2, "resources": {"requests": {"cpu": "1"}}}))
    space.wait(lambda: space.status("fleet")["observedGeneration"] == 3, "it goes on")


def test_a_model_of_ones_own_travels_with_the_configuration(space: Space) -> None:
    model, manifest = builtin_model("policy", "marginal-cost")
    sha256 = hashlib.sha256(model).hexdigest()
    space.apply(model_config_map(model, manifest))
    own = {"configMap": {"name": "model"}, "sha256": sha256}

    space.apply(routing_policy("plain", type="Onnx", model=own))

    space.wait(lambda: config_of(space)[1].policy.model_sha256 == sha256, "the model's digest")
    config_map = space.get("ConfigMap", "fleet-router-config")
    assert base64.b64decode(config_map["binaryData"]["policy.onnx"]) == model
    assert config_map["data"]["policy.manifest.json"].encode() == manifest

    space.apply(model_config_map(model[: len(model) // 2], manifest))
    space.wait(lambda: space.condition("fleet", "PolicyReady")["reason"] == "DigestMismatch", "half a model refused")
    kept = space.get("ConfigMap", "fleet-router-config")
    assert base64.b64decode(kept["binaryData"]["policy.onnx"]) == model

    space.apply(routing_policy("plain", type="RoundRobin"))
    space.wait(lambda: "binaryData" not in space.get("ConfigMap", "fleet-router-config"), "the model gone again")


def test_a_model_that_must_not_run_is_named_with_the_reason(space: Space) -> None:
    model, manifest = builtin_model("policy", "marginal-cost")
    sha256 = hashlib.sha256(model).hexdigest()
    features = [*json.loads(manifest)["featureNames"], "extra"]
    extra_bounds = json.loads(manifest)["bounds"] | {"extra": {"min": 0, "max": 1}}
    cases = {  # at no moment between two of them can the model run
        "ModelNotFound": (None, sha256),
        "ManifestInvalid": ((model, manifest[: len(manifest) // 2]), sha256),
        "DigestMismatch": ((model, spoiled_manifest(manifest, featureVersion=999)), "0" * 64),
        "ShapeMismatch": ((model, spoiled_manifest(manifest, featureNames=features, bounds=extra_bounds)), sha256),
        "FeatureVersionMismatch": ((model, spoiled_manifest(manifest, featureVersion=999)), sha256),
        "ModelCorrupt": ((model, spoiled_manifest(manifest, sha256="1" * 64)), sha256),
    }
    for reason, (files, asked) in cases.items():
        if files is not None:
            space.apply(model_config_map(*files))
        space.apply(routing_policy("plain", type="Onnx", model={"configMap": {"name": "model"}, "sha256": asked}))
        space.wait(lambda reason=reason: space.condition("fleet", "PolicyReady")["reason"] == reason, reason)  # type: ignore[misc]
        assert config_of(space)[1].policy.type == "RoundRobin"


def test_a_model_that_does_not_fit_is_refused(space: Space) -> None:
    _, manifest = builtin_model("policy", "marginal-cost")
    model = b"\0" * 999_000
    sha256 = hashlib.sha256(model).hexdigest()
    space.apply(model_config_map(model, spoiled_manifest(manifest, sha256=sha256)))

    space.apply(routing_policy("plain", type="Onnx", model={"configMap": {"name": "model"}, "sha256": sha256}))

    space.wait(lambda: space.condition("fleet", "PolicyReady")["reason"] == "ModelTooLarge", "the condition")


def test_two_people_who_apply_at_once_end_with_one_truth(space: Space) -> None:
    def edit(person: str) -> None:
        for replicas in range(1, 9):
            space.apply(llm_router("fleet", router={"replicas": replicas}), manager=person)

    with ThreadPoolExecutor(2) as people:
        list(people.map(edit, ["ada", "bob"]))

    final = space.get("LLMRouter", "fleet")
    space.wait(
        lambda: space.status("fleet").get("observedGeneration") == final["metadata"]["generation"],
        "the last generation",
    )
    assert space.get("Deployment", "fleet-router")["spec"]["replicas"] == final["spec"]["router"]["replicas"]
    assert config_of(space)[1].generation == final["metadata"]["generation"]


def test_someone_elses_object_is_never_taken_over(space: Space) -> None:
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other-routers"}, "data": {"mine": "1"}}
    space.create(theirs)

    space.apply(llm_router("other"))

    space.wait(lambda: space.condition("other", "Ready")["reason"] == "NameConflict", "the condition")
    assert space.get("ConfigMap", "other-routers")["data"] == {"mine": "1"}
    space.delete("ConfigMap", "other-routers")
    space.wait(lambda: len(space.owned("other")) == len(EVERYTHING), "it goes on by itself")


def test_deleting_it_leaves_nothing(space: Space) -> None:
    acknowledge(space)

    space.delete("LLMRouter", "fleet")

    space.wait(lambda: space.owned("fleet") == [], "everything collected", within_s=60)
    space.wait(lambda: router_pods(space) == [], "pods collected")
    assert not space.exists("LLMRouter", "fleet")
    assert {kind for kind, _ in EVERYTHING} == set(OWNED)


def test_an_api_server_that_was_away_is_listened_to_again(control_plane: ControlPlane, space: Space) -> None:
    control_plane.stop_api_server()
    control_plane.start_api_server()

    space.apply(routing_policy("plain", type="Random"))

    space.wait(lambda: config_of(space)[1].policy.type == "Random", "the change seen", within_s=60)

"""From observation to plan: pure."""

from __future__ import annotations

import base64
import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from support.crd_cases import router

from llmrouter.artefacts import builtin_model
from llmrouter.config import CONFIG_KEY, DIGEST_ANNOTATION, MODEL_KEY, digest_of, parse_router_config
from llmrouter_operator.builders import Names
from llmrouter_operator.decide import APPLIED_ANNOTATION, changed_by_hand, decide, needs_apply
from llmrouter_operator.models import CONFIG_MAP, Object, ObjectKey, Observed, Plan, Ref, RouterDefaults

KEY = ObjectKey("team", "fleet")
CONFIG = Ref(CONFIG_MAP, "fleet-router-config")
DEFAULTS = RouterDefaults(image="example.test/router:1")


def policy(**spec: Any) -> Object:  # noqa: ANN401 - any field
    return {"metadata": {"name": "p", "namespace": "team"}, "spec": {"type": "RoundRobin"} | spec}


def observed(policy_object: Object | None = None, **changes: Any) -> Observed:  # noqa: ANN401 - any field
    metadata = {"name": "fleet", "namespace": "team", "uid": "uid-1", "generation": 4}
    base = Observed(
        router={"metadata": metadata, "spec": router()},
        policy=policy_object,
        model=None,
        predictor_model=None,
        owned=dict.fromkeys(Names(KEY).refs()),
        pods=(),
    )
    return replace(base, **changes)


def config_map(plan: Plan) -> Object:
    return copy.deepcopy(plan.objects[0])


def after(plan: Plan) -> dict[Ref, Object | None]:
    return dict.fromkeys(Names(KEY).refs()) | {CONFIG: config_map(plan)}


def decided(what: Observed) -> Plan:
    return decide(what, DEFAULTS)


def test_a_plan_has_everything_and_names_the_digest() -> None:
    plan = decided(observed(policy()))

    content = config_map(plan)["data"][CONFIG_KEY].encode()
    assert plan.config_digest == digest_of(content)
    assert parse_router_config(content).generation == 4
    assert len(plan.objects) == 8
    assert plan.problem is None


def test_the_same_observation_gives_the_same_plan() -> None:
    assert decided(observed(policy())) == decided(observed(policy()))


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (None, "PolicyNotFound"),
        (policy(type="Psychic"), "PolicyInvalid"),
        (policy(type="Onnx", model={"builtin": "marginal-cost", "sha256": "0" * 64}), "DigestMismatch"),
        (policy(type="Onnx", model={"configMap": {"name": "m"}, "sha256": "0" * 64}), "ModelNotFound"),
    ],
)
def test_a_policy_that_cannot_run_leaves_the_one_in_force(broken: Object | None, reason: str) -> None:
    good = decided(observed(policy()))

    plan = decided(observed(broken, owned=after(good)))

    assert plan.choice is not None
    assert plan.choice.problem is not None
    assert (plan.choice.problem.reason, plan.choice.last_known_good) == (reason, True)
    assert plan.choice.config.type == "RoundRobin"
    assert plan.config_digest == good.config_digest


def test_a_tampered_configuration_is_not_a_last_good_one() -> None:
    owned = after(decided(observed(policy(type="Random"))))
    tampered = owned[CONFIG]
    assert tampered is not None
    tampered["data"][CONFIG_KEY] = tampered["data"][CONFIG_KEY].replace("Random", "PowerOfTwo")

    plan = decided(observed(None, owned=owned))

    assert plan.choice is not None
    assert (plan.choice.config.name, plan.choice.config.type) == ("fallback", "LeastInFlight")
    assert plan.choice.last_known_good is False


def test_a_model_in_force_stays_with_its_policy() -> None:
    model, manifest = builtin_model("policy", "marginal-cost")
    files = {
        "metadata": {"name": "m"},
        "binaryData": {
            "model.onnx": base64.b64encode(model).decode(),
            "manifest.json": base64.b64encode(manifest).decode(),
        },
    }
    own = policy(type="Onnx", model={"configMap": {"name": "m"}, "sha256": digest_of(model)})
    good = decided(observed(own, model=files))
    assert base64.b64decode(config_map(good)["binaryData"][MODEL_KEY]) == model

    kept = decided(observed(None, owned=after(good)))

    assert config_map(kept) == config_map(good)


def test_the_kill_switch_reaches_routers_though_the_model_is_missing() -> None:
    own = {"type": "Onnx", "model": {"configMap": {"name": "gone"}, "sha256": "0" * 64}}
    plan = decided(observed(policy(**own, guard={"forceFallback": True, "fallback": "LMetric"})))

    assert plan.choice is not None
    assert plan.choice.problem is None
    config = parse_router_config(config_map(plan)["data"][CONFIG_KEY].encode())
    assert (config.policy.name, config.policy.guard.force_fallback, config.policy.guard.fallback) == (
        "p",
        True,
        "LMetric",
    )
    again = decided(observed(policy(**own, guard={"forceFallback": True, "fallback": "LMetric"}), owned=after(plan)))
    assert config_map(again) == config_map(plan)


def test_the_shipped_model_is_named_by_its_digest() -> None:
    plan = decided(observed(policy(type="Onnx", model={"builtin": "marginal-cost"})))

    assert plan.choice is not None
    assert plan.choice.config.model_sha256 == digest_of(builtin_model("policy", "marginal-cost")[0])


def test_a_configuration_that_fits_no_config_map_is_refused() -> None:
    pools = [
        {
            "name": f"pool-{index}",
            "endpoints": [f"{'a' * 200}-{number}:1" for number in range(1024)],
            "profile": {"name": "llama-3.1-8b-rtx4090"},
        }
        for index in range(8)
    ]
    what = observed(policy())
    what.router["spec"] = router(pools=pools)

    plan = decided(what)

    assert plan.problem is not None
    assert plan.problem.reason == "ConfigurationTooLarge"
    assert plan.objects == ()


def test_an_invalid_spec_plans_nothing() -> None:
    what = observed(policy())
    what.router["spec"] = router(pools=[])

    plan = decided(what)

    assert plan.problem is not None
    assert plan.problem.reason == "InvalidConfiguration"
    assert plan.objects == ()


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"ownerReferences": [{"controller": True, "kind": "LLMRouter", "uid": "an earlier one"}]},
        {"ownerReferences": [{"controller": True, "kind": "Other", "uid": "uid-1"}]},
    ],
)
def test_what_belongs_to_something_else_stops_the_plan(metadata: Object) -> None:
    theirs: Object = {"metadata": {"name": CONFIG.name, "labels": {"llmrouter.dev/router": "not-fleet"}} | metadata}

    plan = decided(observed(policy(), owned=dict.fromkeys(Names(KEY).refs()) | {CONFIG: theirs}))

    assert plan.problem is not None
    assert plan.problem.reason == "NameConflict"
    assert plan.objects == ()


def test_applying_is_needed_for_what_differs_alone() -> None:
    desired = config_map(decided(observed(policy())))
    seen = json.loads(json.dumps(desired))
    seen["metadata"] |= {"resourceVersion": "7", "managedFields": []}
    seen["metadata"]["labels"]["someone.else/label"] = "stays"

    assert needs_apply(desired, None)
    assert not needs_apply(desired, seen)
    edited = copy.deepcopy(seen)
    edited["data"][CONFIG_KEY] = "{}"
    assert needs_apply(desired, edited)
    assert changed_by_hand(desired, edited)
    newer = config_map(decided(observed(policy(type="Random"))))
    assert needs_apply(newer, seen)

    assert not changed_by_hand(newer, seen)
    assert newer["metadata"]["annotations"][DIGEST_ANNOTATION] != desired["metadata"]["annotations"][DIGEST_ANNOTATION]


def test_what_is_empty_and_left_out_by_the_api_server_is_not_applied_again() -> None:
    def value(spec: dict[str, object]) -> dict[str, object]:
        return {"metadata": {"annotations": {APPLIED_ANNOTATION: "d"}}, "spec": spec}

    assert not needs_apply(value({"a": 1, "list": [], "map": {}}), value({"a": 1}))
    assert not needs_apply(value({"map": {}}), value({"map": {"default": 1}}))
    assert needs_apply(value({"list": []}), value({"list": ["by hand"]}))

"""Which length predictor a plan has: the declared one, the one in force, or none with a model. Pure."""

from __future__ import annotations

import base64
import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
from support.crd_cases import router

from llmrouter.artefacts import builtin_model
from llmrouter.config import (
    CONFIG_KEY,
    MAX_CONFIG_BYTES,
    PREDICTOR_MANIFEST_KEY,
    PREDICTOR_MODEL_KEY,
    PredictorConfig,
    digest_of,
    parse_router_config,
)
from llmrouter_operator.builders import Names
from llmrouter_operator.decide import decide
from llmrouter_operator.models import CONFIG_MAP, Object, ObjectKey, Observed, Plan, Ref, RouterDefaults

if TYPE_CHECKING:
    from llmrouter_operator.models import PredictorChoice

KEY = ObjectKey("team", "fleet")
DEFAULTS = RouterDefaults(image="example.test/router:1")
TEXT, TEXT_MANIFEST = builtin_model("output_length", "text")
FOREST, FOREST_MANIFEST = builtin_model("output_length", "random-forest")
POLICY, POLICY_MANIFEST = builtin_model("policy", "marginal-cost")
Bytes = tuple[bytes, bytes]


def files(model: bytes, manifest: bytes) -> Object:
    return {"binaryData": {"model.onnx": encoded(model)}, "data": {"manifest.json": manifest.decode()}}


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def padded(model: bytes, manifest: bytes, size: int) -> Bytes:
    """Bytes of a size with a manifest that fits them: an operator runs no model."""
    content = model.ljust(size, b"\0")
    return content, json.dumps(json.loads(manifest) | {"sha256": digest_of(content)}).encode()


def own(model: bytes, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any field
    return {"model": {"configMap": {"name": "lengths"}, "sha256": digest_of(model)}} | changes


def decided(
    predictor: dict[str, Any],
    given: Bytes | None,
    *,
    policy: Bytes | None = None,
    after: Plan | None = None,
) -> Plan:
    """A plan for a predictor whose ConfigMap holds ``given``, with a plain policy or a model of one's own."""
    spec: Object = {"type": "RoundRobin"}
    if policy is not None:
        spec = {"type": "Onnx", "model": {"configMap": {"name": "policy"}, "sha256": digest_of(policy[0])}}
    owned: dict[Ref, Object | None] = dict.fromkeys(Names(KEY).refs())
    if after is not None:
        owned[Ref(CONFIG_MAP, "fleet-router-config")] = copy.deepcopy(after.objects[0])
    metadata = {"name": "fleet", "namespace": "team", "uid": "uid-1", "generation": 4}
    observed = Observed(
        router={"metadata": metadata, "spec": router(predictor=predictor)},
        policy={"metadata": {"name": "p", "namespace": "team"}, "spec": spec},
        model=None if policy is None else files(*policy),
        predictor_model=None if given is None else files(*given),
        owned=owned,
        pods=(),
    )
    return decide(observed, DEFAULTS)


def choice(plan: Plan) -> PredictorChoice:
    assert plan.predictor is not None, plan.problem
    return plan.predictor


def reasons(plan: Plan) -> tuple[str | None, str | None]:
    """Why policy and predictor are not as declared."""
    assert plan.choice is not None, plan.problem
    policy, predictor = plan.choice.problem, choice(plan).problem
    return policy.reason if policy else None, predictor.reason if predictor else None


def written(plan: Plan) -> PredictorConfig:
    """The section that routers read, which is the one that the plan names."""
    config = parse_router_config(plan.objects[0]["data"][CONFIG_KEY].encode()).predictor
    assert config == choice(plan).config
    return config


@pytest.mark.parametrize("kind", ["Text", "RandomForest", "Applications", "Constant"])
def test_what_needs_no_model_of_ones_own_is_as_declared(kind: str) -> None:
    plan = decided({"type": kind, "deadlineMilliseconds": 7, "exploration": 0.5, "constantTokens": 9}, None)

    assert written(plan) == PredictorConfig(
        type=kind,
        deadline_milliseconds=7,
        exploration=0.5,
        constant_tokens=9,
    )
    assert reasons(plan) == (None, None)
    assert "binaryData" not in plan.objects[0]


@pytest.mark.parametrize(
    ("kind", "given"), [("Text", (TEXT, TEXT_MANIFEST)), ("RandomForest", (FOREST, FOREST_MANIFEST))]
)
def test_a_model_of_ones_own_travels_with_the_configuration(kind: str, given: Bytes) -> None:
    plan = decided(own(given[0], type=kind), given)

    assert reasons(plan) == (None, None)
    assert written(plan).model_sha256 == digest_of(given[0])
    assert base64.b64decode(plan.objects[0]["binaryData"][PREDICTOR_MODEL_KEY]) == given[0]
    assert plan.objects[0]["data"][PREDICTOR_MANIFEST_KEY].encode() == given[1]


BROKEN = {
    "ModelNotFound": (own(TEXT), None),
    "DigestMismatch": (own(FOREST), (TEXT, TEXT_MANIFEST)),
    "ManifestInvalid": (own(POLICY), (POLICY, POLICY_MANIFEST)),
    "ModelCorrupt": (own(TEXT[:-1]), (TEXT[:-1], TEXT_MANIFEST)),
    "TypeMismatch": (own(TEXT, type="RandomForest"), (TEXT, TEXT_MANIFEST)),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_first_model_that_cannot_run_leaves_quantiles_of_applications(reason: str) -> None:
    predictor, given = BROKEN[reason]

    plan = decided(predictor | {"constantTokens": 9}, given)

    assert reasons(plan) == (None, reason)
    assert written(plan) == PredictorConfig(type="Applications", constant_tokens=9)
    assert plan.troubled


@pytest.mark.parametrize("reason", BROKEN)
def test_a_later_model_that_cannot_run_leaves_the_one_in_force(reason: str) -> None:
    good = decided(own(FOREST, type="RandomForest"), (FOREST, FOREST_MANIFEST))
    predictor, given = BROKEN[reason]

    plan = decided(predictor | {"constantTokens": 9}, given, after=good)

    assert reasons(plan) == (None, reason)
    assert written(plan) == PredictorConfig(type="RandomForest", model_sha256=digest_of(FOREST), constant_tokens=9)
    assert plan.objects[0]["binaryData"] == good.objects[0]["binaryData"]


def test_a_model_in_force_that_another_hand_changed_is_not_kept() -> None:
    good = decided(own(TEXT), (TEXT, TEXT_MANIFEST))
    good.objects[0]["binaryData"][PREDICTOR_MODEL_KEY] = encoded(FOREST)

    plan = decided(own(TEXT), None, after=good)

    assert written(plan) == PredictorConfig(type="Applications")


def test_a_broken_predictor_leaves_the_policy_alone_and_the_reverse() -> None:
    good = decided(own(TEXT), (TEXT, TEXT_MANIFEST), policy=(POLICY, POLICY_MANIFEST))

    no_lengths = decided(own(TEXT), None, policy=(POLICY, POLICY_MANIFEST), after=good)
    no_policy = decided(own(TEXT), (TEXT, TEXT_MANIFEST), policy=(POLICY[:-1], POLICY_MANIFEST), after=good)

    assert reasons(no_lengths) == (None, "ModelNotFound")
    assert reasons(no_policy) == ("ModelCorrupt", None)
    assert no_lengths.config_digest == no_policy.config_digest == good.config_digest


LARGE_TEXT = padded(TEXT, TEXT_MANIFEST, 700_000)
LARGE_POLICY = padded(POLICY, POLICY_MANIFEST, 400_000)
SMALL = (own(TEXT), (TEXT, TEXT_MANIFEST))
LARGE = (own(LARGE_TEXT[0]), LARGE_TEXT)


def test_a_predictor_that_does_not_fit_beside_the_policy_in_force_is_refused() -> None:
    before = decided({}, None, policy=LARGE_POLICY)

    plan = decided(*LARGE, policy=LARGE_POLICY, after=before)

    assert reasons(plan) == (None, "ModelTooLarge")
    assert written(plan).model_sha256 is None
    assert written(plan).type == "Text"


def test_a_policy_that_does_not_fit_beside_the_predictor_in_force_is_refused() -> None:
    before = decided(*LARGE, policy=(POLICY, POLICY_MANIFEST))

    plan = decided(*LARGE, policy=LARGE_POLICY, after=before)

    assert reasons(plan) == ("ModelTooLarge", None)
    assert plan.choice is not None
    assert plan.choice.config.model_sha256 == digest_of(POLICY)
    assert written(plan).model_sha256 == digest_of(LARGE_TEXT[0])


def test_of_two_first_models_that_do_not_fit_together_the_policy_runs() -> None:
    plan = decided(*LARGE, policy=LARGE_POLICY)

    assert reasons(plan) == (None, "ModelTooLarge")
    assert written(plan).type == "Applications"
    problem = choice(plan).problem
    assert problem is not None
    assert str(MAX_CONFIG_BYTES) in problem.message


def test_two_models_that_fit_neither_together_nor_alone_are_both_refused() -> None:
    before = decided(*SMALL, policy=(POLICY, POLICY_MANIFEST))
    huge_text, huge_policy = padded(TEXT, TEXT_MANIFEST, 990_000), padded(POLICY, POLICY_MANIFEST, 999_000)

    plan = decided(own(huge_text[0]), huge_text, policy=huge_policy, after=before)

    assert reasons(plan) == ("ModelTooLarge", "ModelTooLarge")
    assert plan.objects[0]["binaryData"] == before.objects[0]["binaryData"]

"""Chooses the policy that routers are told to run: the referenced one, else the last good one, else the fallback."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from llmrouter.artefacts import builtin_model
from llmrouter.config import (
    CONFIG_KEY,
    DIGEST_ANNOTATION,
    MANIFEST_KEY,
    MODEL_KEY,
    PolicyConfig,
    compile_policy,
    digest_of,
    explain,
    parse_router_config,
)
from llmrouter.errors import InvalidConfigError, ModelRejectedError
from llmrouter.manifest import MAX_MODEL_BYTES, ModelKind, Rejection, check_manifest, parse_manifest
from llmrouter.resources import RoutingPolicySpec
from llmrouter_operator.models import ModelFiles, PolicyChoice, Problem

if TYPE_CHECKING:
    from llmrouter.resources import ConfigMapModelRef, PolicyModelSpec
    from llmrouter_operator.models import Object

FALLBACK = PolicyConfig(name="fallback", type="LeastInFlight")
"""What runs where there never was a good policy."""


class LastGood(NamedTuple):
    """The policy in force, as the configuration that routers read has it."""

    config: PolicyConfig
    files: ModelFiles | None


def choose_policy(name: str, policy: Object | None, model: Object | None, last_good: LastGood | None) -> PolicyChoice:
    """The referenced policy if it can be run; else what is in force stays, with the reason."""
    try:
        return _compile(name, policy, model)
    except (InvalidConfigError, ModelRejectedError) as error:
        return keep_last_good(Problem(str(error.reason), str(error)), last_good)


def keep_last_good(problem: Problem, last_good: LastGood | None) -> PolicyChoice:
    """The policy in force, or the fallback, because of ``problem``."""
    if last_good is None or last_good.config == FALLBACK:
        return PolicyChoice(config=FALLBACK, problem=problem)
    return PolicyChoice(config=last_good.config, files=last_good.files, problem=problem, last_known_good=True)


def read_last_good(config_map: Object | None) -> LastGood | None:
    """The policy that a config ConfigMap carries; ``None`` where it has none or is not as the operator left it."""
    data = (config_map or {}).get("data") or {}
    content = str(data.get(CONFIG_KEY, "")).encode()
    annotations = (config_map or {}).get("metadata", {}).get("annotations") or {}
    if annotations.get(DIGEST_ANNOTATION) != digest_of(content):
        return None
    try:
        policy = parse_router_config(content).policy
        return LastGood(policy, _files_in_force(policy, config_map or {}))
    except (InvalidConfigError, ModelRejectedError):
        return None  # the digest is right: another version of the operator wrote it; its policy cannot be kept


def model_reference(policy: Object | None) -> str | None:
    """Name of the ConfigMap that a RoutingPolicy takes its model from, if it is from one."""
    reference = (((policy or {}).get("spec") or {}).get("model") or {}).get("configMap") or {}
    return reference.get("name")


def _files_in_force(policy: PolicyConfig, config_map: Object) -> ModelFiles | None:
    if policy.type != "Onnx" or policy.model_builtin is not None:
        return None
    encoded = (config_map.get("binaryData") or {}).get(MODEL_KEY, "")
    manifest = (config_map.get("data") or {}).get(MANIFEST_KEY, "")
    if digest_of(_decode(encoded)) != policy.model_sha256:
        raise ModelRejectedError(Rejection.DIGEST_MISMATCH, "the model in force is not the one its policy names")
    return ModelFiles(encoded, manifest)


def _compile(name: str, policy: Object | None, model: Object | None) -> PolicyChoice:
    if policy is None:
        raise InvalidConfigError(f"RoutingPolicy {name!r} does not exist", reason="PolicyNotFound")
    try:
        spec = RoutingPolicySpec.model_validate(policy.get("spec"))
    except ValidationError as error:
        raise InvalidConfigError(f"RoutingPolicy {name!r}: {explain(error)}", reason="PolicyInvalid") from error
    if spec.model is None:
        return PolicyChoice(config=compile_policy(name, spec, model_sha256=None))
    if spec.model.config_map is None:
        return PolicyChoice(config=compile_policy(name, spec, model_sha256=_builtin_sha256(spec.model)))
    files = _read_model(spec.model.config_map, model, expected_sha256=spec.model.sha256 or "")
    return PolicyChoice(config=compile_policy(name, spec, model_sha256=spec.model.sha256), files=files)


def _builtin_sha256(model: PolicyModelSpec) -> str | None:
    """Digest of a shipped model, or ``None`` where this image ships none: then the routers say what they have."""
    try:
        content, manifest = builtin_model(ModelKind.POLICY, model.builtin or "")
    except InvalidConfigError:
        return model.sha256
    sha256 = digest_of(content)
    check_manifest(
        parse_manifest(manifest), expected_kind=ModelKind.POLICY, model_sha256=sha256, expected_sha256=model.sha256
    )
    return sha256


def _read_model(reference: ConfigMapModelRef, config_map: Object | None, *, expected_sha256: str) -> ModelFiles:
    if config_map is None:
        raise InvalidConfigError(f"ConfigMap {reference.name!r} does not exist", reason="ModelNotFound")
    encoded = (config_map.get("binaryData") or {}).get(reference.model_key)
    if encoded is None:
        raise InvalidConfigError(
            f"ConfigMap {reference.name!r} has no binaryData key {reference.model_key!r}", reason="ModelNotFound"
        )
    content = _decode(encoded)
    if len(content) > MAX_MODEL_BYTES:
        raise InvalidConfigError(
            f"the model has {len(content)} bytes, more than {MAX_MODEL_BYTES}", reason="ModelTooLarge"
        )
    manifest = _read_manifest(reference, config_map)
    check_manifest(
        parse_manifest(manifest),
        expected_kind=ModelKind.POLICY,
        model_sha256=digest_of(content),
        expected_sha256=expected_sha256,
    )
    return ModelFiles(encoded, manifest.decode())


def _read_manifest(reference: ConfigMapModelRef, config_map: Object) -> bytes:
    text = (config_map.get("data") or {}).get(reference.manifest_key)
    if text is not None:
        return str(text).encode()
    encoded = (config_map.get("binaryData") or {}).get(reference.manifest_key)
    if encoded is None:
        raise InvalidConfigError(
            f"ConfigMap {reference.name!r} has no key {reference.manifest_key!r}", reason="ModelNotFound"
        )
    return _decode(encoded)


def _decode(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ModelRejectedError(Rejection.MODEL_CORRUPT, f"not base64: {error}") from error

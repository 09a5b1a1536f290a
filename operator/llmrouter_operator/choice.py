"""Chooses the policy that routers are told to run: the referenced one, else the last good one, else the fallback."""

from __future__ import annotations

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
from llmrouter.manifest import ModelKind, check_manifest, check_type, parse_manifest
from llmrouter.resources import MODEL_TYPES, RoutingPolicySpec
from llmrouter_operator.model_files import check_claim, files_in_force, read_model
from llmrouter_operator.models import PolicyChoice, Problem

if TYPE_CHECKING:
    from llmrouter.config import RouterConfig
    from llmrouter.resources import PolicyModelSpec
    from llmrouter_operator.models import ModelFiles, Object, Seen

FALLBACK = PolicyConfig(name="fallback", type="LeastInFlight")
"""What runs where there never was a good policy."""


class LastGood(NamedTuple):
    """The policy in force, as the configuration that routers read has it."""

    config: PolicyConfig
    files: ModelFiles | None


def choose_policy(
    name: str, policy: Object | None, model: Seen, last_good: LastGood | None, *, claim: str | None = None
) -> PolicyChoice:
    """The referenced policy if it can be run; else what is in force stays, with the reason.

    ``claim`` is the one that routers mount for models.
    """
    try:
        return compile_referenced(name, policy, model, claim=claim)
    except (InvalidConfigError, ModelRejectedError) as error:
        return keep_last_good(Problem(str(error.reason), str(error)), last_good)


def keep_last_good(problem: Problem, last_good: LastGood | None) -> PolicyChoice:
    """The policy in force, or the fallback, because of ``problem``."""
    if last_good is None or last_good.config == FALLBACK:
        return PolicyChoice(config=FALLBACK, problem=problem)
    return PolicyChoice(config=last_good.config, files=last_good.files, problem=problem, last_known_good=True)


def config_in_force(config_map: Object | None) -> RouterConfig | None:
    """What a config ConfigMap carries; ``None`` where it has nothing or is not as the operator left it."""
    data = (config_map or {}).get("data") or {}
    content = str(data.get(CONFIG_KEY, "")).encode()
    annotations = (config_map or {}).get("metadata", {}).get("annotations") or {}
    if annotations.get(DIGEST_ANNOTATION) != digest_of(content):
        return None
    try:
        return parse_router_config(content)
    except InvalidConfigError:
        return None  # the digest is right: another version of the operator wrote it; nothing of it can be kept


def read_last_good(config_map: Object | None) -> LastGood | None:
    """The policy that a config ConfigMap carries; ``None`` where it has none or is not as the operator left it."""
    config = config_in_force(config_map)
    if config is None:
        return None
    try:
        return LastGood(config.policy, _files_in_force(config.policy, config_map or {}))
    except ModelRejectedError:
        return None  # another hand changed the model: what is declared is decided anew


def _files_in_force(policy: PolicyConfig, config_map: Object) -> ModelFiles | None:
    is_elsewhere = policy.model_builtin is not None or policy.model_path is not None
    if policy.type not in MODEL_TYPES or is_elsewhere or policy.guard.force_fallback:
        return None
    return files_in_force(config_map, model_key=MODEL_KEY, manifest_key=MANIFEST_KEY, sha256=policy.model_sha256)


def compile_referenced(name: str, policy: Object | None, model: Seen, *, claim: str | None) -> PolicyChoice:
    """The policy of that name; raises InvalidConfigError or ModelRejectedError where it cannot be run."""
    if policy is None:
        raise InvalidConfigError(f"RoutingPolicy {name!r} does not exist", reason="PolicyNotFound")
    try:
        spec = RoutingPolicySpec.model_validate(policy.get("spec"))
    except ValidationError as error:
        raise InvalidConfigError(f"RoutingPolicy {name!r}: {explain(error)}", reason="PolicyInvalid") from error
    if spec.model is None:
        return PolicyChoice(config=compile_policy(name, spec, model_sha256=None))
    if spec.guard.force_fallback:  # the kill switch works though the model is missing or bad: nobody will load it
        return PolicyChoice(config=compile_policy(name, spec, model_sha256=spec.model.sha256))
    if spec.model.builtin is not None:
        return PolicyChoice(config=compile_policy(name, spec, model_sha256=_builtin_sha256(spec.model)))
    sha256 = spec.model.sha256 or ""
    if spec.model.persistent_volume_claim is not None:  # only routers see the volume: they check what is on it
        check_claim(spec.model, claim)
        return PolicyChoice(config=compile_policy(name, spec, model_sha256=sha256))
    files, manifest = read_model(spec.model, model, kind=ModelKind.POLICY, expected_sha256=sha256)
    check_type(manifest, spec.type)
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

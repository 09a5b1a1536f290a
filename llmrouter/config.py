"""The compiled router configuration: what the operator writes, every router runs, and a digest names.

``compile_router`` is pure; the operator and the standalone mode call the same function.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from llmrouter.decision_log_spec import DecisionLogSpec, ExplorationSpec
from llmrouter.domain import BatchHold, EngineMode, EngineProfile, ObjectiveWeights, Preferences
from llmrouter.errors import InvalidConfigError
from llmrouter.feature_set import LENGTH_FEATURE_VERSION
from llmrouter.listener_specs import ListenersSpec
from llmrouter.objectives import BATCH_HOLDS, PREFERENCES, PRESETS
from llmrouter.profiles import PROFILES
from llmrouter.resource_types import HostPort, LabelMap, ModelName, Port, RelativePath, Resource, Sha256
from llmrouter.resources import (
    Calibrate,
    GuardSpec,
    HoldSpec,
    InlineProfile,
    LimitsSpec,
    LLMRouterSpec,
    Locality,
    ObjectiveSpec,
    OutliersSpec,
    PolicyType,
    PoolRole,
    PoolSpec,
    PredictorBase,
    PredictorSpec,
    PredictorType,
    PrefillDecodeSpec,
    PrefixAffinitySpec,
    QueueSpec,
    RoutingPolicySpec,
    StateSpec,
)
from llmrouter.rollout_specs import CandidateMode, GuardrailsSpec, Percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.manifest import Manifest
    from llmrouter.model_sources import ModelSource

CONFIG_VERSION = 1
CONFIG_KEY = "router.json"
MODEL_KEY = "policy.onnx"
MANIFEST_KEY = "policy.manifest.json"
CANDIDATE_MODEL_KEY = "candidate.onnx"
CANDIDATE_MANIFEST_KEY = "candidate.manifest.json"
PREDICTOR_MODEL_KEY = "predictor.onnx"
PREDICTOR_MANIFEST_KEY = "predictor.manifest.json"
DIGEST_ANNOTATION = "llmrouter.dev/config-digest"
MAX_CONFIG_BYTES = 1_000_000
"""The bound of a ConfigMap."""
MODELS_FOLDER = "/var/lib/llmrouter/models"
"""Where router pods mount ``spec.router.models``."""
TOKENIZERS_FOLDER = "/var/lib/llmrouter/tokenizers"
"""Where router pods mount ``spec.router.tokenizers``."""
CERTIFICATE_FOLDER = "/var/lib/llmrouter/certificate"
"""Where router pods mount the Secret of ``listeners.extProc.certificateSecretRef``."""

POLICIES_BY_COST = frozenset({"Onnx", "Learned", "WorkloadImpact"})
"""Types whose room is KV where ``hold.room`` does not say and requests may be held."""

TYPES_THAT_BATCH = frozenset({"Onnx", "WorkloadImpact"})
"""Types that let prompts wait for each other; see ``routing.batching``."""


class PolicyConfig(Resource):
    """A RoutingPolicy as routers run it; ``model_*`` are set for types Onnx and Learned only."""

    name: str
    type: PolicyType
    model_builtin: str | None = None
    model_sha256: Sha256 | None = None
    model_path: RelativePath | None = None
    """Folder of the model below that of models, where it is there and not beside this configuration."""
    objective: ObjectiveSpec = ObjectiveSpec()
    hold: HoldSpec = HoldSpec()
    queue: QueueSpec = QueueSpec()
    guard: GuardSpec = GuardSpec()
    prefix_affinity: PrefixAffinitySpec = PrefixAffinitySpec()
    exploration: ExplorationSpec = ExplorationSpec()

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON: what ``status.activePolicy.digest`` shows."""
        return digest_of(canonical_json(self))

    @property
    def weights(self) -> ObjectiveWeights:
        """The objective as the policy takes it: the preset's weights, and those that are given in their place."""
        preset = PRESETS[self.objective.preset]
        given = {name: getattr(self.objective, f"{name}_weight") for name in preset.as_mapping()}
        return replace(preset, **{name: value for name, value in given.items() if value is not None})

    @property
    def batch_hold(self) -> BatchHold:
        """How long a head waits at will for a batch: the preset's numbers, and those that are given in their place."""
        preset, hold = BATCH_HOLDS[self.objective.preset], self.hold
        if not hold.enabled or self.type not in TYPES_THAT_BATCH:
            return BatchHold()
        wait_s = preset.wait_s if hold.batch_wait_seconds is None else hold.batch_wait_seconds
        return BatchHold(
            size=hold.batch_size or preset.size,
            wait_s=min(wait_s, self.guard.max_hold_seconds),
            stale_after_s=self.guard.stale_after_seconds,
            longest_wait_s=hold.max_wait_seconds,
        )

    @property
    def preferences(self) -> Preferences:
        """What a learned policy is to care for: the preset's preferences, and those that are given in their place."""
        given = self.objective.preferences.model_dump(exclude_none=True)
        return replace(PREFERENCES[self.objective.preset], **given)

    @property
    def room_is_kv(self) -> bool:
        """Whether an instance has room while its KV fits the request; else while it has few enough requests."""
        if self.hold.room is not None:
            return self.hold.room == "Kv"
        return self.hold.enabled and self.type in POLICIES_BY_COST


class CandidateConfig(Resource):
    """The policy on trial as routers run it. Requests of its arm are those of ``rollout.arms.arm_of``."""

    policy: PolicyConfig
    mode: CandidateMode
    percent: Percent = 10
    guardrails: GuardrailsSpec = GuardrailsSpec()
    voices: int = Field(default=2, ge=1, le=8192)
    """Whose share of the false alarms a process has that judges its own arms: half are the operator's alone."""


class PredictorConfig(PredictorBase):
    """The length predictor as routers run it; ``model_*`` are set for a model of one's own alone."""

    model_sha256: Sha256 | None = None
    model_path: RelativePath | None = None


class PoolConfig(Resource):
    """A pool with its profile resolved."""

    name: str
    models: tuple[ModelName, ...]
    match_labels: LabelMap | None = None
    inference_pool: str | None = None
    endpoints: tuple[HostPort, ...] | None = None
    target_port: Port = 8000
    role: PoolRole = "Mixed"
    locality: Locality | None = None
    continues_chat: bool = False
    profile_name: str
    profile: InlineProfile
    calibrate: Calibrate = "Slowness"

    def engine_profile(self) -> EngineProfile:
        """The profile as policies take it."""
        p = self.profile
        return EngineProfile(
            name=self.profile_name,
            base_decode_s=p.base_decode_seconds,
            base_prefill_s=p.base_prefill_seconds,
            prefill_s_per_token=p.prefill_seconds_per_token,
            prefill_s_per_token_squared=p.prefill_seconds_per_token_squared,
            context_s_per_token=p.context_seconds_per_token,
            sequence_s=p.sequence_seconds,
            kv_tokens=p.kv_tokens,
            block_tokens=p.block_tokens,
            max_sequences=p.max_sequences,
            token_budget=p.token_budget,
            mode=EngineMode(p.mode),
        )


class RouterConfig(Resource):
    """Everything a router needs to know, from one pair of resources."""

    version: int = Field(default=CONFIG_VERSION, ge=CONFIG_VERSION, le=CONFIG_VERSION)
    name: str
    namespace: str
    generation: int = 0
    pools: tuple[PoolConfig, ...]
    policy: PolicyConfig
    candidate: CandidateConfig | None = None
    predictor: PredictorConfig = PredictorConfig()
    tokenizers: dict[ModelName, RelativePath] = Field(default_factory=dict, max_length=32)
    """Paths of ``tokenizer.json`` files below the folder of tokenizers, by model."""
    state: StateSpec = StateSpec()
    listeners: ListenersSpec = ListenersSpec()
    limits: LimitsSpec = LimitsSpec()
    outliers: OutliersSpec = OutliersSpec()
    prefill_decode: PrefillDecodeSpec = PrefillDecodeSpec()
    decision_log: DecisionLogSpec = DecisionLogSpec()
    log_level: str = "INFO"

    @property
    def models(self) -> frozenset[str]:
        """Models that any pool serves."""
        return frozenset(model for pool in self.pools for model in pool.models)

    @property
    def trial(self) -> str:
        """``trial_of`` the policy and its candidate; empty without one."""
        one = self.candidate
        return "" if one is None else trial_of(self.policy, one.policy, mode=one.mode, percent=one.percent)

    @property
    def has_stages(self) -> bool:
        """Whether any pool does one stage of requests alone."""
        return any(pool.role != "Mixed" for pool in self.pools)


def compile_policy(name: str, spec: RoutingPolicySpec, *, model_sha256: str | None) -> PolicyConfig:
    """A policy section from a RoutingPolicy; ``model_sha256`` is the digest of the model's bytes as they were read."""
    return PolicyConfig(
        name=name,
        type=spec.type,
        model_builtin=spec.model.builtin if spec.model else None,
        model_sha256=model_sha256,
        model_path=_path_on_claim(spec.model),
        objective=spec.objective,
        hold=spec.hold,
        queue=spec.queue,
        guard=spec.guard,
        prefix_affinity=spec.prefix_affinity,
        exploration=spec.exploration,
    )


def predictor_type_of(manifest: Manifest) -> PredictorType:
    """The type of predictor that an output-length model is made for."""
    return "Text" if manifest.feature_version > LENGTH_FEATURE_VERSION else "RandomForest"


def compile_predictor(spec: PredictorSpec) -> PredictorConfig:
    """A predictor section as it is declared."""
    same = spec.model_dump(include=set(PredictorBase.model_fields))
    sha256 = spec.model.sha256 if spec.model else None
    return PredictorConfig(**same, model_sha256=sha256, model_path=_path_on_claim(spec.model))


def _path_on_claim(model: ModelSource | None) -> str | None:
    claim = None if model is None else model.persistent_volume_claim
    return None if claim is None else claim.path


def compile_router(
    spec: LLMRouterSpec,
    *,
    name: str,
    namespace: str,
    generation: int,
    policy: PolicyConfig,
    candidate: PolicyConfig | None = None,
    predictor: PredictorConfig | None = None,
) -> RouterConfig:
    """The router configuration of one LLMRouter; raises InvalidConfigError for an unknown profile.

    ``candidate`` is the policy that ``spec.candidate`` refers to, where it is to run; ``predictor`` is the section in
    force where that is not the declared one.
    """
    served = tuple(model.name for model in spec.models)
    return RouterConfig(
        name=name,
        namespace=namespace,
        generation=generation,
        pools=tuple(_compile_pool(pool, served) for pool in spec.pools),
        policy=policy,
        candidate=None if candidate is None else _compile_candidate(spec, candidate),
        predictor=predictor or compile_predictor(spec.predictor),
        tokenizers={model.name: model.tokenizer for model in spec.models if model.tokenizer is not None},
        state=spec.state,
        listeners=spec.listeners,
        limits=spec.limits,
        outliers=spec.outliers,
        prefill_decode=spec.prefill_decode,
        decision_log=spec.decision_log,
        log_level=spec.router.log_level,
    )


def _compile_candidate(spec: LLMRouterSpec, policy: PolicyConfig) -> CandidateConfig | None:
    if spec.candidate is None:
        return None
    same = spec.candidate.model_dump(include={"mode", "percent", "guardrails"})
    return CandidateConfig(policy=policy, voices=2 * max(1, spec.router.replicas * spec.router.processes), **same)


def trial_of(current: PolicyConfig, candidate: PolicyConfig, *, mode: CandidateMode, percent: int) -> str:
    """Names what is compared.

    What was counted of one trial says nothing of another: arms begin anew where this changes, and what a router says of
    its arms names the trial they are of.
    """
    return digest_of(f"{current.digest} {candidate.digest} {mode} {percent}".encode())[:16]


def canonical_json(model: Resource) -> bytes:
    """The one spelling of a value: camelCase, sorted keys, no spaces, ``None`` left out."""
    values = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_of(content: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def parse_router_config(content: bytes) -> RouterConfig:
    """Reads ``canonical_json`` of a RouterConfig back; raises InvalidConfigError naming the field."""
    if len(content) > MAX_CONFIG_BYTES:
        raise InvalidConfigError(f"router configuration: {len(content)} bytes, more than {MAX_CONFIG_BYTES}")
    try:
        return RouterConfig.model_validate_json(content)
    except ValidationError as error:
        raise InvalidConfigError(f"router configuration: {explain(error)}") from error


def explain(error: ValidationError) -> str:
    """One clear line: the field, what is wrong with it, and how many more such there are."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    first = problems[0]
    where = _path(first["loc"]) or "spec"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {first['msg']}{more}"


def _path(loc: Sequence[str | int]) -> str:
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def _compile_pool(pool: PoolSpec, served: tuple[str, ...]) -> PoolConfig:
    profile_name, profile = _resolve_profile(pool)
    return PoolConfig(
        name=pool.name,
        models=pool.models or served,
        match_labels=pool.selector.match_labels if pool.selector else None,
        inference_pool=pool.inference_pool_ref.name if pool.inference_pool_ref else None,
        endpoints=pool.endpoints,
        target_port=pool.target_port,
        role=pool.role,
        locality=pool.locality,
        continues_chat=pool.continues_chat,
        profile_name=profile_name,
        profile=profile,
        calibrate=pool.profile.calibrate,
    )


def engine_profile_of(pool: PoolSpec) -> EngineProfile:
    """The profile of a declared pool; raises InvalidConfigError where there is none of its name."""
    return _compile_pool(pool, ()).engine_profile()


def _resolve_profile(pool: PoolSpec) -> tuple[str, InlineProfile]:
    if pool.profile.inline is not None:
        return f"{pool.name}-inline", pool.profile.inline
    name = pool.profile.name or ""
    known = PROFILES.get(name)
    if known is None:
        raise InvalidConfigError(
            f"pools[{pool.name}].profile.name: {name!r} is none of {', '.join(sorted(PROFILES))}",
            reason="UnknownProfile",
        )
    return name, InlineProfile(
        base_decode_seconds=known.base_decode_s,
        base_prefill_seconds=known.base_prefill_s,
        prefill_seconds_per_token=known.prefill_s_per_token,
        prefill_seconds_per_token_squared=known.prefill_s_per_token_squared,
        context_seconds_per_token=known.context_s_per_token,
        sequence_seconds=known.sequence_s,
        kv_tokens=known.kv_tokens,
        block_tokens=known.block_tokens,
        max_sequences=known.max_sequences,
        token_budget=known.token_budget,
        mode=known.mode.value,
    )

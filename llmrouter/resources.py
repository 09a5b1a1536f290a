"""The custom resources as values: the trust boundary of the operator and of standalone files.

The bounds here and those of ``crds/`` are the same; a test holds them together.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from llmrouter.decision_log_spec import DecisionLogSpec, ExplorationSpec
from llmrouter.domain import DECODE_RESERVE_FRACTION
from llmrouter.listener_specs import ListenersSpec
from llmrouter.model_sources import ModelSource
from llmrouter.rebalance_specs import PoolScaleSpec, RebalanceSpec, check_rebalance
from llmrouter.resource_types import (
    ConfigMapKey,
    DnsLabel,
    HostPort,
    LabelMap,
    ModelName,
    NameRef,
    ObjectName,
    Port,
    QuantityMap,
    RelativePath,
    Resource,
    Sha256,
    unique,
)
from llmrouter.rollout_specs import CandidateSpec  # noqa: TC001 - a field of a pydantic model

GROUP = "llmrouter.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

PlainPolicyType = Literal[
    "RoundRobin", "Random", "LeastInFlight", "PowerOfTwo", "LeastKvTokens", "LMetric", "PrefillLoad", "TokenLoad"
]
"""Policies that need neither model nor prediction."""

QueueOrder = Literal[
    "FirstComeFirstServed",
    "ShortestPredicted",
    "PredictedRank",
    "HighestResponseRatio",
    "LeastSlack",
    "EarliestDeadline",
    "ModifiedDueDate",
]
"""The orders of ``routing/orders.py``."""

PredictingPolicyType = Literal[
    "WorkloadImpact",
    "OwnLatency",
    "LeastTokensLeft",
    "DecodeBalancer",
    "MinMin",
    "MixingPenalty",
    "MixingPenaltyScaled",
]
"""Policies that are a formula over predicted output lengths."""

PolicyType = Literal["Onnx", "Learned", PlainPolicyType, PredictingPolicyType]

MODEL_TYPES = {"Onnx": "marginal-cost", "Learned": "learned"}
"""Types that a model decides for, and the model of each that is shipped."""

PredictorType = Literal["Text", "RandomForest", "Applications", "Constant"]
"""Who says how long an answer will be; the first two are models."""


class ModelSpec(Resource):
    """A model that clients may ask for."""

    name: ModelName
    tokenizer: RelativePath | None = None


class InlineProfile(Resource):
    """Step-time coefficients (seconds) and limits of an engine; the formula is that of the named profiles."""

    base_decode_seconds: float = Field(gt=0, le=10)
    base_prefill_seconds: float = Field(gt=0, le=10)
    prefill_seconds_per_token: float = Field(ge=0, le=1)
    prefill_seconds_per_token_squared: float = Field(default=0.0, ge=0, le=1)
    context_seconds_per_token: float = Field(ge=0, le=1)
    sequence_seconds: float = Field(ge=0, le=1)
    kv_tokens: int = Field(ge=16, le=1_000_000_000)
    block_tokens: int = Field(default=16, ge=1, le=1024)
    max_sequences: int = Field(ge=1, le=65536)
    token_budget: int = Field(default=2048, ge=1, le=1_000_000)
    mode: Literal["Chunked", "PrefillFirst"] = "Chunked"


Calibrate = Literal["None", "Slowness", "Full"]
"""What of the learned step times decisions use: see ``routing/calibration_use.py``."""


class ProfileRef(Resource):
    """The step-time model of a pool's engines: a shipped one by name, or coefficients of one's own."""

    name: ObjectName | None = None
    inline: InlineProfile | None = None
    calibrate: Calibrate = "Slowness"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name is None) == (self.inline is None):
            raise ValueError("exactly one of name and inline must be set")
        return self


class SelectorSpec(Resource):
    """Pods by their labels, in the namespace of the LLMRouter."""

    match_labels: LabelMap = Field(min_length=1, max_length=16)


Locality = Annotated[str, StringConstraints(min_length=1, max_length=253)]

PoolRole = Literal["Mixed", "Prefill", "Decode"]
"""What a pool's instances do: whole requests, or one stage of them."""


class PoolSpec(PoolScaleSpec):
    """Instances of one kind."""

    name: DnsLabel
    models: tuple[ModelName, ...] | None = Field(default=None, min_length=1, max_length=32)
    selector: SelectorSpec | None = None
    inference_pool_ref: NameRef | None = None
    endpoints: tuple[HostPort, ...] | None = Field(default=None, min_length=1, max_length=1024)
    target_port: Port = 8000
    role: PoolRole = "Mixed"
    locality: Locality | None = None
    continues_chat: bool = False
    profile: ProfileRef

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [one for one in (self.selector, self.inference_pool_ref, self.endpoints) if one is not None]
        if len(given) != 1:
            raise ValueError("exactly one of selector, inferencePoolRef and endpoints must be set")
        if self.scale_target_ref is not None and self.endpoints is not None:
            raise ValueError("scaleTargetRef needs selector or inferencePoolRef: endpoints are no pods")
        return self


class PredictorModelSpec(ModelSource):
    """An output-length model of one's own, as ``llmrouter predictor fit`` makes it."""

    sha256: Sha256

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.sources_given != 1:
            raise ValueError("exactly one of configMap, persistentVolumeClaim, http and oci must be set")
        return self


class PredictorBase(Resource):
    """What is said of a predictor where it is declared and where it runs."""

    type: PredictorType = "Text"
    constant_tokens: int = Field(default=256, ge=1, le=1_000_000)
    deadline_milliseconds: float = Field(default=2.0, ge=0.1, le=100)
    exploration: float = Field(default=0.0, ge=0, le=5)


class PredictorSpec(PredictorBase):
    """Who says how long an answer will be; without a ``model``, the shipped one of the type."""

    model: PredictorModelSpec | None = None

    @model_validator(mode="after")
    def _model_for_models(self) -> Self:
        if self.model is not None and self.type not in {"Text", "RandomForest"}:
            raise ValueError("model may be set for the types Text and RandomForest alone")
        return self


class SecretKeyRef(Resource):
    """One key of a Secret in the same namespace."""

    name: ObjectName
    key: ConfigMapKey


class RedisSpec(Resource):
    """Where the shared ledger lives."""

    address: HostPort
    tls: bool = False
    password_secret_ref: SecretKeyRef | None = None


class StateSpec(Resource):
    """The shared state of the routers; absent, each router counts for itself, which one replica may do."""

    redis: RedisSpec | None = None
    heartbeat_seconds: float = Field(default=1.0, ge=0.1, le=60)
    heartbeat_timeout_seconds: float = Field(default=5.0, ge=0.5, le=600)

    @model_validator(mode="after")
    def _timeout_exceeds_beat(self) -> Self:
        if self.heartbeat_timeout_seconds < 2 * self.heartbeat_seconds:
            raise ValueError("heartbeatTimeoutSeconds must be at least twice heartbeatSeconds")
        return self


class ResourcesSpec(Resource):
    """Compute resources of a router container, by resource name."""

    requests: QuantityMap | None = Field(default=None, max_length=16)
    limits: QuantityMap | None = Field(default=None, max_length=16)


class ClaimRef(Resource):
    """A PersistentVolumeClaim, in the same namespace."""

    claim_name: ObjectName


class TokenizersSpec(Resource):
    """The folder of ``tokenizer.json`` files that router pods mount, read-only."""

    persistent_volume_claim: ClaimRef | None = None
    config_map: NameRef | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.persistent_volume_claim is None) == (self.config_map is None):
            raise ValueError("exactly one of persistentVolumeClaim and configMap must be set")
        return self


class ModelsFolderSpec(Resource):
    """The volume of models that router pods mount, read-only."""

    persistent_volume_claim: ClaimRef


class RouterSpec(Resource):
    """How the router pods run."""

    replicas: int = Field(default=2, ge=0, le=256)
    processes: int = Field(default=1, ge=1, le=16)
    image: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    resources: ResourcesSpec = ResourcesSpec()
    node_selector: LabelMap = Field(default_factory=dict, max_length=16)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    tokenizers: TokenizersSpec | None = None
    models: ModelsFolderSpec | None = None

    @property
    def models_claim(self) -> str | None:
        """Name of the claim that models may be on, if pods mount one."""
        return None if self.models is None else self.models.persistent_volume_claim.claim_name


class LimitsSpec(Resource):
    """Bounds of what is admitted and counted."""

    max_prompt_tokens: int = Field(default=131_072, ge=1, le=10_000_000)
    max_in_flight_per_instance: int = Field(default=512, ge=1, le=65536)
    claim_timeout_seconds: float = Field(default=30.0, ge=1, le=3600)
    report_grace_seconds: float = Field(default=5.0, ge=0, le=600)
    scrape_interval_seconds: float = Field(default=1.0, ge=0.1, le=60)


LEAST_TTFT_FACTOR = 1.5
"""What is late by less is not told from the others."""


class OutliersSpec(Resource):
    """When an instance that fails, or is far later than the others, gets no request; how one begins that is new."""

    consecutive_failures: int = Field(default=5, ge=0, le=1000)
    eject_seconds: float = Field(default=10.0, ge=0.1, le=300)
    max_ejected_fraction: float = Field(default=0.5, ge=0, le=1)
    ttft_factor: float = Field(default=4.0, ge=0, le=100)
    slow_start_seconds: float = Field(default=10.0, ge=0, le=600)

    @model_validator(mode="after")
    def _factor_or_none(self) -> Self:
        if 0 < self.ttft_factor < LEAST_TTFT_FACTOR:
            raise ValueError(f"ttftFactor must be 0 or at least {LEAST_TTFT_FACTOR:g}")
        return self


class PrefillDecodeSpec(Resource):
    """When one instance computes the prompt and another decodes, where pools have such roles."""

    min_prefill_tokens: int = Field(default=256, ge=0, le=1_000_000)
    cross_locality_seconds: float = Field(default=0.1, ge=0, le=60)


class LLMRouterSpec(Resource):
    """What to route over and how to run it."""

    models: tuple[ModelSpec, ...] = Field(min_length=1, max_length=32)
    pools: tuple[PoolSpec, ...] = Field(min_length=1, max_length=32)
    policy_ref: NameRef
    candidate: CandidateSpec | None = None
    predictor: PredictorSpec = PredictorSpec()
    state: StateSpec = StateSpec()
    listeners: ListenersSpec = ListenersSpec()
    router: RouterSpec = RouterSpec()
    limits: LimitsSpec = LimitsSpec()
    outliers: OutliersSpec = OutliersSpec()
    prefill_decode: PrefillDecodeSpec = PrefillDecodeSpec()
    rebalance: RebalanceSpec | None = None
    decision_log: DecisionLogSpec = DecisionLogSpec()

    @model_validator(mode="after")
    def _predictor_on_mounted_claim(self) -> Self:
        model = self.predictor.model
        claim = None if model is None else model.persistent_volume_claim
        if claim is not None and claim.claim_name != self.router.models_claim:
            raise ValueError("predictor.model.persistentVolumeClaim.claimName must be that of router.models")
        return self

    @model_validator(mode="after")
    def _both_stages(self) -> Self:
        for model in self.models:
            roles = {pool.role for pool in self.pools if model.name in (pool.models or (model.name,))}
            if roles == {"Prefill"}:
                raise ValueError("pools[].role: a model with Prefill pools needs Decode or Mixed pools")
            if "Decode" in roles and "Prefill" not in roles:
                raise ValueError("pools[].role: a model with Decode pools needs Prefill pools")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        unique("models", [model.name for model in self.models])
        unique("pools", [pool.name for pool in self.pools])
        if self.candidate is not None and self.candidate.policy_ref.name == self.policy_ref.name:
            raise ValueError("candidate.policyRef.name must name another RoutingPolicy than policyRef")
        check_rebalance(self.rebalance, self.pools)
        served = {model.name for model in self.models}
        for pool in self.pools:
            if unknown := sorted(set(pool.models or ()) - served):
                raise ValueError(f"pools[{pool.name}].models names {unknown[0]!r}, which spec.models does not")
        if self.router.replicas > 1 and self.state.redis is None:
            raise ValueError("router.replicas above 1 needs state.redis, so that the routers count as one")
        if self.router.processes > 1 and self.state.redis is None:
            raise ValueError("router.processes above 1 needs state.redis, so that the processes count as one")
        if not self.listeners.has_free_behind_picker(self.router.processes):
            raise ValueError(
                "router.processes: the ports behind listeners.extProc.port, one for each process, must be free"
            )
        front = self.listeners.openai
        if front is not None and front.resume == "Tokens" and not all(pool.continues_chat for pool in self.pools):
            raise ValueError("listeners.openai.resume: Tokens needs continuesChat of every pool")
        if self.router.tokenizers is None and any(model.tokenizer is not None for model in self.models):
            raise ValueError("models[].tokenizer needs router.tokenizers, the folder that it is in")
        return self


class PolicyModelSpec(ModelSource):
    """Where the ONNX model of a policy comes from."""

    builtin: Literal["marginal-cost", "learned"] | None = None
    sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.sources_given + (self.builtin is not None) != 1:
            raise ValueError("exactly one of builtin, configMap, persistentVolumeClaim, http and oci must be set")
        if self.builtin is None and self.sha256 is None:
            raise ValueError("sha256 is required for a model that is not builtin")
        return self


Weight = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


Preference = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class PreferencesSpec(Resource):
    """What a learned policy is to care for, each beside the others; what is not given is the preset's."""

    ttft: Preference | None = None
    tpot: Preference | None = None
    e2e: Preference | None = Field(default=None, alias="e2e")
    fairness: Preference | None = None


class ObjectiveSpec(Resource):
    """What a policy by cost is for: a preset, and weights of the cost's terms (seconds) in place of the preset's."""

    preset: Literal["SLO", "Balanced", "E2E"] = "Balanced"
    wait_weight: Weight | None = None
    decode_weight: Weight | None = None
    stall_weight: Weight | None = None
    slowdown_weight: Weight | None = None
    coalesce_weight: Weight | None = None
    overflow_weight: Weight | None = None
    spread_weight: Weight | None = None
    pressure_weight: Weight | None = None
    reuse_weight: Weight | None = None
    preferences: PreferencesSpec = PreferencesSpec()


class HoldSpec(Resource):
    """What counts as room, whether requests wait at the router for it, and for how long at most."""

    enabled: bool = True
    room: Literal["Kv", "Requests"] | None = None
    max_wait_seconds: float = Field(default=10.0, ge=0, le=600)
    kv_fraction: float = Field(default=1.0, ge=0.1, le=1.0)
    decode_reserve_fraction: float = Field(default=DECODE_RESERVE_FRACTION, ge=0, le=1)
    batch_size: int | None = Field(default=None, ge=1, le=64)
    batch_wait_seconds: float | None = Field(default=None, ge=0, le=5)


class TenantWeight(Resource):
    """A tenant's share: one of weight 2 is served twice the tokens of one of weight 1."""

    tenant: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    weight: float = Field(ge=0.001, le=1000)


class FairnessSpec(Resource):
    """Whether the tenant that was served least goes next; tenants that are not named have a weight of 1."""

    enabled: bool = False
    weights: tuple[TenantWeight, ...] = Field(default=(), max_length=256)

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        unique("queue.fairness.weights", [one.tenant for one in self.weights])
        return self


class BatchSpec(Resource):
    """The batch class: where and when requests go that nobody waits for; see ``routing/batch.py``."""

    fill_fraction: float = Field(default=0.1, ge=0.01, le=1)
    max_queued_tokens: int = Field(default=0, ge=0, le=10_000_000)
    max_wait_seconds: float = Field(default=600.0, ge=0, le=86_400)
    patience_seconds: float = Field(default=300.0, ge=0, le=86_400)
    least_share: float = Field(default=0.02, ge=0, le=0.5)
    depth_fraction: float = Field(default=0.5, ge=0, le=1)


class QueueSpec(Resource):
    """Who of the held requests goes next, and how many there may be."""

    order: QueueOrder = "FirstComeFirstServed"
    aging_seconds: float = Field(default=10.0, ge=0.1, le=3600)
    max_depth: int = Field(default=1024, ge=0, le=100_000)
    max_bytes: int = Field(default=268_435_456, ge=0, le=1_099_511_627_776)
    fairness: FairnessSpec = FairnessSpec()
    batch: BatchSpec = BatchSpec()


class GuardSpec(Resource):
    """What decides where the policy cannot, and what the policy is held to."""

    fallback: PlainPolicyType = "LeastInFlight"
    decision_budget_milliseconds: float = Field(default=20.0, ge=0.1, le=1000)
    force_fallback: bool = False
    max_hold_seconds: float = Field(default=5.0, ge=0, le=60)
    stale_after_seconds: float = Field(default=1.0, ge=0.1, le=60)
    max_share_factor: float = Field(default=4.0, ge=1, le=1000)
    max_clamped_fraction: float = Field(default=0.5, ge=0, le=1)


class PrefixAffinitySpec(Resource):
    """Whether prompt tokens that an instance probably has in its prefix cache count as computed."""

    enabled: bool = True


class RoutingPolicySpec(Resource):
    """What SREs tune."""

    type: PolicyType
    model: PolicyModelSpec | None = None
    objective: ObjectiveSpec = ObjectiveSpec()
    hold: HoldSpec = HoldSpec()
    queue: QueueSpec = QueueSpec()
    guard: GuardSpec = GuardSpec()
    prefix_affinity: PrefixAffinitySpec = PrefixAffinitySpec()
    exploration: ExplorationSpec = ExplorationSpec()

    @model_validator(mode="after")
    def _model_for_onnx(self) -> Self:
        if (self.type in MODEL_TYPES) != (self.model is not None):
            raise ValueError("model must be set for types Onnx and Learned, and only for them")
        if self.model is not None and self.model.builtin not in {None, MODEL_TYPES[self.type]}:
            raise ValueError(f"model.builtin of type {self.type} is {MODEL_TYPES[self.type]}")
        return self

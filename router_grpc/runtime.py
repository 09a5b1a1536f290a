"""A configuration made runnable: the guarded policy, the predictor and what to say about them. Swapped as a whole."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmrouter.artefacts import builtin_model
from llmrouter.config import digest_of, parse_router_config
from llmrouter.domain import ObjectiveWeights
from llmrouter.errors import InvalidConfigError, ModelRejectedError
from llmrouter.manifest import Rejection
from llmrouter.resources import MODEL_TYPES
from llmrouter.routing.catalogue import make_policy
from llmrouter.routing.envelope import Envelope, Enveloped, EnvelopedNetwork, EnvelopedState
from llmrouter.routing.exploring import Exploring
from llmrouter.routing.formulas import MinMin, OwnLatency, WorkloadImpact
from llmrouter.routing.guard import Guard, GuardRules, Why
from llmrouter.routing.learned import Learned, PaperAgent, SharedAgent
from llmrouter.routing.outliers import OutlierRules
from llmrouter.routing.policies import PowerOfTwo, Scored
from llmrouter.routing.rooms import kv_gate, request_bound
from llmrouter.routing.rules import OWN_ALONE
from llmrouter.routing.stages import Staged, StageRules
from router_grpc.adapters.onnx_model import OnnxSharedNetwork, load_network, load_scorer
from router_grpc.adapters.own_models import Files, OwnModels
from router_grpc.adapters.tokenizers import load_tokenizers
from router_grpc.candidate import CandidateRuntime
from router_grpc.length_plans import length_plan
from router_grpc.readiness import Readiness

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmrouter.config import PolicyConfig, RouterConfig
    from llmrouter.domain import InstanceView, Room
    from llmrouter.manifest import Manifest
    from llmrouter.routing.learned import Agent
    from llmrouter.routing.policies import Policy
    from router_grpc.length_plans import Tokenizers
    from router_grpc.length_service import LengthPlan


_log = logging.getLogger(__name__)

_BY_OWN_SECONDS = frozenset({OwnLatency.name, MinMin.name})
"""Policies whose scores are seconds of the request itself."""


@dataclass(frozen=True, slots=True)
class ConfigBundle:
    """A configuration as it was read, before anything of it is believed."""

    content: bytes
    declared_digest: str | None = None
    model: bytes | None = None
    manifest: bytes | None = None
    candidate_model: bytes | None = None
    candidate_manifest: bytes | None = None
    predictor_model: bytes | None = None
    predictor_manifest: bytes | None = None


@dataclass(frozen=True, slots=True)
class Runtime:
    """What one request needs of the configuration; immutable, so that a request sees one and the same."""

    config: RouterConfig
    digest: str
    guard: Guard
    degraded: Guard
    lengths: LengthPlan
    policy_readiness: Readiness
    predictor_readiness: Readiness
    provider: str
    policy_digest: str
    models: frozenset[str]
    candidate: CandidateRuntime | None = None
    refused_digest: str | None = None

    @property
    def outliers(self) -> OutlierRules:
        """When instances that fail are left out."""
        spec = self.config.outliers
        return OutlierRules(spec.consecutive_failures, spec.eject_seconds, spec.max_ejected_fraction, spec.ttft_factor)

    @property
    def deciding(self) -> str:
        """Name of the policy that decides now."""
        return self.guard.primary.name if self.guard.standing_in is None else self.guard.fallback.name

    @property
    def policy_now(self) -> Readiness:
        """Whether the policy decides as declared; it does not while it rests."""
        why = self.guard.standing_in
        if why is None or not self.policy_readiness.ready:
            return self.policy_readiness
        reason = "TooSlow" if why is Why.LATE else str(why)
        return Readiness(ready=False, reason=reason, message=f"{self.deciding} decides while the policy rests")

    def refusing(self, digest: str, readiness: Readiness) -> Runtime:
        """The same runtime, saying that a newer configuration was refused and why."""
        return replace(self, refused_digest=digest, policy_readiness=readiness)


@dataclass(frozen=True, slots=True)
class Served:
    """A policy as it is to be served: what its model runs on, and the ranges that the model was made for.

    ``decode`` is the policy for requests whose prompt is computed elsewhere, where that is another one: by cost.
    """

    policy: Policy
    provider: str = ""
    envelope: Envelope | None = None
    decode: Policy | None = None


class RuntimeBuilder:
    """Makes runtimes.

    Args:
        clock: seconds, never going back.
        find_model: brings a shipped artefact by kind and name.
        tokenizers: folder of tokenizers; ``None`` where there is none.
        own: brings models that are not shipped; ``None`` takes them from configurations, untried.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        find_model: Callable[[str, str], tuple[bytes, bytes]] = builtin_model,
        tokenizers: Path | None = None,
        own: OwnModels | None = None,
    ) -> None:
        self.own = own or OwnModels()
        self._clock = clock
        self._find_model = find_model
        self._folder = tokenizers
        self._tokenizers: tuple[dict[str, str], Tokenizers] = ({}, ({}, ()))

    def build(self, bundle: ConfigBundle) -> Runtime:
        """A runtime of exactly this configuration.

        Raises:
            InvalidConfigError: it cannot be read, or its digest is not the declared one.
            ModelRejectedError: its policy's model must not run.
        """
        config, _ = read_config(bundle)
        self.own.begin()
        return self._assemble(bundle, *self._served(config, bundle))

    def build_on_fallback(self, bundle: ConfigBundle, why: ModelRejectedError) -> Runtime:
        """A runtime whose declared fallback decides, for a router that never had a good policy."""
        config, _ = read_config(bundle)
        refused = Readiness(ready=False, reason=why.reason, message=str(why))
        return self._assemble(bundle, Served(_fallback(config)), refused)

    def _served(self, config: RouterConfig, bundle: ConfigBundle) -> tuple[Served, Readiness]:
        if config.policy.guard.force_fallback:
            message = f"guard.forceFallback is set: {config.policy.guard.fallback} decides"
            return Served(_fallback(config)), Readiness(ready=False, reason=str(Why.FORCED), message=message)
        return self._policy(config, bundle), Readiness(ready=True, reason="Active")

    def _candidate(self, config: RouterConfig, bundle: ConfigBundle) -> CandidateRuntime | None:
        """The candidate, made as if it were the policy; whatever is wrong with it is its own affair alone."""
        declared = config.candidate
        if declared is None:
            return None
        as_current = config.model_copy(update={"policy": declared.policy, "candidate": None})
        own = replace(bundle, model=bundle.candidate_model, manifest=bundle.candidate_manifest)
        guard, provider = None, ""
        try:
            served, readiness = self._served(as_current, own)
            guard, provider = self._guard(as_current, served), served.provider
        except (InvalidConfigError, ModelRejectedError) as error:
            readiness = Readiness(ready=False, reason=error.reason, message=str(error))
        except Exception as error:  # noqa: BLE001 - the current policy serves on; logged and acknowledged
            _log.exception("the candidate cannot be made: it gets no request")
            readiness = Readiness(ready=False, reason=str(Why.ERROR), message=f"{type(error).__name__}: {error}")
        digest = declared.policy.digest
        return CandidateRuntime(declared, config.trial, digest, guard, readiness, provider)

    def _policy(self, config: RouterConfig, bundle: ConfigBundle) -> Served:
        policy = config.policy
        if policy.type not in MODEL_TYPES:
            made = make_policy(policy.type, _room_rule(config), policy.weights, policy.batch_hold)
            by_cost = isinstance(made, WorkloadImpact)
            return Served(made, decode=WorkloadImpact(_room_rule(config), _decoding(policy)) if by_cost else None)
        model, manifest = self._model_bytes(policy, bundle)
        if policy.type == "Learned":
            return _learned(config, model, manifest)
        scorer = load_scorer(model, manifest, expected_sha256=policy.model_sha256)
        envelope = _envelope(config, scorer.manifest)
        enveloped = Enveloped(scorer, envelope)
        primary = Scored(_room_rule(config), enveloped, policy.weights, policy.batch_hold)
        decode = Scored(_room_rule(config), enveloped, _decoding(policy))
        return Served(primary, scorer.provider, envelope, decode)

    def _model_bytes(self, policy: PolicyConfig, bundle: ConfigBundle) -> tuple[bytes, bytes]:
        if policy.model_builtin is not None:
            try:
                return self._find_model("policy", policy.model_builtin)
            except InvalidConfigError as error:  # the configuration is good: it is the model that is missing
                raise ModelRejectedError(error.reason, str(error)) from error
        return self.own.policy(policy, _carried(bundle.model, bundle.manifest))

    def _assemble(self, bundle: ConfigBundle, served: Served, readiness: Readiness) -> Runtime:
        config, digest = read_config(bundle)
        tokenizers = self._read_tokenizers(config)
        carried = _carried(bundle.predictor_model, bundle.predictor_manifest)
        lengths, predictor_readiness = length_plan(
            config.predictor, lambda: self.own.predictor(config.predictor, carried), self._find_model,
            tokenizers=tokenizers,
        )  # fmt: skip
        return Runtime(
            config=config,
            digest=digest,
            guard=self._guard(config, served),
            degraded=self._guard(config, Served(PowerOfTwo(_bound(config)))),
            lengths=lengths,
            policy_readiness=readiness,
            predictor_readiness=predictor_readiness,
            provider=served.provider,
            policy_digest=config.policy.digest,
            models=config.models,
            candidate=self._candidate(config, bundle),
        )

    def _guard(self, config: RouterConfig, served: Served) -> Guard:
        spec, hold = config.policy.guard, config.policy.hold
        rules = GuardRules(
            forced=spec.force_fallback,
            max_share_factor=spec.max_share_factor,
            stale_after_s=spec.stale_after_seconds,
            longest_hold_s=spec.max_hold_seconds if hold.enabled else 0.0,
            longest_wait_s=hold.max_wait_seconds,
        )
        return Guard(
            *_staged(config, served),
            budget_s=spec.decision_budget_milliseconds / 1000,
            clock=self._clock,
            rules=rules,
            envelope=served.envelope,
        )

    def _read_tokenizers(self, config: RouterConfig) -> Tokenizers:
        """Those that the configuration names; they are large: read again only where it names others, or one failed."""
        paths, (_, problems) = self._tokenizers
        if paths != config.tokenizers or problems:
            self._tokenizers = (config.tokenizers, load_tokenizers(self._folder, config.tokenizers))
        return self._tokenizers[1]


def read_config(bundle: ConfigBundle) -> tuple[RouterConfig, str]:
    """The configuration and its digest; raises InvalidConfigError where that is not the declared one."""
    digest = digest_of(bundle.content)
    if bundle.declared_digest is not None and bundle.declared_digest != digest:
        raise InvalidConfigError(
            f"digest is {digest[:12]}, declared is {bundle.declared_digest[:12]}: edited by hand?",
            reason="DigestMismatch",
        )
    return parse_router_config(bundle.content), digest


def _carried(model: bytes | None, manifest: bytes | None) -> Files | None:
    return None if model is None or manifest is None else Files(model, manifest)


def _envelope(config: RouterConfig, manifest: Manifest) -> Envelope:
    most = config.policy.guard.max_clamped_fraction
    return Envelope.of(manifest.bounds, manifest.feature_names, max_clamped_fraction=most)


def _learned(config: RouterConfig, model: bytes, manifest: bytes) -> Served:
    policy = config.policy
    network, loaded = load_network(model, manifest, expected_sha256=policy.model_sha256)
    envelope = _envelope(config, loaded.manifest)
    agent: Agent
    if isinstance(network, OnnxSharedNetwork):
        agent = SharedAgent(EnvelopedNetwork(network, envelope), policy.preferences)
    elif config.state.redis is not None:
        raise ModelRejectedError(
            Rejection.SINGLE_ROUTER_ONLY,
            "an agent of the paper's state sees every request in flight: it needs the only router, without state.redis",
        )
    else:
        agent = PaperAgent(EnvelopedState(network, envelope))
    return Served(Learned(_room_rule(config), agent), loaded.provider, envelope)


def _staged(config: RouterConfig, served: Served) -> tuple[Policy, Policy]:
    """The policy and its fallback, made to choose for both stages where there are pools for one."""
    policy, fallback = served.policy, _fallback(config)
    if not config.has_stages:
        return _exploring(config, policy), fallback
    spec = config.prefill_decode
    rules = StageRules(spec.min_prefill_tokens, spec.cross_locality_seconds)
    weights = config.policy.weights if served.decode is not None else None
    if policy.name in _BY_OWN_SECONDS:
        weights = ObjectiveWeights(*OWN_ALONE)
    return Staged(policy, rules, decode=served.decode, weights=weights), Staged(fallback, rules)


def _exploring(config: RouterConfig, policy: Policy) -> Policy:
    fraction = config.policy.exploration.fraction
    return Exploring(policy, fraction) if fraction > 0.0 else policy


def _decoding(policy: PolicyConfig) -> ObjectiveWeights:
    """Weights for requests whose prompt is computed elsewhere: that it is no new one there speaks for nobody."""
    return replace(policy.weights, reuse=0.0)


def _fallback(config: RouterConfig) -> Policy:
    return make_policy(config.policy.guard.fallback, _bound(config))


def _bound(config: RouterConfig) -> Callable[[InstanceView], Room]:
    return request_bound(config.limits.max_in_flight_per_instance)


def _room_rule(config: RouterConfig) -> Callable[[InstanceView], Room]:
    hold = config.policy.hold
    return kv_gate(hold.kv_fraction, hold.decode_reserve_fraction) if config.policy.room_is_kv else _bound(config)

"""Decides what an LLMRouter should own, from what was observed: pure."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from llmrouter.config import MAX_CONFIG_BYTES, canonical_json, compile_router, digest_of, explain
from llmrouter.errors import InvalidConfigError
from llmrouter.resources import LLMRouterSpec
from llmrouter.rollout.life import Phase
from llmrouter_operator.builders import Names, Owner, build_config_map, build_objects
from llmrouter_operator.candidate import choose_candidate
from llmrouter_operator.choice import choose_policy, config_in_force, keep_last_good, read_last_good
from llmrouter_operator.models import (
    CONFIG_MAP,
    Plan,
    Problem,
    Ref,
    belongs,
    key_of,
    metadata_of,
)
from llmrouter_operator.pickers import build_picker_services, choose_pools
from llmrouter_operator.predictor_choice import choose_predictor, keep_last, last_predictor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmrouter_operator.candidate import CandidateChoice
    from llmrouter_operator.choice import LastGood
    from llmrouter_operator.models import (
        Object,
        ObjectKey,
        Observed,
        PolicyChoice,
        PredictorChoice,
        RouterDefaults,
    )
    from llmrouter_operator.predictor_choice import LastPredictor

APPLIED_ANNOTATION = "llmrouter.dev/applied-digest"
"""On everything owned: digest of what was applied, which tells a new wish from a change by another hand."""


def decide(observed: Observed, defaults: RouterDefaults) -> Plan:
    """What the LLMRouter should own now, and the policy it should run, with the reason where that is another one."""
    key = key_of(observed.router)
    conflict = _name_conflict(observed, key)
    if conflict is not None:
        return Plan(key=key, spec=None, choice=None, config_digest=None, problem=conflict)
    try:
        spec = LLMRouterSpec.model_validate(observed.router.get("spec"))
        return _plan(observed, spec, defaults)
    except ValidationError as error:
        problem = Problem(InvalidConfigError.reason, explain(error))
    except InvalidConfigError as error:
        problem = Problem(error.reason, str(error))
    return Plan(key=key, spec=None, choice=None, config_digest=None, problem=problem)


def needs_apply(desired: Object, observed: Object | None) -> bool:
    """Whether ``observed`` lacks something of ``desired``, or was made from another wish."""
    if observed is None:
        return True
    return _applied_digest(observed) != _applied_digest(desired) or not _contains(observed, desired)


def changed_by_hand(desired: Object, observed: Object) -> bool:
    """Whether ``observed`` was made from this very wish and yet differs from it."""
    return _applied_digest(observed) == _applied_digest(desired) and not _contains(observed, desired)


def _plan(observed: Observed, spec: LLMRouterSpec, defaults: RouterDefaults) -> Plan:
    metadata = metadata_of(observed.router)
    owner = Owner(key_of(observed.router), metadata["uid"])
    in_force = observed.owned.get(Ref(CONFIG_MAP, owner.names.config))
    last = _Last(read_last_good(in_force), last_predictor(config_in_force(in_force), in_force))
    declared = _Chosen(
        choose_policy(
            spec.policy_ref.name, observed.policy, observed.model, last.policy, claim=spec.router.models_claim
        ),
        choose_predictor(spec.predictor, observed.predictor_model, last.predictor, claim=spec.router.models_claim),
    )
    chosen, config = _fitting(observed, spec, _with_candidate(observed, spec, declared, last), last)
    on_trial = chosen.on_trial
    config_map = build_config_map(
        owner,
        config,
        chosen.policy.files,
        predictor=chosen.predictor.files,
        candidate=None if on_trial is None else on_trial.files,
    )
    pools = choose_pools(owner, spec, observed.inference_pools, observed.owned)
    objects = (*build_objects(owner, spec, config_map, defaults), *build_picker_services(owner, pools))
    return Plan(
        key=owner.key,
        spec=spec,
        choice=chosen.policy,
        config_digest=digest_of(config),
        predictor=chosen.predictor,
        objects=tuple(_stamp(value) for value in objects),
        inference_pools=pools,
        candidate=chosen.candidate,
    )


class _Chosen(NamedTuple):
    policy: PolicyChoice
    predictor: PredictorChoice
    candidate: CandidateChoice | None = None

    @property
    def on_trial(self) -> PolicyChoice | None:
        return None if self.candidate is None else self.candidate.on_trial


class _Last(NamedTuple):
    policy: LastGood | None
    predictor: LastPredictor | None


def _with_candidate(observed: Observed, spec: LLMRouterSpec, declared: _Chosen, last: _Last) -> _Chosen:
    """The same with the candidate: beside the policy, or in its place once it is promoted.

    A promoted one that can no longer be made, because its RoutingPolicy is gone, is the last good policy.
    """
    routers = observed.owned.get(Ref(CONFIG_MAP, Names(key_of(observed.router)).acknowledgements))
    candidate = choose_candidate(observed, spec, declared.policy, routers)
    if candidate is None or candidate.life.phase is not Phase.PROMOTED:
        return declared._replace(candidate=candidate)
    if candidate.policy is not None:
        return declared._replace(policy=candidate.policy, candidate=candidate)
    return declared._replace(policy=keep_last_good(candidate.problem, last.policy), candidate=candidate)


def _fitting(observed: Observed, spec: LLMRouterSpec, declared: _Chosen, last: _Last) -> tuple[_Chosen, bytes]:
    """What one ConfigMap holds, and its configuration: models that are too large give way to what was in force.

    The candidate's gives way first, which is then refused; then the predictor's, then the policy's instead, then both.
    Raises InvalidConfigError where nothing fits.
    """
    config = _compile(observed, spec, declared)
    size = _size(config, declared)
    if size <= MAX_CONFIG_BYTES:
        return declared, config
    why = Problem("ModelTooLarge", f"configuration and models have {size} bytes together, more than {MAX_CONFIG_BYTES}")
    if declared.candidate is not None and declared.on_trial is not None:
        refused = declared.candidate.refused(why, observed.at)
        return _fitting(observed, spec, declared._replace(candidate=refused), last)
    for chosen in _alternatives(declared, why, spec, last):
        config = _compile(observed, spec, chosen)
        size = _size(config, chosen)
        if size <= MAX_CONFIG_BYTES:
            return chosen, config
    raise InvalidConfigError(
        f"the compiled configuration has {size} bytes, more than {MAX_CONFIG_BYTES}", reason="ConfigurationTooLarge"
    )


def _alternatives(declared: _Chosen, why: Problem, spec: LLMRouterSpec, last: _Last) -> Iterator[_Chosen]:
    policies, predictors = [declared.policy], [declared.predictor]
    if declared.policy.files is not None:
        policies.append(keep_last_good(why, last.policy))
    if declared.predictor.files is not None:
        predictors.append(keep_last(why, spec.predictor, last.predictor))
    return (_Chosen(*pair, declared.candidate) for pair in itertools.product(policies, predictors))


def _compile(observed: Observed, spec: LLMRouterSpec, chosen: _Chosen) -> bytes:
    key, generation = key_of(observed.router), metadata_of(observed.router)["generation"]
    return canonical_json(
        compile_router(
            spec,
            name=key.name,
            namespace=key.namespace,
            generation=generation,
            policy=chosen.policy.config,
            candidate=None if chosen.on_trial is None else chosen.on_trial.config,
            predictor=chosen.predictor.config,
        )
    )


def _size(config: bytes, chosen: _Chosen) -> int:
    """Bytes that the ConfigMap holds; base64 takes four for every three."""
    parts = (chosen.policy, chosen.predictor, chosen.on_trial)
    files = [one.files for one in parts if one is not None and one.files is not None]
    return len(config) + sum(len(one.onnx_base64) * 3 // 4 + len(one.manifest.encode()) for one in files)


def _name_conflict(observed: Observed, key: ObjectKey) -> Problem | None:
    """Someone else's object of a name that is needed is never taken over."""
    uid = metadata_of(observed.router)["uid"]
    for ref in Names(key).refs():
        value = observed.owned.get(ref)
        if value is not None and not belongs(value, uid, key):
            return Problem("NameConflict", f"{ref.kind.kind} {ref.name!r} exists and belongs to something else")
    return None


def _stamp(value: Object) -> Object:
    digest = digest_of(json.dumps(value, sort_keys=True).encode())[:16]
    metadata = metadata_of(value)
    annotations = {**metadata.get("annotations", {}), APPLIED_ANNOTATION: digest}
    return {**value, "metadata": {**metadata, "annotations": annotations}}


def _applied_digest(value: Object) -> str | None:
    digest: str | None = (metadata_of(value).get("annotations") or {}).get(APPLIED_ANNOTATION)
    return digest


def _contains(observed: object, desired: object) -> bool:
    """Whether every field of ``desired`` is in ``observed`` with the same value; lists item by item.

    What is empty may be absent: the API server leaves it out.
    """
    if observed is None and desired in ({}, []):
        return True
    if isinstance(desired, dict):
        return isinstance(observed, dict) and all(_contains(observed.get(name), item) for name, item in desired.items())
    if isinstance(desired, list):
        if not isinstance(observed, list) or len(observed) != len(desired):
            return False
        return all(_contains(one, other) for one, other in zip(observed, desired, strict=True))
    return observed == desired

"""Another policy asked again what a record's policy was asked: in the same state, on the same loads."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.domain import Instance, InstanceView, Load, Placement, PoolSnapshot, Request
from llmrouter.errors import InvalidConfigError
from llmrouter.resources import LimitsSpec
from llmrouter.routing.catalogue import COUNTING, PREDICTING, make_policy
from llmrouter.routing.exploring import propensities, roomy_of
from llmrouter.routing.formulas import WorkloadImpact
from llmrouter.routing.policies import RoundRobin
from llmrouter.routing.rooms import kv_gate, request_bound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmrouter.config import PolicyConfig
    from llmrouter.decisions.record import DecisionRecord
    from llmrouter.domain import EngineProfile, Room
    from llmrouter.routing.policies import Policy


@dataclass(frozen=True, slots=True)
class State:
    """What a decision saw, as policies see it."""

    request: Request
    snapshot: PoolSnapshot


def state_of(record: DecisionRecord, profiles: Mapping[str, EngineProfile] | None = None) -> State:
    """A record's state; ``profiles`` are the record's, where they are made already."""
    made = profiles or {name: one.engine_profile() for name, one in record.profiles.items()}
    models = frozenset({record.model})
    views = tuple(
        InstanceView(
            Instance(one.id, one.id, one.pool, made[one.profile], models),
            Load(one.requests, one.context_tokens, one.queued_prefill_tokens, one.remaining_decode_tokens),
        )
        for one in record.candidates
    )
    request = Request(
        request_id=record.request_id,
        model=record.model,
        prompt_tokens=record.prompt_tokens,
        predicted_output_tokens=record.predicted_output_tokens,
        arrived_at_s=record.arrived_at_s,
        application=record.application,
        cached_tokens={one.id: one.cached_tokens for one in record.candidates if one.cached_tokens},
    )
    return State(request, PoolSnapshot(views, record.decided_at_s, record.load_age_s))


def room_rule_of(policy: PolicyConfig, max_requests: int) -> Callable[[InstanceView], Room]:
    """What counts as room for a policy."""
    hold = policy.hold
    return kv_gate(hold.kv_fraction, hold.decode_reserve_fraction) if policy.room_is_kv else request_bound(max_requests)


class Chooser:
    """A RoutingPolicy, asked of single decisions. It holds nothing at will: a record does not know who else is held.

    Raises:
        InvalidConfigError: the policy's own model would be needed.
    """

    def __init__(self, policy: PolicyConfig, *, max_requests: int | None = None) -> None:
        self._config = policy
        most = LimitsSpec().max_in_flight_per_instance if max_requests is None else max_requests
        self._policy = _made(policy, room_rule_of(policy, most))
        self._rng = random.Random(0)  # ties alone: they count as each as likely, however they fall

    def probabilities(self, state: State) -> Mapping[str, float] | None:
        """Of each instance to be chosen; empty where the policy would wait; ``None`` where too many tie to tell."""
        decision = self._policy.decide(state.request, state.snapshot, self._rng)
        if not isinstance(decision, Placement):
            return {}
        _, roomy = roomy_of(self._policy.room_of, state.request, state.snapshot.views)
        if self._policy.name == RoundRobin.name:
            return {one.instance.instance_id: 1.0 / len(roomy) for one in roomy}  # where its turn is nobody knows
        return propensities(self._policy.name, decision, roomy, self._config.exploration.fraction)


def _made(policy: PolicyConfig, room: Callable[[InstanceView], Room]) -> Policy:
    if policy.type == "Onnx" and policy.model_builtin is not None:
        return make_policy(WorkloadImpact.name, room, policy.weights)  # the formula that the shipped model is
    if policy.type in COUNTING or policy.type in PREDICTING:
        return make_policy(policy.type, room, policy.weights)
    raise InvalidConfigError(
        f"policy {policy.name}: type {policy.type} cannot be asked again here: formulas can, and Onnx's shipped model"
    )

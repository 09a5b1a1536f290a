"""All policies by name: what ``RoutingPolicy.spec.type``, ``spec.guard.fallback`` and comparisons choose from."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidInputError
from llmrouter.routing.formulas import (
    DecodeBalancer,
    LeastKvTokens,
    LeastTokensLeft,
    LMetric,
    MinMin,
    MixingPenalty,
    MixingPenaltyScaled,
    OwnLatency,
    PrefillLoad,
    TokenLoad,
    WorkloadImpact,
)
from llmrouter.routing.paper import Dedicated, MaxCapacity
from llmrouter.routing.policies import LeastInFlight, PowerOfTwo, Random, RoundRobin

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmrouter.domain import BatchHold, InstanceView, ObjectiveWeights, Room
    from llmrouter.routing.policies import Policy, RoomyPolicy
    from llmrouter.routing.rules import Rule


def _by_name(*policies: type[RoomyPolicy]) -> Mapping[str, type[RoomyPolicy]]:
    return MappingProxyType({policy.name: policy for policy in policies})


COUNTING = _by_name(RoundRobin, Random, LeastInFlight, PowerOfTwo, LeastKvTokens, LMetric, PrefillLoad, TokenLoad)
"""Policies that need neither model nor prediction: what may stand in for another one."""

PREDICTING = _by_name(
    WorkloadImpact,
    OwnLatency,
    LeastTokensLeft,
    DecodeBalancer,
    MinMin,
    MixingPenalty,
    MixingPenaltyScaled,
)
"""Policies that use predicted output lengths."""

COMPARISONS = _by_name(MaxCapacity, Dedicated)
"""Policies that are there to be compared with; no type of RoutingPolicy."""

POLICIES: Mapping[str, type[RoomyPolicy]] = MappingProxyType({**COUNTING, **PREDICTING, **COMPARISONS})
"""Every policy that needs no model, by name."""

RULES: Mapping[str, Rule] = MappingProxyType(
    {name: policy.rule for name, policy in {**COUNTING, **PREDICTING}.items() if policy.rule is not None}
)
"""The rule that decides as a policy does, by the policy's name; those of ``COMPARISONS`` do more than a rule."""


def make_policy(
    name: str,
    room_rule: Callable[[InstanceView], Room],
    weights: ObjectiveWeights | None = None,
    batch_hold: BatchHold | None = None,
) -> Policy:
    """A policy by name; ``weights`` and ``batch_hold`` are read by ``WorkloadImpact`` alone.

    Raises:
        InvalidInputError: no policy has this name.
    """
    if name not in POLICIES:
        raise InvalidInputError(f"policy {name!r} is none of {', '.join(POLICIES)}")
    if name == WorkloadImpact.name:
        return WorkloadImpact(room_rule, weights, batch_hold)
    return POLICIES[name](room_rule)

"""What is searched: numbers of a RoutingPolicy of the default's form, each on a scale on which steps are alike."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrouter.config import compile_policy
from llmrouter.domain import EngineMode, ObjectiveWeights
from llmrouter.resources import HoldSpec, ObjectiveSpec, RoutingPolicySpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from pydantic import BaseModel

    from llmrouter.config import PolicyConfig
    from llmrouter.sim.model import EngineModel

DIGITS = 3
"""Numbers are rounded to so many digits before they are tried: what is written is what was measured."""

FIXED = "wait_weight"
"""The weight that stays where it is, if it is not 0: a common factor of all weights changes no decision."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One number of a RoutingPolicy.

    Far above ``near`` equal steps are equal factors, far below it equal differences, so that 0 can be reached:
    ``value = near · sinh(step)``.

    Attributes:
        section: ``objective`` or ``hold``.
        field: of that section, as Python spells it.
        near: see above; in the field's unit.
        lowest, highest: the field's bounds.
        is_whole: whether it counts something.
    """

    section: str
    field: str
    near: float
    lowest: float
    highest: float
    is_whole: bool = False

    @property
    def path(self) -> str:
        """As the resource spells it: ``objective.stallWeight``."""
        return f"{self.section}.{_SECTIONS[self.section].model_fields[self.field].alias}"

    def step_of(self, value: float) -> float:
        """Where a value lies on the scale."""
        return math.asinh(value / self.near)

    def value_at(self, step: float) -> float:
        """The value there, within the bounds, to ``DIGITS`` digits."""
        value = min(max(self.near * math.sinh(step), self.lowest), self.highest)
        return round(value) if self.is_whole else float(f"{value:.{DIGITS}g}")


_SECTIONS: dict[str, type[BaseModel]] = {"objective": ObjectiveSpec, "hold": HoldSpec}
_NEAR_WEIGHT = 0.05
_NEAR_FRACTION = 0.1
_NEAR_COUNT = 1.0
_NEAR_WAIT_S = 0.05
_COALESCE = "coalesce_weight"
_REUSE = "reuse_weight"
_BELOW = 1.0


def parameters(policy: RoutingPolicySpec, engines: Sequence[EngineModel]) -> tuple[Parameter, ...]:
    """The numbers that make a difference to a policy by cost on these engines, in the order of the resource."""
    compiled = compiled_policy(policy)
    batches = any(engine.profile.mode is EngineMode.PREFILL_FIRST for engine in engines)
    idle = set() if batches else {_COALESCE}
    if not any(engine.prefix_caching for engine in engines):
        idle.add(_REUSE)
    weights = [f"{field.name}_weight" for field in dataclasses.fields(ObjectiveWeights)]
    if compiled.weights.as_mapping()[FIXED.removesuffix("_weight")] > 0:
        idle.add(FIXED)
    found = [_parameter("objective", name, _NEAR_WEIGHT) for name in weights if name not in idle]
    if compiled.room_is_kv:
        found.append(_parameter("hold", "decode_reserve_fraction", _NEAR_FRACTION))
    if batches and policy.hold.enabled:
        found.append(_parameter("hold", "batch_size", _NEAR_COUNT))
        found.append(_parameter("hold", "batch_wait_seconds", _NEAR_WAIT_S))
    return tuple(found)


def numbers(policy: RoutingPolicySpec) -> dict[str, float]:
    """Every number that may be searched, by its path in the resource, as the policy runs."""
    return {
        f"{section}.{_SECTIONS[section].model_fields[field].alias}": value
        for section, values in _in_force(policy).items()
        for field, value in values.items()
    }


def compiled_policy(policy: RoutingPolicySpec, name: str = "tuned") -> PolicyConfig:
    """The policy as routers and simulations run it."""
    return compile_policy(name, policy, model_sha256=None)


def steps_of(policy: RoutingPolicySpec, searched: Sequence[Parameter]) -> NDArray[np.float64]:
    """Where a policy lies on the scales of ``searched``, shape (P,)."""
    in_force = _in_force(policy)
    return np.array([one.step_of(in_force[one.section][one.field]) for one in searched])


def policy_at(
    policy: RoutingPolicySpec, searched: Sequence[Parameter], steps: NDArray[np.float64]
) -> RoutingPolicySpec:
    """The policy with its searched numbers at ``steps``, shape (P,), and all else as it is, checked as a resource is.

    Every number in force is named, so that another preset, or another version's, changes none of them.
    """
    changed = _in_force(policy)
    for one, step in zip(searched, steps.tolist(), strict=True):
        changed[one.section][one.field] = one.value_at(step)
    sections = {name: getattr(policy, name).model_copy(update=values) for name, values in changed.items()}
    declared = policy.model_copy(update=sections).model_dump(mode="json", by_alias=True, exclude_none=True)
    return RoutingPolicySpec.model_validate(declared)


def named(policy: RoutingPolicySpec, preset: str) -> RoutingPolicySpec:
    """The policy with every number named as it is in force, then under another preset's name."""
    explicit = policy_at(policy, (), np.zeros(0))
    objective = explicit.objective.model_copy(update={"preset": preset})
    return explicit.model_copy(update={"objective": objective})


def bounds_of(searched: Sequence[Parameter]) -> NDArray[np.float64]:
    """Lowest and highest step of each parameter, shape (P, 2).

    A step below the lowest value is that value, so that a search that begins there has both sides to look at.
    """
    return np.array([(one.step_of(one.lowest) - _BELOW, one.step_of(one.highest)) for one in searched])


def _in_force(policy: RoutingPolicySpec) -> dict[str, dict[str, Any]]:
    """Every number that may be searched, by section and field: the preset's where the policy does not say."""
    compiled = compiled_policy(policy)
    return {
        "objective": {f"{name}_weight": value for name, value in compiled.weights.as_mapping().items()},
        "hold": {
            "decode_reserve_fraction": compiled.hold.decode_reserve_fraction,
            "batch_size": compiled.batch_hold.size,
            "batch_wait_seconds": compiled.batch_hold.wait_s,
        },
    }


def _parameter(section: str, field: str, near: float) -> Parameter:
    """With the bounds of the resource, which are written there alone."""
    model = _SECTIONS[section]
    schema = model.model_json_schema(by_alias=False)["properties"][field]
    number = next(one for one in schema.get("anyOf", [schema]) if "maximum" in one)
    is_whole = number["type"] == "integer"
    return Parameter(section, field, near, float(number["minimum"]), float(number["maximum"]), is_whole)

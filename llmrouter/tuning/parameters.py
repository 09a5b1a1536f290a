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
    from llmrouter.domain import EngineProfile

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
    """

    section: str
    field: str
    near: float
    lowest: float
    highest: float

    @property
    def path(self) -> str:
        """As the resource spells it: ``objective.stallWeight``."""
        alias = _SECTIONS[self.section].model_fields[self.field].alias
        return f"{self.section}.{alias}"

    def step_of(self, value: float) -> float:
        """Where a value lies on the scale."""
        return math.asinh(value / self.near)

    def value_at(self, step: float) -> float:
        """The value there, within the bounds, to ``DIGITS`` digits."""
        value = min(max(self.near * math.sinh(step), self.lowest), self.highest)
        return float(f"{value:.{DIGITS}g}")


_SECTIONS: dict[str, type[BaseModel]] = {"objective": ObjectiveSpec, "hold": HoldSpec}
_NEAR_WEIGHT = 0.05
_NEAR_FRACTION = 0.1
_COALESCE = "coalesce_weight"
_BELOW = 1.0


def parameters(policy: RoutingPolicySpec, profiles: Sequence[EngineProfile]) -> tuple[Parameter, ...]:
    """The numbers that make a difference to a policy by cost on these engines, in the order of the resource."""
    compiled = compiled_policy(policy)
    batches = any(profile.mode is EngineMode.PREFILL_FIRST for profile in profiles)
    weights = [f"{field.name}_weight" for field in dataclasses.fields(ObjectiveWeights)]
    fixed = FIXED if compiled.weights.as_mapping()[FIXED.removesuffix("_weight")] > 0 else ""
    found = [
        _parameter("objective", name, _NEAR_WEIGHT)
        for name in weights
        if name != fixed and (batches or name != _COALESCE)
    ]
    if compiled.room_is_kv:
        found.append(_parameter("hold", "decode_reserve_fraction", _NEAR_FRACTION))
    return tuple(found)


def compiled_policy(policy: RoutingPolicySpec, name: str = "tuned") -> PolicyConfig:
    """The policy as routers and simulations run it."""
    return compile_policy(name, policy, model_sha256=None)


def steps_of(policy: RoutingPolicySpec, searched: Sequence[Parameter]) -> NDArray[np.float64]:
    """Where a policy lies on the scales of ``searched``, shape (P,)."""
    compiled = compiled_policy(policy)
    weights = compiled.weights.as_mapping()
    values = [
        weights[one.field.removesuffix("_weight")] if one.section == "objective" else getattr(compiled.hold, one.field)
        for one in searched
    ]
    return np.array([one.step_of(value) for one, value in zip(searched, values, strict=True)])


def policy_at(
    policy: RoutingPolicySpec, searched: Sequence[Parameter], steps: NDArray[np.float64]
) -> RoutingPolicySpec:
    """The policy with its searched numbers at ``steps``, shape (P,), and all else as it is, checked as a resource is.

    Every weight is named, so that another version's preset changes none of them.
    """
    weights = {f"{name}_weight": value for name, value in compiled_policy(policy).weights.as_mapping().items()}
    changed: dict[str, dict[str, Any]] = {"objective": weights, "hold": {}}
    for one, step in zip(searched, steps.tolist(), strict=True):
        changed[one.section][one.field] = one.value_at(step)
    sections = {name: getattr(policy, name).model_copy(update=values) for name, values in changed.items() if values}
    declared = policy.model_copy(update=sections).model_dump(mode="json", by_alias=True, exclude_none=True)
    return RoutingPolicySpec.model_validate(declared)


def named(policy: RoutingPolicySpec, preset: str) -> RoutingPolicySpec:
    """The policy with every weight named as it is in force, then under another preset's name."""
    explicit = policy_at(policy, (), np.zeros(0))
    objective = explicit.objective.model_copy(update={"preset": preset})
    return explicit.model_copy(update={"objective": objective})


def bounds_of(searched: Sequence[Parameter]) -> NDArray[np.float64]:
    """Lowest and highest step of each parameter, shape (P, 2).

    A step below the lowest value is that value, so that a search that begins there has both sides to look at.
    """
    return np.array([(one.step_of(one.lowest) - _BELOW, one.step_of(one.highest)) for one in searched])


def _parameter(section: str, field: str, near: float) -> Parameter:
    """With the bounds of the resource, which are written there alone."""
    model = _SECTIONS[section]
    schema = model.model_json_schema(by_alias=False)["properties"][field]
    number = next(one for one in schema.get("anyOf", [schema]) if "maximum" in one)
    return Parameter(section, field, near, float(number["minimum"]), float(number["maximum"]))

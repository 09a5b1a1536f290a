"""The profiles that decisions use: those of the resources, corrected by what was learned. Pure, and stable.

Policies remember what they make of a profile by its identity. So a corrected profile stays the same object until what
was learned of it moved noticeably, and instances that are alike share one.
"""

from __future__ import annotations

import math
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING

from llmrouter.routing.calibration import COEFFICIENTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.domain import EngineProfile
    from llmrouter.routing.calibration import Belief

MOVED = 0.02
"""Share by which a coefficient has to move before decisions see it."""

LEVEL = 0.05
"""Slowness is used in steps of this, as a logarithm: instances within half of it are alike, and share what they get."""

_LEAVES_LEVEL = 0.5 * LEVEL + MOVED


class Calibrate(StrEnum):
    """What of the learned step times decisions use: nothing, how slow each instance is, or the coefficients as well."""

    NONE = "None"
    SLOWNESS = "Slowness"
    FULL = "Full"


def corrected(profile: EngineProfile, ratios: Mapping[str, float], slowness: float = 1.0) -> EngineProfile:
    """The profile with its coefficients times ``ratios``, by the names of ``COEFFICIENTS``, and all times ``slowness``.

    A prefill-only step's base and floor go with ``base_decode_s``, the quadratic cost of prompts with the linear one.
    """
    base, prefill, context, sequence = (ratios[name] * slowness for name in COEFFICIENTS)
    return replace(
        profile,
        base_decode_s=profile.base_decode_s * base,
        base_prefill_s=profile.base_prefill_s * base,
        prefill_floor_s=profile.prefill_floor_s * base,
        prefill_s_per_token=profile.prefill_s_per_token * prefill,
        prefill_s_per_token_squared=profile.prefill_s_per_token_squared * prefill,
        context_s_per_token=profile.context_s_per_token * context,
        sequence_s=profile.sequence_s * sequence,
    )


class UsedProfiles:
    """The profiles that decisions use of one pool's instances.

    Args:
        profile: the pool's own.
    """

    def __init__(self, profile: EngineProfile) -> None:
        self.profile = profile
        self._ratios: Mapping[str, float] = dict.fromkeys(COEFFICIENTS, 1.0)
        self._levels: dict[str, int] = {}
        self._profiles: dict[int, EngineProfile] = {0: profile}

    def follow(self, belief: Belief, calibrate: Calibrate) -> None:
        """Takes what is believed now, as far as ``calibrate`` lets it; what hardly moved stays the same object."""
        ratios = belief.ratios if calibrate is Calibrate.FULL else dict.fromkeys(COEFFICIENTS, 1.0)
        if max(abs(math.log(ratios[name] / used)) for name, used in self._ratios.items()) > MOVED:
            self._ratios = ratios
            self._profiles = {} if self.uses_coefficients else {0: self.profile}
        slowness = {} if calibrate is Calibrate.NONE else belief.slowness
        levels = {name: self._level(name, math.log(one)) for name, one in slowness.items()}
        self._levels = {name: level for name, level in levels.items() if level}

    def of(self, instance_id: str) -> EngineProfile:
        """The profile that decisions use of an instance: the pool's own, the same object, where nothing differs."""
        level = self._levels.get(instance_id, 0)
        known = self._profiles.get(level)
        if known is None:
            known = self._profiles[level] = corrected(self.profile, self._ratios, math.exp(LEVEL * level))
        return known

    def slowness_of(self, instance_id: str) -> float:
        """What an instance's step times are multiplied by, beside the pool's coefficients."""
        return math.exp(LEVEL * self._levels.get(instance_id, 0))

    @property
    def uses_coefficients(self) -> bool:
        """Whether coefficients are not the profile's."""
        return any(ratio != 1.0 for ratio in self._ratios.values())

    @property
    def uses_slowness(self) -> bool:
        """Whether any instance is taken for slower or faster than the others."""
        return bool(self._levels)

    def _level(self, instance_id: str, log: float) -> int:
        used = self._levels.get(instance_id, 0)
        return used if abs(log - LEVEL * used) <= _LEAVES_LEVEL else round(log / LEVEL)

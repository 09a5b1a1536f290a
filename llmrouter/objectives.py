"""What a RoutingPolicy may ask for by one word: presets of the weights of the marginal cost."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from llmrouter.domain import ObjectiveWeights

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_PRESET = "Balanced"

PRESETS: Mapping[str, ObjectiveWeights] = MappingProxyType(
    {
        "SLO": ObjectiveWeights(),
        "Balanced": ObjectiveWeights(),
        "E2E": ObjectiveWeights(),
    }
)
"""Weights by preset: short tails of TTFT and TPOT, a bit of all, the least mean E2E."""

"""What a RoutingPolicy may ask for by one word: presets of the weights of the marginal cost."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from llmrouter.domain import BatchHold, ObjectiveWeights, Preferences

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_PRESET = "Balanced"

PRESETS: Mapping[str, ObjectiveWeights] = MappingProxyType(
    {
        "SLO": ObjectiveWeights(
            wait=20.0,
            decode=1.0,
            stall=0.05,
            slowdown=0.15,
            coalesce=1.0,
            overflow=1.0,
            spread=1.5,
            pressure=1.0,
            reuse=20.0,
        ),
        "Balanced": ObjectiveWeights(),
        "E2E": ObjectiveWeights(
            wait=1.5,
            decode=1.0,
            stall=0.4,
            slowdown=0.5,
            coalesce=4.0,
            overflow=1.0,
            spread=0.3,
            pressure=2.0,
            reuse=3.0,
        ),
    }
)
"""Weights by preset: short tails of TTFT and TPOT, a bit of all, the least mean E2E."""

BATCH_HOLDS: Mapping[str, BatchHold] = MappingProxyType(
    {
        "SLO": BatchHold(),
        "Balanced": BatchHold(size=2, wait_s=0.15),
        "E2E": BatchHold(size=4, wait_s=0.5),
    }
)
"""How long a preset lets a head wait at will where it is for engines that prefill first; a bound of TTFT."""

PREFERENCES: Mapping[str, Preferences] = MappingProxyType(
    {
        "SLO": Preferences(ttft=1.0, tpot=1.0, e2e=0.0, fairness=0.0),
        "Balanced": Preferences(ttft=1.0, tpot=1.0, e2e=1.0, fairness=1.0),
        "E2E": Preferences(ttft=0.0, tpot=0.0, e2e=1.0, fairness=0.0),
    }
)
"""What a preset says to a learned policy."""

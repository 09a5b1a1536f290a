"""Step-time profiles of known engine classes, by name.

Fits are weakly identified coefficient by coefficient: use one as a whole. ``KNOWN`` says where each comes from.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from llmrouter.profiles.first import (
    FIRST,
    H100_MIX,
    LLAMA_31_8B_RTX_4090,
    LLAMA_31_8B_RTX_PRO_6000,
    OPT_13B_A100,
    PAPER_V100,
)
from llmrouter.profiles.kernel_sums import KERNEL_SUMS
from llmrouter.profiles.measured import MEASURED
from llmrouter.profiles.source import Basis, KnownProfile, kv_capacity_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.domain import EngineProfile

__all__ = [
    "H100_MIX",
    "KNOWN",
    "LLAMA_31_8B_RTX_4090",
    "LLAMA_31_8B_RTX_PRO_6000",
    "OPT_13B_A100",
    "PAPER_V100",
    "PROFILES",
    "Basis",
    "KnownProfile",
    "kv_capacity_tokens",
]

KNOWN: Mapping[str, KnownProfile] = MappingProxyType(
    {known.profile.name: known for known in (*FIRST, *MEASURED, *KERNEL_SUMS)}
)
"""Every profile with its origin, by name."""

PROFILES: Mapping[str, EngineProfile] = MappingProxyType({name: known.profile for name, known in KNOWN.items()})
"""The numbers alone, by name."""

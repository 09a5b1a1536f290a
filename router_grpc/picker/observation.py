"""How much of an answer a picker sees: all of it, that of some requests, or none.

Where an answer is not seen, the gateway goes on alone after the request, and chunks cost the router nothing. The price:
no first token, no usage, no end, no word of who served it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmrouter.listener_specs import ListenersSpec

_HASHES = 2**32


class Observation(StrEnum):
    """Whose answers are seen."""

    FULL = "Full"
    SAMPLED = "Sampled"
    NONE = "None"


@dataclass(frozen=True, slots=True)
class Observed:
    """Which requests are seen to their end; ``fraction`` of them where some are."""

    mode: Observation = Observation.FULL
    fraction: float = 1.0

    def sees(self, request_id: str) -> bool:
        """Whether an answer is seen: by the id of its reservation alone. There is nothing to learn of one without."""
        if request_id and self.mode is Observation.SAMPLED:
            return zlib.crc32(request_id.encode("utf-8", "surrogatepass")) < self.fraction * _HASHES
        return self.mode is Observation.FULL


def observed_by(listeners: ListenersSpec) -> Observed:
    """What a configuration says; everything where it has no picker of its own."""
    spec = listeners.ext_proc
    return Observed() if spec is None else Observed(Observation(spec.response_observation), spec.observed_fraction)

"""The claim of whoever goes first in a router's line, as routers tell it each other, and which one yields to which.

Every router has its own line. So that together they serve as one line would, each says in the shared ledger what its
first held request claims: its standing and its key by the policy's order, both relative to now, so that no two clocks
need agree. A router leaves a place to another one whose claim goes before its own; see ``orders.yields_to``.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmrouter.routing.orders import yields_to

CLAIM_LIFETIME_S = 1.0
"""A claim that was not repeated for so long counts no more: its router is gone, or holds nobody."""


@dataclass(frozen=True, slots=True)
class Claim:
    """``key`` is the order's at now = 0, all times relative to it; ``patient_key`` as of ``orders.patient_key``."""

    standing: int
    key: float
    patient_key: float

    def yields_to(self, other: Claim) -> bool:
        """Whether a request with this claim leaves a place to another router's."""
        return yields_to(self.standing, self.patient_key, other.standing, other.key)

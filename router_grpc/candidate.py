"""The policy on trial as one router runs it: made like the current one, and apart from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic.alias_generators import to_camel

from llmrouter.routing.guard import Guard, Why
from router_grpc.readiness import Readiness

if TYPE_CHECKING:
    from llmrouter.config import CandidateConfig, PolicyConfig
    from llmrouter.domain import Hold, PoolSnapshot

LONGEST_HEAD_S = 1.0
"""How long the candidate may keep a request first in the line that both policies share; then the current decides."""

SHARED, HOLD_SHARED = ("queue", "prefix_affinity"), ("enabled", "max_wait_seconds")
"""Of a policy, and of its ``hold``, what is the current one's for both arms: they share the line and the index."""


@dataclass(frozen=True, slots=True)
class CandidateRuntime:
    """A candidate; its ``guard`` is ``None`` where its model is refused, and ``readiness`` says why."""

    config: CandidateConfig
    trial: str
    digest: str
    guard: Guard | None
    readiness: Readiness
    provider: str = ""

    @property
    def acts(self) -> bool:
        """Whether it decides for a share of the requests."""
        return self.config.mode == "Canary" and self.guard is not None

    @property
    def deciding(self) -> str:
        """Name of the policy that decides for it now: its own or its fallback; empty where it is refused."""
        if self.guard is None:
            return ""
        return (self.guard.primary if self.guard.standing_in is None else self.guard.fallback).name

    @property
    def now(self) -> Readiness:
        """Whether it decides as declared; it does not while it rests."""
        why = None if self.guard is None else self.guard.standing_in
        if why is None or not self.readiness.ready or self.guard is None:
            return self.readiness
        reason = "TooSlow" if why is Why.LATE else str(why)
        message = f"{self.guard.fallback.name} decides for the candidate while it rests"
        return Readiness(ready=False, reason=reason, message=message)


def not_compared(current: PolicyConfig, candidate: PolicyConfig) -> tuple[str, ...]:
    """Fields of a candidate that a trial says nothing of: they differ, and the current policy's are in force."""
    differ = [name for name in SHARED if getattr(current, name) != getattr(candidate, name)]
    holds = [name for name in HOLD_SHARED if getattr(current.hold, name) != getattr(candidate.hold, name)]
    return (*map(to_camel, differ), *(f"hold.{to_camel(name)}" for name in holds))


def has_had_its_turn(snapshot: PoolSnapshot) -> bool:
    """Whether a request has been the first of its line for as long as one of the candidate's may be."""
    since_s = snapshot.head_since_s
    return since_s is not None and not snapshot.taken_at_s - since_s < LONGEST_HEAD_S


def ending_soon(hold: Hold, snapshot: PoolSnapshot) -> Hold:
    """A hold of the candidate's: it ends where the current policy is to decide for the request."""
    since_s = snapshot.taken_at_s if snapshot.head_since_s is None else snapshot.head_since_s
    last_s = since_s + LONGEST_HEAD_S
    return hold if hold.until_s is not None and hold.until_s <= last_s else replace(hold, until_s=last_s)

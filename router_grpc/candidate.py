"""The policy on trial as one router runs it: made like the current one, and apart from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic.alias_generators import to_camel

from llmrouter.domain import SHORTEST_HOLD_S
from llmrouter.routing.guard import Guard, Why
from router_grpc.readiness import Readiness

if TYPE_CHECKING:
    from llmrouter.config import CandidateConfig, PolicyConfig
    from llmrouter.domain import Hold

LONGEST_HOLD_S, SHARE_OF_LINE = 1.0, 0.1
"""For how long a candidate may keep the line that both policies share waiting: at a time, and of all time."""

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


class HoldAllowance:
    """What a candidate may hold: whom it holds waits first in the line, and keeps the other arm's requests waiting too.

    A comparison of the arms would not see that. Each request that it begins to hold takes what has gathered, a tenth of
    the time that passed and a second at most; when that is over, the current policy decides for the request.
    """

    def __init__(self) -> None:
        self._gathered_s, self._since_s = LONGEST_HOLD_S, 0.0
        self._held, self._until_s = "", 0.0

    def is_over(self, request_id: str, now_s: float) -> bool:
        """Whether a request was held for as long as it may be."""
        return request_id == self._held and now_s >= self._until_s

    def bounded(self, request_id: str, hold: Hold, now_s: float) -> Hold:
        """A hold of the candidate's: it ends where the current policy is to decide for the request."""
        if request_id != self._held:
            gained_s = SHARE_OF_LINE * max(0.0, now_s - self._since_s)
            self._held, self._until_s = request_id, now_s + min(LONGEST_HOLD_S, self._gathered_s + gained_s)
            self._gathered_s, self._since_s = 0.0, now_s
        if hold.until_s is not None and hold.until_s <= self._until_s:
            return hold
        return replace(hold, until_s=max(self._until_s, now_s + SHORTEST_HOLD_S))

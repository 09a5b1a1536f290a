"""The guard of a learned policy: a fallback decides where the policy fails, and rests a policy that is too slow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.routing.lateness import Lateness
from llmrouter.routing.policies import NonFiniteScoreError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from llmrouter.domain import Decision, InstanceView, PoolSnapshot, Request, Room
    from llmrouter.routing.policies import Policy


@dataclass(frozen=True, slots=True)
class Guarded:
    """A decision, who made it, and why the fallback did if it did (``Error``, ``NotFinite``, ``Late``)."""

    decision: Decision
    policy: str
    fallback_reason: str | None = None
    detail: str = ""
    elapsed_s: float = 0.0


class Guard:
    """Runs ``primary`` within ``budget_s``; the decision of ``fallback`` stands in where it cannot.

    A decision cannot be interrupted; one that comes late is still used, but several in a row rest the policy for a
    while: see ``Lateness``.
    """

    def __init__(self, primary: Policy, fallback: Policy, *, budget_s: float, clock: Callable[[], float]) -> None:
        self.primary = primary
        self.fallback = fallback
        self._clock = clock
        self._lateness = Lateness(budget_s=budget_s, clock=clock)

    @property
    def resting(self) -> bool:
        """Whether the policy rests now because it was too slow."""
        return self._lateness.resting

    def room_of(self, view: InstanceView) -> Room:
        """The primary's bound, whoever decides."""
        return self.primary.room_of(view)

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Guarded:
        """One decision; never raises for what the primary does."""
        if self.resting:
            return self._fall_back(request, snapshot, rng, reason="Late", detail="resting after late decisions")
        started_s = self._clock()
        try:
            decision = self.primary.decide(request, snapshot, rng)
        except NonFiniteScoreError as error:
            return self._fall_back(request, snapshot, rng, reason="NotFinite", detail=str(error))
        except Exception as error:  # noqa: BLE001 - whatever a model does, the request is routed; counted by reason
            return self._fall_back(request, snapshot, rng, reason="Error", detail=f"{type(error).__name__}: {error}")
        elapsed_s = self._clock() - started_s
        self._lateness.note(elapsed_s)
        return Guarded(decision, self.primary.name, elapsed_s=elapsed_s)

    def _fall_back(
        self, request: Request, snapshot: PoolSnapshot, rng: random.Random, *, reason: str, detail: str
    ) -> Guarded:
        decision = self.fallback.decide(request, snapshot, rng)
        return Guarded(decision, self.fallback.name, fallback_reason=reason, detail=detail)

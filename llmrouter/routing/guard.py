"""The guard of a learned policy: a fallback decides where the policy fails, and rests a policy that is too slow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.routing.policies import NonFiniteScoreError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from llmrouter.domain import Decision, InstanceView, PoolSnapshot, Request, Room
    from llmrouter.routing.policies import Policy

LATE_IN_A_ROW = 5
"""After so many late decisions in a row the policy rests: one late decision is the machine, five are the model."""

REST_S = 10.0
"""How long a policy that was too slow rests before it is tried again."""


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

    A decision cannot be interrupted; one that comes late is still used, but ``LATE_IN_A_ROW`` of them rest the policy
    for ``REST_S`` seconds.
    """

    def __init__(self, primary: Policy, fallback: Policy, *, budget_s: float, clock: Callable[[], float]) -> None:
        self.primary = primary
        self.fallback = fallback
        self._budget_s = budget_s
        self._clock = clock
        self._late = 0
        self._resting_until_s: float | None = None

    @property
    def resting(self) -> bool:
        """Whether the policy rests now because it was too slow."""
        return self._resting_until_s is not None and self._clock() < self._resting_until_s

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
        self._note_lateness(elapsed_s)
        return Guarded(decision, self.primary.name, elapsed_s=elapsed_s)

    def _note_lateness(self, elapsed_s: float) -> None:
        self._late = self._late + 1 if elapsed_s > self._budget_s else 0
        if self._late >= LATE_IN_A_ROW:
            self._late = 0
            self._resting_until_s = self._clock() + REST_S

    def _fall_back(
        self, request: Request, snapshot: PoolSnapshot, rng: random.Random, *, reason: str, detail: str
    ) -> Guarded:
        decision = self.fallback.decide(request, snapshot, rng)
        return Guarded(decision, self.fallback.name, fallback_reason=reason, detail=detail)

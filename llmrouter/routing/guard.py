"""The guard of a policy: it checks every answer, and a fallback decides where the policy cannot or must not.

``docs/guards.md`` is the list: what each guard is against, what it does, and under which reason it says so. Besides the
time that a decision takes, all that it goes by is the snapshot and its own decisions before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf, isfinite
from typing import TYPE_CHECKING

from llmrouter.domain import Hold, NoCandidate, Placement, Role
from llmrouter.quick import quick
from llmrouter.routing.exploring import Exploring
from llmrouter.routing.guard_holds import VoluntaryHolds
from llmrouter.routing.guard_shares import Shares, is_eligible
from llmrouter.routing.inflight import has_room
from llmrouter.routing.lateness import Lateness
from llmrouter.routing.policies import MAX_CANDIDATES, CannotDecideError, RoomyPolicy
from llmrouter.routing.stages import Staged

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from llmrouter.domain import Candidate, Decision, InstanceView, PoolSnapshot, Request, Room
    from llmrouter.routing.envelope import Envelope
    from llmrouter.routing.policies import Policy


class Why(StrEnum):
    """Why the fallback decided, or why an answer of the policy was changed: a metric's label, and in the reason."""

    FORCED = "Forced"  # the kill switch
    LATE = "Late"  # the policy rests, having been too slow
    OUT_OF_DISTRIBUTION = "OutOfDistribution"  # the model rests, having been shown too much beyond its ranges
    MISSING_FEATURES = "MissingFeatures"  # a number that decisions need is not there
    NOT_FINITE = "NotFinite"  # a score is none
    ERROR = "Error"
    INVALID = "Invalid"  # an answer that cannot be followed
    HOLD_OVERRULED = "HoldOverruled"  # it held though an instance idles, or for too long, or rests for it
    STALE = "Stale"  # it held on loads that are too old
    HOLD_SHORTENED = "HoldShortened"  # changed: it held for longer than it may
    SHARE_CAPPED = "ShareCapped"  # changed: one instance had more than its share
    CLAMPED = "Clamped"  # changed: the model saw the nearest value that it was made for


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardRules:
    """What a policy is held to.

    Attributes:
        forced: the kill switch: the fallback decides, whatever the policy would say.
        max_share_factor: see ``Shares``.
        stale_after_s: a policy may not hold at will on loads older than this.
        longest_hold_s: for how long at most a policy may hold the head of a line though there is room.
        longest_wait_s: after which a request that is held is refused.
    """

    forced: bool = False
    max_share_factor: float = 4.0
    stale_after_s: float = 1.0
    longest_hold_s: float = 5.0
    longest_wait_s: float = inf


@quick
@dataclass(frozen=True, slots=True)
class Guarded:
    """A decision, who made it, and what the guard did.

    ``fallback_reason`` says why the fallback decided, if it did; ``actions`` what was changed of the policy's own
    answer. Both are words of ``Why`` or reasons of ``CannotDecideError``.
    """

    decision: Decision
    policy: str
    fallback_reason: str | None = None
    detail: str = ""
    elapsed_s: float = 0.0
    actions: tuple[str, ...] = ()


class Guard:
    """Runs ``primary`` and holds it to ``rules``; the decision of ``fallback`` stands in where it fails.

    A decision cannot be interrupted; one that comes late is still used, but several in a row rest the policy for a
    while: see ``Lateness``. ``envelope`` is that of the primary's model, if it has one.
    """

    def __init__(
        self,
        primary: Policy,
        fallback: Policy,
        *,
        budget_s: float,
        clock: Callable[[], float],
        rules: GuardRules | None = None,
        envelope: Envelope | None = None,
    ) -> None:
        self.rules = rules or GuardRules()
        self.primary = primary
        self.fallback = fallback
        self._clock = clock
        self._lateness = Lateness(budget_s=budget_s, clock=clock)
        self._envelope = envelope
        self._shares = Shares(self.rules.max_share_factor)
        self._holds = VoluntaryHolds(
            stale_after_s=self.rules.stale_after_s,
            longest_s=self.rules.longest_hold_s,
            longest_wait_s=self.rules.longest_wait_s,
        )
        self._names_only_roomy = (
            primary.names_only_roomy if isinstance(primary, Staged | Exploring) else isinstance(primary, RoomyPolicy)
        )

    def why_not(self, now_s: float) -> Why | None:
        """Why the policy is not asked at all at ``now_s``; ``None`` where it is."""
        if self.rules.forced:
            return Why.FORCED
        if self._lateness.resting:
            return Why.LATE
        if self._envelope is not None and self._envelope.resting(now_s):
            return Why.OUT_OF_DISTRIBUTION
        if self._holds.resting(now_s):
            return Why.HOLD_OVERRULED
        return None

    @property
    def standing_in(self) -> Why | None:
        """Why the fallback decides everything now; ``None`` where it does not."""
        return self.why_not(self._clock())

    def room_of(self, view: InstanceView) -> Room:
        """The primary's bound, whoever decides; where nothing of it is to decide, the fallback's."""
        return (self.fallback if self.rules.forced else self.primary).room_of(view)

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Guarded:
        """One decision; never raises for what the primary does."""
        why = self.why_not(snapshot.taken_at_s)
        if why is not None:
            return self._fall_back(request, snapshot, rng, reason=why, detail=self._detail(why))
        if not isfinite(request.predicted_output_tokens):
            detail = f"{request.predicted_output_tokens} output tokens are expected"
            return self._fall_back(request, snapshot, rng, reason=Why.MISSING_FEATURES, detail=detail)
        started_s = self._clock()
        try:
            decision = self.primary.decide(request, snapshot, rng)
        except CannotDecideError as error:
            return self._fall_back(request, snapshot, rng, reason=error.reason, detail=str(error))
        except Exception as error:  # noqa: BLE001 - whatever a model does, the request is routed; counted by reason
            detail = f"{type(error).__name__}: {error}"
            return self._fall_back(request, snapshot, rng, reason=Why.ERROR, detail=detail)
        elapsed_s = self._clock() - started_s
        self._lateness.note(elapsed_s)
        if isinstance(decision, Placement):
            return self._placed(decision, request, snapshot, rng, elapsed_s=elapsed_s)
        return self._waits(decision, request, snapshot, rng, elapsed_s=elapsed_s)

    def _detail(self, why: Why) -> str:
        if why is Why.FORCED:
            return "guard.forceFallback is set"
        if why is Why.OUT_OF_DISTRIBUTION and self._envelope is not None:
            return self._envelope.why_resting
        return "resting after late decisions" if why is Why.LATE else "resting after holds that were overruled"

    def _placed(
        self, placement: Placement, request: Request, snapshot: PoolSnapshot, rng: random.Random, *, elapsed_s: float
    ) -> Guarded:
        if not self._names_only_roomy and (wrong := _wrong_with(placement, request, snapshot)):
            return self._fall_back(request, snapshot, rng, reason=wrong[0], detail=wrong[1])
        self._holds.kept()
        shares, actions = self._shares, self._clamped(snapshot)
        detail = shares.over(placement.candidates[0].instance_id, request, snapshot)
        if detail:
            others = self._less_taken(placement, request, snapshot, rng)
            if others:
                reason = f"{Why.SHARE_CAPPED}: {detail}; {placement.reason}"
                placement = replace(placement, candidates=others, reason=reason)
                actions = (*actions, Why.SHARE_CAPPED)
        shares.placed(placement.candidates[0].instance_id, request, snapshot)
        return Guarded(placement, self.primary.name, None, detail if actions else "", elapsed_s, actions)

    def _waits(
        self,
        decision: Hold | NoCandidate,
        request: Request,
        snapshot: PoolSnapshot,
        rng: random.Random,
        *,
        elapsed_s: float,
    ) -> Guarded:
        """An answer that is no placement is followed where there is no room; else there must be a reason to wait."""
        actions = self._clamped(snapshot)
        at_will = not self._names_only_roomy or (isinstance(decision, Hold) and decision.until_s is not None)
        roomy = self._roomy(request, snapshot.views) if at_will else []
        if not roomy:
            return Guarded(decision, self.primary.name, elapsed_s=elapsed_s, actions=actions)
        if isinstance(decision, NoCandidate):
            detail = f"{len(roomy)} instances have room, the policy said: {decision.reason}"
            return self._fall_back(request, snapshot, rng, reason=Why.INVALID, detail=detail, among=roomy)
        verdict = self._holds.judge(decision, request, snapshot)
        if verdict.hold is None:
            reason = Why.STALE if verdict.stale else Why.HOLD_OVERRULED
            return self._fall_back(request, snapshot, rng, reason=reason, detail=verdict.detail, among=roomy)
        if verdict.detail:
            actions = (*actions, Why.HOLD_SHORTENED)
        return Guarded(verdict.hold, self.primary.name, None, verdict.detail, elapsed_s, actions)

    def _clamped(self, snapshot: PoolSnapshot) -> tuple[str, ...]:
        clamped = self._envelope is not None and self._envelope.settle(snapshot.taken_at_s)
        return (Why.CLAMPED,) if clamped else ()

    def _roomy(self, request: Request, views: Sequence[InstanceView]) -> list[InstanceView]:
        prompt, output, room_of = request.prompt_tokens, request.predicted_output_tokens, self.primary.room_of
        return [
            one
            for one in views
            if is_eligible(one, request)
            and has_room(one.total, room_of(one), prompt_tokens=prompt, predicted_output_tokens=output)
        ]

    def _less_taken(
        self, placement: Placement, request: Request, snapshot: PoolSnapshot, rng: random.Random
    ) -> tuple[Candidate, ...]:
        """The candidates, first those that may take more; the fallback names some where none of them may.

        Empty where nothing is to be changed.
        """
        first, named = placement.candidates[0].instance_id, {one.instance_id for one in placement.candidates}
        spared = self._shares.spared(first, request, snapshot, among=named)
        ids = {one.instance.instance_id for one in spared}
        chosen = [one for one in placement.candidates if one.instance_id in ids]
        if not chosen and (roomy := self._roomy(request, self._shares.spared(first, request, snapshot))):
            decision = self.fallback.decide(request, _among(roomy, snapshot), rng)
            chosen = list(decision.candidates) if isinstance(decision, Placement) else []
        if not chosen:
            return ()
        kept = [one for one in placement.candidates if one.instance_id not in ids]
        return tuple([*chosen, *kept][:MAX_CANDIDATES])

    def _fall_back(
        self,
        request: Request,
        snapshot: PoolSnapshot,
        rng: random.Random,
        *,
        reason: str,
        detail: str,
        among: Sequence[InstanceView] | None = None,
    ) -> Guarded:
        """The fallback's decision, ``among`` some of the instances where not all will do."""
        shown = snapshot if among is None else _among(among, snapshot)
        decision = self.fallback.decide(request, shown, rng)
        decision = replace(decision, reason=f"{reason}: {detail}; {decision.reason}")
        if isinstance(decision, Placement):
            self._shares.placed(decision.candidates[0].instance_id, request, snapshot)
        return Guarded(decision, self.fallback.name, fallback_reason=str(reason), detail=detail)


def _among(destinations: Sequence[InstanceView], snapshot: PoolSnapshot) -> PoolSnapshot:
    """The snapshot with these destinations alone; who computes prompts for others still does."""
    prefills = [one for one in snapshot.views if one.instance.role is Role.PREFILL]
    return replace(snapshot, views=(*destinations, *prefills))


def _wrong_with(placement: Placement, request: Request, snapshot: PoolSnapshot) -> tuple[Why, str] | None:
    """What makes a placement one that must not be followed; ``None`` where nothing does."""
    if not placement.candidates:
        return Why.INVALID, "a placement without candidates"
    eligible = {one.instance.instance_id for one in snapshot.views if is_eligible(one, request)}
    for candidate in placement.candidates:
        if candidate.instance_id not in eligible:
            return Why.INVALID, f"candidate {candidate.instance_id!r} is not eligible"
        if not isfinite(candidate.score):
            return Why.NOT_FINITE, f"candidate {candidate.instance_id!r} scored {candidate.score}"
    return None

"""The life of a candidate: from what is declared, what was before and what routers say, to its phase and the reason.

    Pending ─→ Shadowing
       └─────→ Running ─→ RolledBack | Promoted
    Refused: it cannot be tried, until it is another one or what it lacks is there

RolledBack holds for the candidate's digest, whatever else changes; Promoted for its digest and that of the policy that
it was promoted over. Both outlive operators and routers, because what was before is read from the status.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from llmrouter.rollout.verdict import TIMES

if TYPE_CHECKING:
    from llmrouter.rollout.verdict import Verdict
    from llmrouter.rollout_specs import CandidateSpec

FETCHING = "Fetching"
"""Why a candidate is not there yet, and yet will be."""

_DAY_S, _HOUR_S, _MINUTE_S = 86_400.0, 3600.0, 60.0
LONG_S = 7 * _DAY_S
"""A verdict that takes longer than this will hardly come."""


class Phase(StrEnum):
    """Where a candidate is in its life."""

    PENDING = "Pending"
    SHADOWING = "Shadowing"
    RUNNING = "Running"
    ROLLED_BACK = "RolledBack"
    PROMOTED = "Promoted"
    REFUSED = "Refused"


ON_TRIAL = frozenset({Phase.PENDING, Phase.SHADOWING, Phase.RUNNING})
"""Routers are told of the candidate."""


@dataclass(frozen=True, slots=True)
class Why:
    """A CamelCase word and a line for people."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Declared:
    """What is to be tried. ``digest`` is ``None`` where it cannot be made, ``against`` where the current one cannot.

    ``problem`` says why it cannot be tried at all.
    """

    spec: CandidateSpec
    digest: str | None
    against: str | None
    problem: Why | None = None

    @property
    def percent(self) -> int | None:
        """Share of the requests that it decides for; ``None`` for a shadow."""
        return self.spec.percent if self.spec.mode == "Canary" else None


@dataclass(frozen=True, slots=True)
class Before:
    """What the status says of the last trial."""

    name: str
    digest: str | None
    against: str | None
    mode: str
    percent: int | None
    phase: Phase
    why: Why
    since: str


@dataclass(frozen=True, slots=True)
class Heard:
    """What routers say of this trial: ``running`` of the ``voices`` wanted try it as declared.

    ``stopped`` is why one of them gives it no requests any more, or cannot run it at all; ``resting`` why it does not
    decide there just now.
    """

    voices: int
    running: int = 0
    stopped: Why | None = None
    resting: Why | None = None
    verdict: Verdict | None = None
    measured: int = 0
    """Requests of its arm that have ended."""


@dataclass(frozen=True, slots=True)
class Life:
    """The phase, why, and since when (an RFC 3339 instant)."""

    phase: Phase
    why: Why
    since: str

    @property
    def is_on_trial(self) -> bool:
        """Whether routers are told of it."""
        return self.phase in ON_TRIAL


def step(declared: Declared, before: Before | None, heard: Heard, *, now: str) -> Life:
    """The candidate's phase now. ``now`` is an RFC 3339 instant; equal arguments give equal answers."""
    ended = _still_ended(declared, before)
    if ended is not None:
        return ended
    problem = declared.problem
    if problem is not None:
        phase = Phase.PENDING if problem.reason == FETCHING else Phase.REFUSED
        return _life(phase, problem, before, now)
    if before is None or not _is_same_trial(declared, before):
        return Life(Phase.PENDING, _nobody_yet(heard), now)
    end = heard.stopped or _breach(heard)
    if end is not None:
        return _life(Phase.ROLLED_BACK, end, before, now)
    return _on_trial(declared, before, heard, now)


def _on_trial(declared: Declared, before: Before, heard: Heard, now: str) -> Life:
    if not heard.running:
        return _life(before.phase, heard.resting or _nobody_yet(heard), before, now)
    if declared.spec.mode == "Shadow":
        return _life(Phase.SHADOWING, heard.resting or Why("Shadowing", _shadowed(heard)), before, now)
    elapsed_s = _seconds(now) - _seconds(before.since) if before.phase is Phase.RUNNING else 0.0
    proof = _proof(declared, heard, elapsed_s) if before.phase is Phase.RUNNING else None
    if proof is not None:
        return _life(Phase.PROMOTED, proof, before, now)
    return _life(Phase.RUNNING, heard.resting or _progress(declared, heard, elapsed_s), before, now)


def _is_same(declared: Declared, before: Before) -> bool:
    """Whether the status speaks of this very candidate."""
    return before.digest == declared.digest and before.name == declared.spec.policy_ref.name


def _still_ended(declared: Declared, before: Before | None) -> Life | None:
    """What has ended stays so. One that just cannot be made (its RoutingPolicy is gone) is no other one for that."""
    if before is None or before.name != declared.spec.policy_ref.name:
        return None
    if declared.digest is not None and declared.digest != before.digest:
        return None
    if before.phase is Phase.ROLLED_BACK:
        return Life(before.phase, before.why, before.since)
    if before.phase is Phase.PROMOTED and declared.against in {None, before.against}:
        return Life(before.phase, before.why, before.since)
    return None


def _is_same_trial(declared: Declared, before: Before) -> bool:
    same = (declared.against, declared.spec.mode, declared.percent)
    is_trial = before.phase in ON_TRIAL and before.why.reason != FETCHING
    return is_trial and _is_same(declared, before) and same == (before.against, before.mode, before.percent)


def _life(phase: Phase, why: Why, before: Before | None, now: str) -> Life:
    return Life(phase, why, before.since if before is not None and before.phase is phase else now)


def _breach(heard: Heard) -> Why | None:
    said = heard.verdict
    return None if said is None or said.breach is None else Why(said.reason, str(said.breach))


def _nobody_yet(heard: Heard) -> Why:
    return Why("NotAcknowledged", f"0/{heard.voices} routers try it")


def _shadowed(heard: Heard) -> str:
    return f"{heard.running}/{heard.voices} routers ask it beside the current policy"


def _progress(declared: Declared, heard: Heard, elapsed_s: float) -> Why:
    """How far a canary is from its verdict."""
    runs = f"{heard.running}/{heard.voices} routers"
    least = declared.spec.guardrails.min_requests
    counts = {one.metric: min(one.counts) for one in heard.verdict.comparisons} if heard.verdict else {}
    times = [counts.get(name, 0) for name in TIMES]
    if max(times) < least:
        when = _when(max(times), least, elapsed_s)
        return Why(
            "NoVerdictYet", f"no verdict yet: {max(times)} of {least} requests in the smaller arm{when} ({runs})"
        )
    missing = [name for name, count in zip(TIMES, times, strict=True) if count < least]
    unseen = f" ({' and '.join(missing)}: fewer than {least} requests showed it)" if missing else ""
    more = _missing_for_promotion(declared, heard, elapsed_s)
    return Why("WithinGuardrails", f"{heard.measured} requests, no guardrail is credibly broken{unseen} ({runs}){more}")


def _when(count: int, least: int, elapsed_s: float) -> str:
    if not count or elapsed_s <= 0.0:
        return ""
    left_s = (least - count) * elapsed_s / count
    advice = ": raise percent or lower guardrails.minRequests" if left_s > LONG_S else ""
    return f", at this rate in {_duration(left_s)}{advice}"


def _missing_for_promotion(declared: Declared, heard: Heard, elapsed_s: float) -> str:
    auto = declared.spec.auto_promote
    if not auto.enabled:
        return ""
    if elapsed_s < auto.after_seconds:
        return f"; may be promoted in {_duration(auto.after_seconds - elapsed_s)}"
    if heard.measured < auto.min_requests:
        return f"; may be promoted after {auto.min_requests} requests"
    if heard.running < heard.voices or heard.resting is not None:
        return "; is promoted only where all routers try it"
    doubt = heard.verdict.open_question if heard.verdict is not None else None
    return f"; not promoted yet: {doubt}" if doubt is not None else ""


def _proof(declared: Declared, heard: Heard, elapsed_s: float) -> Why | None:
    """Why the candidate may serve all: held for long enough, and credibly within every guardrail that is measured."""
    auto, said = declared.spec.auto_promote, heard.verdict
    if not auto.enabled or elapsed_s < auto.after_seconds or heard.measured < auto.min_requests or said is None:
        return None
    if heard.running < heard.voices or heard.resting is not None:
        return None
    measured = [one for one in said.comparisons if one.metric not in TIMES or any(one.counts)]
    if len(measured) < 2 or not all(one.is_kept for one in measured):  # noqa: PLR2004 - errors and a time
        return None
    how = "; ".join(str(one) for one in measured)
    return Why("HeldItsGuardrails", f"over {_duration(elapsed_s)} and {heard.measured} requests: {how}")


def _seconds(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp()


def _duration(seconds: float) -> str:
    for unit, word in ((_DAY_S, "days"), (_HOUR_S, "hours"), (_MINUTE_S, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {word}"
    return f"{seconds:.0f} s"

"""The trial of a candidate at one router: which policy decides for a request, and what came of both arms' requests.

An arm's requests are those whose ids ``arm_of`` gives it, whoever decides in the end: the candidate's fallback, or the
current policy for a request that the candidate kept first in the line for too long. Not counted are requests that are
decided while the shared ledger is away, when one and the same policy decides for both arms; those that another router
reports; and, once the candidate is paused, those that come from then on.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.rollout.arm_stats import ArmStats, late_after_s, with_open
from llmrouter.rollout.arms import ARMS, CANDIDATE, CURRENT, arm_of
from llmrouter.rollout.verdict import verdict
from router_grpc.candidate import HoldAllowance
from router_grpc.ports import ReserveOutcome
from router_grpc.readiness import Readiness
from router_grpc.shadowing import Shadow

if TYPE_CHECKING:
    from llmrouter.domain import Hold, PoolSnapshot, Request
    from llmrouter.rollout.verdict import Verdict
    from llmrouter.routing.guard import Guard, Guarded
    from router_grpc.calls import RouteAnswer
    from router_grpc.candidate import CandidateRuntime
    from router_grpc.open_requests import OpenRequest
    from router_grpc.reports import Report
    from router_grpc.runtime import Runtime
    from router_grpc.world import World

ENOUGH_DECISIONS = 20
"""With fewer, nothing is said of how often the candidate's fallback decides."""

MOST_FALLBACKS = 0.5
"""Share of decisions that are the fallback's from which on it is not the candidate that is tried."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Placed:
    """A request that was placed, what was seen and decided, and its answer."""

    request: Request
    snapshot: PoolSnapshot
    guard: Guard
    guarded: Guarded
    outcome: ReserveOutcome
    answer: RouteAnswer


@dataclass(slots=True)
class Life:
    """What an open request's arm remembers of it; ``tells_start`` says that its first token will be told when it comes.

    ``trial`` is the one that it was dispatched in.
    """

    arm: str
    trial: str
    tells_start: bool = False
    first_token_at_s: float | None = None


class Trial:
    """Of one candidate at a time; nothing of it is left when another one begins. For one event loop."""

    def __init__(self) -> None:
        self.name = ""
        self.paused: Verdict | None = None
        """Why the candidate gets no request any more; ``None`` while it does."""
        self.decisions = self.fallbacks = 0
        self.last_fallback = ""
        self.shadow = Shadow()
        self._holds = HoldAllowance()
        self._arms: dict[str, ArmStats] = {}
        self._is_news = False

    def follow(self, world: World, candidate: CandidateRuntime | None) -> None:
        """A configuration is in force: the same trial goes on, another one begins with nothing."""
        trial = "" if candidate is None else candidate.trial
        if trial != self.name:
            self._begin(world, trial, candidate)
        if candidate is not None and candidate.acts and not self._arms:
            self._arms = {arm: ArmStats() for arm in ARMS}

    def _begin(self, world: World, trial: str, candidate: CandidateRuntime | None) -> None:
        self.name, self.paused, self._arms = trial, None, {}
        self.decisions = self.fallbacks = 0
        self.last_fallback = ""
        self.shadow.reset(trial)
        self._holds = HoldAllowance()
        world.metrics.arms.paused.set(0)
        world.metrics.arms.shadow_disagreement_ratio.set(float("nan"))
        if candidate is not None:
            said = {"policy": candidate.config.policy.name, "digest": candidate.digest[:12]}
            _log.info("a candidate is on trial", extra={**said, "mode": candidate.config.mode})

    def arm(self, runtime: Runtime, request_id: str) -> str:
        """The arm of a request; empty where none is counted."""
        one = runtime.candidate
        if one is None or not one.acts or self.paused is not None or one.trial != self.name or not self._arms:
            return ""
        return arm_of(request_id, salt=one.digest, percent=one.config.percent)

    def guard_of(self, runtime: Runtime, request: Request, now_s: float) -> Guard:
        """Who decides for a request."""
        one = runtime.candidate
        if one is None or one.guard is None or self.arm(runtime, request.request_id) != CANDIDATE:
            return runtime.guard
        return runtime.guard if self._holds.is_over(request.request_id, now_s) else one.guard

    def held(self, runtime: Runtime, guard: Guard, request_id: str, hold: Hold, now_s: float) -> Hold:
        """A hold by ``guard``: one of the candidate's ends where the current policy is to decide for the request."""
        is_candidates = runtime.candidate is not None and guard is runtime.candidate.guard
        return self._holds.bounded(request_id, hold, now_s) if is_candidates else hold

    def dispatched(self, world: World, runtime: Runtime, placed: Placed) -> None:
        """A request has got its place, by ``guard_of``'s guard."""
        one, request_id = runtime.candidate, placed.request.request_id
        if one is None or one.trial != self.name or placed.outcome is not ReserveOutcome.COMMITTED:
            return
        if placed.guard is runtime.degraded:
            return
        if one.config.mode == "Shadow":
            if not placed.request.batch:
                self.shadow.placed(world, runtime, placed)
            return
        arm, entry = self.arm(runtime, request_id), world.open_requests.get(request_id)
        if not arm or entry is None or entry.life is not None:
            return
        entry.life = Life(arm, self.name, tells_start=entry.tells_start)
        self._arms[arm].began()
        self._note(world, arm, "dispatched")
        if arm == CANDIDATE:
            self._decided(world, one, placed)

    def _decided(self, world: World, candidate: CandidateRuntime, placed: Placed) -> None:
        if placed.guard is not candidate.guard:
            self._note(world, CANDIDATE, "overruled")
            return
        guarded = placed.guarded
        placed.answer.policy_digest = candidate.digest
        self.decisions += 1
        if guarded.fallback_reason is not None:
            self.fallbacks += 1
            self.last_fallback = f"{guarded.fallback_reason}: {guarded.detail}"

    def refused(self, world: World, runtime: Runtime, request_id: str) -> None:
        """A request found no place in time."""
        arm = self.arm(runtime, request_id)
        if arm:
            self._arms[arm].began()
            self._arms[arm].failed()
            self._note(world, arm, "refused")

    def will_tell_start(self, world: World, request_id: str) -> None:
        """The first token of an open request will be seen when it comes."""
        entry = world.open_requests.get(request_id)
        if entry is not None and entry.life is not None:
            entry.life.tells_start = True

    def first_token(self, world: World, entry: OpenRequest, now_s: float) -> None:
        """The first token of a request came."""
        life = entry.life
        if life is None or life.trial != self.name or entry.arrived_at_s is None:
            return
        life.first_token_at_s = now_s
        ttft_s = now_s - entry.arrived_at_s
        self._arms[life.arm].first_token(ttft_s, prompt_tokens=entry.reservation.prompt_tokens)
        world.metrics.arms.ttft_seconds.labels(life.arm).observe(ttft_s)
        self._is_news = True

    def ended(self, world: World, entry: OpenRequest, report: Report, now_s: float) -> None:
        """A request was reported to have ended."""
        life = entry.life
        if life is None or life.trial != self.name or entry.arrived_at_s is None:
            return
        stats, took_s = self._arms[life.arm], now_s - entry.arrived_at_s
        event = report.kind.value
        if event == "finished":
            self._finished(world, entry, report, now_s)
        elif event == "failed" and report.is_fault:
            stats.failed()
        elif event == "cancelled" and life.first_token_at_s is None and self._is_long(took_s, report):
            stats.left_waiting(took_s, prompt_tokens=entry.reservation.prompt_tokens)
        self._note(world, life.arm, event)

    def _is_long(self, waited_s: float, report: Report) -> bool:
        return report.is_late or waited_s > late_after_s(self._arms.values())

    def _finished(self, world: World, entry: OpenRequest, report: Report, now_s: float) -> None:
        life = entry.life
        if life is None or entry.arrived_at_s is None:
            return
        tokens, metrics = report.output_tokens or 0, world.metrics.arms
        e2e_s = None if report.is_part else now_s - entry.arrived_at_s
        tpot_s = None
        if life.first_token_at_s is not None and tokens > 1:
            tpot_s = (now_s - life.first_token_at_s) / (tokens - 1)
        size = tokens or round(entry.reservation.predicted_output_tokens)
        self._arms[life.arm].ended_well(e2e_s=e2e_s, tpot_s=tpot_s, output_tokens=size)
        if e2e_s is not None:
            metrics.e2e_seconds.labels(life.arm).observe(e2e_s)
        if tpot_s is not None:
            metrics.tpot_seconds.labels(life.arm).observe(tpot_s)

    def _note(self, world: World, arm: str, event: str) -> None:
        world.metrics.arms.requests.labels(arm, event).inc()
        self._is_news = True

    def arms(self, world: World) -> dict[str, ArmStats]:
        """Both arms as they are now, with requests that have waited for their first token for long; empty in shadow."""
        if not self._arms:
            return {}
        self._is_news = False
        now_s = world.clock()
        waits: dict[str, list[tuple[float, int]]] = {arm: [] for arm in self._arms}
        for entry in world.open_requests.entries():
            life = entry.life
            if life is None or life.trial != self.name or not life.tells_start or entry.has_first_token:
                continue
            if entry.arrived_at_s is not None:
                waits[life.arm].append((now_s - entry.arrived_at_s, entry.reservation.prompt_tokens))
        late_s = late_after_s(self._arms.values())
        return {arm: with_open(stats, waits[arm], late_after_s=late_s) for arm, stats in self._arms.items()}

    @property
    def has_news(self) -> bool:
        """Whether anything was counted since the arms were last asked for."""
        return self._is_news or self.shadow.has_news

    def judge(self, world: World, candidate: CandidateRuntime | None) -> bool:
        """Pauses the candidate where this router's own arms say that it is worse; returns whether it did so now.

        All routers together may be wrong with the probability that the guardrails name: each with its part of it.
        """
        if candidate is None or self.paused is not None or candidate.trial != self.name or not self._arms:
            return False
        arms, guardrails = self.arms(world), candidate.config.guardrails
        probability = guardrails.false_alarm_probability / candidate.config.voices
        found = verdict(arms[CURRENT], arms[CANDIDATE], guardrails, probability=probability)
        if found.breach is None:
            return False
        self.paused, self._is_news = found, True
        world.metrics.arms.paused.set(1)
        said = {"reason": found.reason, "detail": str(found.breach)}
        _log.error("the candidate is worse: it gets no request any more", extra=said)
        return True

    def readiness(self, candidate: CandidateRuntime) -> Readiness:
        """Whether it is the candidate that is tried."""
        now, shadow = candidate.now, self.shadow.counts
        decisions, fallbacks = self.decisions + shadow.decisions, self.fallbacks + shadow.fallbacks
        if not now.ready or decisions < ENOUGH_DECISIONS or fallbacks < MOST_FALLBACKS * decisions:
            return now
        why = self.last_fallback or shadow.last_fallback
        message = f"its fallback decided {fallbacks} of {decisions} times, lately because {why}"
        return Readiness(ready=False, reason="FallbackDecides", message=message)

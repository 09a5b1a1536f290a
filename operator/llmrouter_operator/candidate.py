"""Chooses what becomes of the candidate: whether routers are told of it, and whether it serves all. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmrouter.config import trial_of
from llmrouter.errors import InvalidConfigError, ModelRejectedError
from llmrouter.rollout.arm_stats import merged
from llmrouter.rollout.arms import ARMS, CANDIDATE, CURRENT
from llmrouter.rollout.life import ON_TRIAL, Before, Declared, Heard, Life, Phase, Why, step
from llmrouter.rollout.verdict import verdict
from llmrouter_operator.candidate_status import RESTS
from llmrouter_operator.choice import compile_referenced
from llmrouter_operator.models import Problem
from llmrouter_operator.status import live_pods, read_acknowledgements, shown_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.acknowledgement import RouterCandidate
    from llmrouter.config import PolicyConfig
    from llmrouter.resources import LLMRouterSpec
    from llmrouter.rollout.arm_stats import ArmStats
    from llmrouter.rollout_specs import CandidateSpec
    from llmrouter_operator.models import Object, Observed, PolicyChoice

OPERATORS_SHARE = 0.5
"""Of the false alarms that the guardrails allow; the routers have the other half."""


@dataclass(frozen=True, slots=True)
class CandidateChoice:
    """What becomes of the candidate, and what it follows from. ``policy`` is ``None`` where it cannot be compiled."""

    declared: Declared
    life: Life
    heard: Heard
    policy: PolicyChoice | None = None
    arms: Mapping[str, ArmStats] | None = None
    said: tuple[RouterCandidate, ...] = ()
    before: Before | None = None

    @property
    def has_just_ended(self) -> bool:
        """Whether routers are still told of it, and are not to be any more for what was found out."""
        was_on_trial = self.before is not None and self.before.phase in ON_TRIAL
        return was_on_trial and self.life.phase in {Phase.ROLLED_BACK, Phase.PROMOTED}

    @property
    def on_trial(self) -> PolicyChoice | None:
        """The candidate as routers are told of it; ``None`` where they are not."""
        return self.policy if self.life.is_on_trial else None

    @property
    def problem(self) -> Problem:
        """Why it cannot be made; of no meaning where it can."""
        why = self.declared.problem or self.life.why
        return Problem(why.reason, why.message)

    def refused(self, problem: Problem, now: str) -> CandidateChoice:
        """The same candidate, which cannot be tried."""
        why = Why(problem.reason, problem.message)
        was = self.before is not None and self.before.phase is Phase.REFUSED
        life = Life(Phase.REFUSED, why, self.before.since if was and self.before is not None else now)
        return replace(self, declared=replace(self.declared, problem=why), life=life)


def choose_candidate(
    observed: Observed, spec: LLMRouterSpec, current: PolicyChoice, routers: Object | None
) -> CandidateChoice | None:
    """What becomes of ``spec.candidate``; ``None`` where none is declared.

    Args:
        observed: what was read.
        spec: the LLMRouter's.
        current: the policy that ``spec.policyRef`` leads to.
        routers: the ConfigMap of acknowledgements.
    """
    if spec.candidate is None:
        return None
    before = _before((observed.router.get("status") or {}).get("candidate"))
    policy, problem = _compiled(observed, spec, spec.candidate)
    digest = None if policy is None else shown_digest(policy.config)
    if policy is not None:
        problem = _nothing_to_try(policy.config, current.config)
    is_served = current.problem is not None and before is not None and before.phase is Phase.PROMOTED
    against = None if is_served else shown_digest(current.config)
    declared = Declared(spec.candidate, digest, against, problem)
    said = () if policy is None else _said(observed, routers, _trial(spec.candidate, current.config, policy.config))
    arms = {arm: merged(one.arms[arm].stats() for one in said if arm in one.arms) for arm in ARMS}
    heard = _heard(spec, spec.candidate, said, arms)
    life = step(declared, before, heard, now=observed.at)
    return CandidateChoice(declared, life, heard, policy, arms, said, before)


def _compiled(
    observed: Observed, spec: LLMRouterSpec, candidate: CandidateSpec
) -> tuple[PolicyChoice | None, Why | None]:
    name, policy, model = candidate.policy_ref.name, observed.candidate_policy, observed.candidate_model
    try:
        return compile_referenced(name, policy, model, claim=spec.router.models_claim), None
    except (InvalidConfigError, ModelRejectedError) as error:
        return None, Why(str(error.reason), str(error))


def _nothing_to_try(policy: PolicyConfig, current: PolicyConfig) -> Why | None:
    if policy.model_copy(update={"name": current.name}) == current:
        return Why("NothingToCompare", f"{policy.name} decides exactly as {current.name} does")
    if policy.guard.force_fallback:
        return Why(
            "FallbackForced", f"guard.forceFallback of {policy.name} is set: its fallback would be tried, not it"
        )
    return None


def _trial(candidate: CandidateSpec, current: PolicyConfig, policy: PolicyConfig) -> str:
    return trial_of(current, policy, mode=candidate.mode, percent=candidate.percent)


def _said(observed: Observed, routers: Object | None, trial: str) -> tuple[RouterCandidate, ...]:
    """What live routers say of this very trial."""
    said = read_acknowledgements(routers, live_pods(observed.pods)).by_router.values()
    return tuple(one.candidate for one in said if one.candidate is not None and one.candidate.trial == trial)


def _heard(
    spec: LLMRouterSpec, candidate: CandidateSpec, said: tuple[RouterCandidate, ...], arms: Mapping[str, ArmStats]
) -> Heard:
    paused = [Why(one.paused_reason, f"a router stopped it: {one.paused_message}") for one in said if one.paused]
    unfit = [one for one in said if not one.ready]
    broken = [Why(one.reason, one.message) for one in unfit if one.reason not in RESTS]
    resting = [Why(one.reason, one.message) for one in unfit if one.reason in RESTS]
    guardrails, share = candidate.guardrails, candidate.guardrails.false_alarm_probability * OPERATORS_SHARE
    is_canary = candidate.mode == "Canary"
    return Heard(
        voices=spec.router.replicas * spec.router.processes,
        running=sum(1 for one in said if one.ready and not one.paused),
        stopped=next(iter(paused + broken), None),
        resting=next(iter(resting), None),
        verdict=verdict(arms[CURRENT], arms[CANDIDATE], guardrails, probability=share) if is_canary else None,
        measured=arms[CANDIDATE].finished + arms[CANDIDATE].errors,
    )


def _before(status: Object | None) -> Before | None:
    """What the status says of the last trial; ``None`` where it says nothing, or not what the operator wrote."""
    try:
        return (
            None
            if status is None
            else Before(
                name=status["name"],
                digest=status.get("digest"),
                against=status.get("against"),
                mode=status["mode"],
                percent=status.get("percent"),
                phase=Phase(status["phase"]),
                why=Why(status["reason"], status.get("message", "")),
                since=status["since"],
            )
        )
    except (KeyError, ValueError):
        return None  # another hand wrote it: the trial begins anew, as it would without a status

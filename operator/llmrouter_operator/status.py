"""Says what holds of an LLMRouter and why: pure, from what was observed and what the routers acknowledged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import ValidationError

from llmrouter.acknowledgement import RouterAcknowledgement
from llmrouter_operator.calibration import calibration_status, slow_notes
from llmrouter_operator.candidate_status import CONDITION, candidate_condition, candidate_notes, candidate_status
from llmrouter_operator.mix import mix_status
from llmrouter_operator.models import Note, metadata_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from llmrouter.config import PolicyConfig
    from llmrouter.planning.mix import TrafficMix
    from llmrouter_operator.mix_memory import MixForecast
    from llmrouter_operator.models import Object, Plan

_DIGEST_CHARACTERS = 12
NEEDED = (
    "InferencePoolsResolved",
    "InstancesAvailable",
    "PolicyReady",
    "StateBackendReady",
    "PredictorReady",
    "CertificateReady",
)
"""What Ready takes, the first that is not so first. Who else a gateway asks is not these routers' readiness."""
_NAMED_ROUTERS = 3
_MESSAGE_CHARACTERS = 1024


@dataclass(frozen=True, slots=True)
class Acknowledgements:
    """What live routers said. ``malformed`` counts keys of live routers that could not be read."""

    by_router: Mapping[str, RouterAcknowledgement]
    malformed: int = 0

    def of_digest(self, digest: str | None) -> dict[str, RouterAcknowledgement]:
        """Those that run the configuration with this digest."""
        return {name: said for name, said in self.by_router.items() if said.config_digest == digest}


@dataclass(frozen=True, slots=True)
class Facts:
    """What conditions are made of. ``routers_ready`` is ``None`` until the Deployment's controller has looked.

    A router pod may have several processes, each of which says what it runs: ``voices`` of them all.
    """

    generation: int
    routers_desired: int
    routers_ready: int | None
    rolled_out: bool
    said: Acknowledgements
    plan: Plan
    processes: int = 1
    mixes: Mapping[str, TrafficMix] = field(default_factory=dict)
    forecast: MixForecast | None = None

    @property
    def voices(self) -> int:
        """Processes of all routers that are wanted."""
        return self.routers_desired * self.processes

    @property
    def acknowledged(self) -> dict[str, RouterAcknowledgement]:
        """Routers that run the current configuration."""
        return self.said.of_digest(self.plan.config_digest)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One condition before it is dated."""

    status: str
    reason: str
    message: str


def true(reason: str, message: str) -> Verdict:
    """It holds."""
    return Verdict("True", reason, message)


def false(reason: str, message: str) -> Verdict:
    """It does not hold."""
    return Verdict("False", reason, message)


def unknown(reason: str, message: str) -> Verdict:
    """Nobody has said yet."""
    return Verdict("Unknown", reason, message)


def pod_of(key: str, pods: Collection[str]) -> str | None:
    """The pod that wrote a key: of its name or, one process among several, of that and a number; ``None`` if gone."""
    pod, _, number = key.rpartition("-")
    if key in pods:
        return key
    return pod if number.isdecimal() and pod in pods else None


def read_acknowledgements(config_map: Object | None, live: Collection[str]) -> Acknowledgements:
    """Reads the keys of live routers; what is not an acknowledgement of that router is counted and left out."""
    data = (config_map or {}).get("data") or {}
    said: dict[str, RouterAcknowledgement] = {}
    malformed = 0
    for name in sorted(data):
        if pod_of(name, live) is None:
            continue
        try:
            acknowledgement = RouterAcknowledgement.model_validate_json(data[name])
        except ValidationError:
            malformed += 1
            continue
        if acknowledgement.router_id == name:
            said[name] = acknowledgement
        else:
            malformed += 1
    return Acknowledgements(said, malformed)


def live_pods(pods: Iterable[Object]) -> list[str]:
    """Names of router pods that are neither ending nor ended."""
    return sorted(
        metadata_of(pod)["name"]
        for pod in pods
        if "deletionTimestamp" not in metadata_of(pod)
        and (pod.get("status") or {}).get("phase") not in {"Succeeded", "Failed"}
    )


def gather_facts(router: Object, plan: Plan, deployment: Object | None, said: Acknowledgements) -> Facts:
    """Reads the numbers that conditions need."""
    wished = ((deployment or {}).get("spec") or {}).get("replicas", 0)
    desired = plan.spec.router.replicas if plan.spec is not None else wished
    status = (deployment or {}).get("status") or {}
    seen = status.get("observedGeneration")
    current = deployment is not None and seen is not None and seen >= metadata_of(deployment)["generation"]
    counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "readyReplicas")]
    return Facts(
        generation=metadata_of(router)["generation"],
        routers_desired=desired,
        processes=1 if plan.spec is None else plan.spec.router.processes,
        routers_ready=None if seen is None else status.get("readyReplicas", 0),
        rolled_out=current and all(count == desired for count in counts),
        said=said,
        plan=plan,
    )


def build_status(old: Object, facts: Facts, *, in_force: PolicyConfig | None, now: str) -> Object:
    """The status as it is to be written. ``old`` is the one in force: what stays as it was keeps its time."""
    plan = facts.plan
    applied = plan.problem is None or plan.problem.reason not in {"ApplyFailed", "Forbidden", "NameConflict"}
    candidate = _candidate(old, facts, now)
    status: Object = {
        "conditions": _conditions(old, facts, candidate, now),
        "routers": _routers(facts),
    }
    generation = facts.generation if applied else old.get("observedGeneration")
    if generation is not None:
        status["observedGeneration"] = generation
    policy = plan.choice.config if plan.choice is not None else in_force
    if policy is not None:
        status["activePolicy"] = {
            "name": policy.name,
            "type": policy.type,
            "digest": shown_digest(policy),
            "acknowledged": f"{len(facts.acknowledged)}/{facts.voices}",
            "lastKnownGood": plan.choice is None or plan.choice.last_known_good,
        }
    counts = _instances(facts)
    if counts is not None:
        ready, total = counts
        status["instances"] = {"ready": ready, "total": total, "summary": f"{ready}/{total}"}
    if candidate is not None:
        status["candidate"] = candidate
    mix = mix_status(old.get("mix"), facts.mixes, now, facts.forecast)
    if mix is not None:
        status["mix"] = mix
    calibration = calibration_status(old.get("calibration"), facts.said.by_router.values(), now)
    if calibration is not None:
        status["calibration"] = calibration
    return status


def shown_digest(policy: PolicyConfig) -> str:
    """A policy's digest as a status shows it."""
    return f"sha256:{policy.digest[:_DIGEST_CHARACTERS]}"


def _candidate(old: Object, facts: Facts, now: str) -> Object | None:
    """``status.candidate``; a spec that is not in force leaves it as it is."""
    before: Object | None = old.get("candidate")
    return before if facts.plan.spec is None else candidate_status(before, facts.plan.candidate, now)


def transitions(old: Object, new: Object) -> list[Note]:
    """Events for what changed between two statuses: what is only not known yet makes none."""
    before = {condition["type"]: condition for condition in old.get("conditions") or ()}
    notes: list[Note] = []
    old_policy, policy = old.get("activePolicy"), new.get("activePolicy")
    if policy and (old_policy or {}).get("digest") != policy["digest"]:
        instead = f" instead of {old_policy['name']} {old_policy['digest']}" if old_policy else ""
        notes.append(
            Note("PolicyChanged", f"told to run {policy['name']} ({policy['type']}, {policy['digest']}){instead}")
        )
    for condition in new["conditions"]:
        kind, was = condition["type"], before.get(condition["type"], {})
        if kind in {"Progressing", CONDITION} or condition["status"] == "Unknown":
            continue
        if kind == "Ready" and condition["reason"] == "NoRouterReady" and was.get("status") != "True":
            continue  # it only starts
        if kind == "LengthDrift":
            notes += _drift_note(condition, was)
        elif kind == "Ready" and condition["status"] != was.get("status"):
            word = "Ready" if condition["status"] == "True" else "NotReady"
            notes.append(Note(word, condition["message"], warning=condition["status"] == "False"))
        elif kind != "Ready" and (condition["status"], condition["reason"]) != (was.get("status"), was.get("reason")):
            notes.append(
                Note(condition["reason"], f"{kind}: {condition['message']}", warning=condition["status"] == "False")
            )
    return [*notes, *candidate_notes(old, new), *slow_notes(old.get("calibration"), new.get("calibration"))]


def _drift_note(condition: Object, was: Object) -> list[Note]:
    """A warning when lengths begin to drift, and no warning when they no longer do: nobody asked while they did not."""
    drifts = condition["status"] == "True"
    if drifts == (was.get("status") == "True"):
        return []
    return [Note(condition["reason"], f"LengthDrift: {condition['message']}", warning=drifts)]


def _conditions(old: Object, facts: Facts, candidate: Object | None, now: str) -> list[Object]:
    before = {condition["type"]: condition for condition in old.get("conditions") or ()}
    parts = {
        "PolicyReady": policy_ready(facts),
        "PredictorReady": predictor_ready(facts),
        "LengthDrift": length_drift(facts),
        "StateBackendReady": state_backend_ready(facts),
        "InstancesAvailable": instances_available(facts),
        **pool_conditions(facts),
        **certificate_condition(facts),
        **decision_log_condition(facts),
        **{kind: Verdict(*said) for kind, said in candidate_condition(candidate).items()},
    }
    verdicts = {"Ready": ready(facts, parts), "Progressing": progressing(facts), **parts}
    return [
        condition_of(kind, verdict, before.get(kind), generation=facts.generation, now=now)
        for kind, verdict in verdicts.items()
    ]


def condition_of(kind: str, verdict: Verdict, before: Object | None, *, generation: int, now: str) -> Object:
    """One of ``status.conditions``; its time is that of ``before``, the one of this kind, as long as its status is."""
    same = before is not None and before["status"] == verdict.status
    return {
        "type": kind,
        "status": verdict.status,
        "reason": verdict.reason,
        "message": verdict.message[:_MESSAGE_CHARACTERS],
        "observedGeneration": generation,
        "lastTransitionTime": str(before["lastTransitionTime"]) if before is not None and same else now,
    }


def ready(facts: Facts, parts: Mapping[str, Verdict]) -> Verdict:
    """Whether routers serve what the spec declares: the first reason against it, in the order that matters."""
    if facts.plan.problem is not None:
        return false(facts.plan.problem.reason, facts.plan.problem.message)
    if not facts.routers_ready:
        return _no_router(facts)
    for kind in NEEDED:
        if kind in parts and parts[kind].status == "False":
            return false(parts[kind].reason, f"{kind}: {parts[kind].message}")
    counts = _instances(facts)
    if counts is None:
        return unknown("NotAcknowledged", "no router has said what it runs")
    return true("Serving", f"{facts.routers_ready}/{facts.routers_desired} routers, {counts[0]}/{counts[1]} instances")


def _no_router(facts: Facts) -> Verdict:
    if facts.routers_desired == 0:
        return false("ScaledToZero", "spec.router.replicas is 0")
    if facts.routers_ready is None:
        return unknown("NotObserved", "the Deployment has not been looked at yet")
    return false("NoRouterReady", f"0/{facts.routers_desired} routers are ready")


def progressing(facts: Facts) -> Verdict:
    """Whether something is on its way."""
    if facts.plan.problem is not None:
        return false(facts.plan.problem.reason, facts.plan.problem.message)
    if not facts.rolled_out:
        return true("RollingOut", f"{facts.routers_ready or 0}/{facts.routers_desired} routers are ready")
    late = sorted(set(facts.said.by_router) - set(facts.acknowledged))
    if late:
        return true("Adopting", f"not yet on the current configuration: {_some(late)}")
    return false("UpToDate", "what was declared is rolled out")


def policy_ready(facts: Facts) -> Verdict:
    """Whether the referenced policy decides in every router."""
    choice = facts.plan.choice
    if choice is not None and choice.problem is not None:
        word = "the last good policy" if choice.last_known_good else "the fallback"
        return false(choice.problem.reason, f"{choice.problem.message}; {word} {choice.config.name} is in force")
    if choice is None:
        return unknown("NotInForce", "the spec is not in force")
    said, digest = facts.said.by_router, facts.plan.config_digest
    for name, one in said.items():
        if one.refused_digest == digest or (one.config_digest == digest and not one.policy_ready):
            reason = one.policy_reason or "Refused"
            return false(reason, f"{name} decides with {one.deciding}: {one.policy_message or reason}")
    if not said:
        return unknown("NotAcknowledged", "no router has said what it runs")
    late = sorted(set(said) - set(facts.acknowledged))
    if late:
        return unknown("Adopting", f"not yet on the current configuration: {_some(late)}")
    return true("Acknowledged", f"{len(said)}/{facts.voices} routers run {choice.config.name}")


def predictor_ready(facts: Facts) -> Verdict:
    """Whether the declared length predictor answers."""
    choice, spec = facts.plan.predictor, facts.plan.spec
    if choice is not None and choice.problem is not None:
        return false(choice.problem.reason, f"{choice.problem.message}; {choice.config.type} is in force")
    if spec is not None and spec.predictor.type == "Constant":
        answer = f"every answer is expected to have {spec.predictor.constant_tokens} tokens"
        said = facts.said.by_router.values()
        return true("Constant", _with_remarks(answer, [one.predictor_message for one in said]))
    good = "Applications" if spec is not None and spec.predictor.type == "Applications" else "Loaded"
    return _all_say(
        facts, lambda said: (said.predictor_ready, said.predictor_reason, said.predictor_message), good=good
    )


def length_drift(facts: Facts) -> Verdict:
    """Whether answers have left the lengths that are predicted, in any router."""
    said = facts.said.by_router
    drifting = [f"{name}: {one.length_drift_message or 'drifting'}" for name, one in said.items() if one.length_drift]
    if drifting:
        return true("LengthsDrifted", "; ".join(drifting))
    steady = [name for name, one in said.items() if one.length_drift is False]
    if not steady:
        return unknown("NotAcknowledged", "no router has said")
    return false("LengthsSteady", f"{len(steady)}/{facts.voices} routers say so")


def state_backend_ready(facts: Facts) -> Verdict:
    """Whether every router reaches the shared ledger."""
    if facts.plan.spec is not None and facts.plan.spec.state.redis is None:
        return true("NotConfigured", "each router counts for itself")
    return _all_say(facts, lambda said: (said.state_backend_ready, said.state_backend_reason, ""), good="Connected")


def instances_available(facts: Facts) -> Verdict:
    """Whether every router has an instance to choose."""
    counts = _instances(facts)
    if counts is None:
        return unknown("NotAcknowledged", "no router has said what it sees")
    if counts[0] > 0:
        return true("Available", f"{counts[0]}/{counts[1]} instances are ready")
    blind = [name for name, said in facts.said.by_router.items() if said.instances_ready == 0]
    if counts[1] == 0:
        return false("NoInstances", "no pool has an instance")
    return false("NoInstanceReady", f"{_some(blind)} sees none of {counts[1]} instances ready")


def pool_conditions(facts: Facts) -> dict[str, Verdict]:
    """Whether the InferencePools that are referred to exist, and ask these routers; nothing where there are none."""
    pools = facts.plan.inference_pools
    if not pools:
        return {}
    lost = next(((pool, pool.problem) for pool in pools if pool.problem is not None), None)
    resolved = (
        true("Resolved", f"{len(pools)} InferencePools are followed")
        if lost is None
        else false(lost[1].reason, f"pool {lost[0].name} has no instances: {lost[1].message}")
    )
    said = "; ".join(f"{pool.name}: {pool.said}" for pool in pools if pool.said)
    elsewhere = next(((pool, pool.picker_problem) for pool in pools if pool.picker_problem is not None), None)
    if elsewhere is not None:
        asked = false(elsewhere[1].reason, f"InferencePool {elsewhere[0].name}: {elsewhere[1].message} ({said})")
    else:
        asked = true("Referenced", said) if said else unknown("NotResolved", "no InferencePool could be read")
    return {"InferencePoolsResolved": resolved, "EndpointPickerReferenced": asked}


def certificate_condition(facts: Facts) -> dict[str, Verdict]:
    """Whether the endpoint picker's port serves the declared certificate; nothing where it has no TLS."""
    picker = facts.plan.spec.listeners.ext_proc if facts.plan.spec is not None else None
    if picker is None or not picker.secure_serving:
        return {}
    is_own = picker.certificate_secret_ref is None

    def what(said: RouterAcknowledgement) -> tuple[bool | None, str, str]:
        remark = "" if is_own and said.certificate_ready else said.certificate_message
        return said.certificate_ready, said.certificate_reason, remark

    return {"CertificateReady": _all_say(facts, what, good="SelfSigned" if is_own else "Mounted")}


def decision_log_condition(facts: Facts) -> dict[str, Verdict]:
    """Whether the declared decision log is written; nothing where none is. Routing goes on without it."""
    log = None if facts.plan.spec is None else facts.plan.spec.decision_log
    if log is None or log.fraction <= 0.0:
        return {}

    def what(said: RouterAcknowledgement) -> tuple[bool | None, str, str]:
        return said.decision_log_ready, said.decision_log_reason, said.decision_log_message

    return {"DecisionLogReady": _all_say(facts, what, good="Written")}


def _all_say(
    facts: Facts, what: Callable[[RouterAcknowledgement], tuple[bool | None, str, str]], *, good: str
) -> Verdict:
    """True where all who know say so, False where one says no, Unknown where nobody knows; ``what`` says why."""
    answers = {name: what(said) for name, said in facts.said.by_router.items()}
    for name, (holds, reason, message) in answers.items():
        if holds is False:
            return false(reason or "NotReady", f"{name}: {message or reason or 'not ready'}")
    agree = {name: message for name, (holds, _, message) in answers.items() if holds}
    if not agree:
        return unknown("NotAcknowledged", "no router has said")
    return true(good, _with_remarks(f"{len(agree)}/{facts.voices} routers say so", agree.values()))


def _with_remarks(text: str, remarks: Iterable[str]) -> str:
    return "; ".join([text, *sorted({remark for remark in remarks if remark})])


def _instances(facts: Facts) -> tuple[int, int] | None:
    """Instances that every router has ready, of all that any knows."""
    said = facts.said.by_router.values()
    if not said:
        return None
    return min(one.instances_ready for one in said), max(one.instances_total for one in said)


def _routers(facts: Facts) -> Object:
    desired = facts.routers_desired
    if facts.routers_ready is None:
        return {"desired": desired}
    return {"ready": facts.routers_ready, "desired": desired, "summary": f"{facts.routers_ready}/{desired}"}


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED_ROUTERS])
    more = len(names) - _NAMED_ROUTERS
    return f"{shown} and {more} more" if more > 0 else shown

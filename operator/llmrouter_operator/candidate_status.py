"""What the status says of a candidate, and the Events of its life. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.rollout.arms import ARMS
from llmrouter.rollout.life import FETCHING, ON_TRIAL, Phase
from llmrouter_operator.instants import seconds_of
from llmrouter_operator.models import Note

if TYPE_CHECKING:
    from llmrouter.rollout.arm_stats import ArmStats
    from llmrouter.rollout.verdict import Comparison
    from llmrouter_operator.candidate import CandidateChoice
    from llmrouter_operator.models import Object

CONDITION = "CandidateHealthy"
RESTS = frozenset({"TooSlow", "OutOfDistribution", "MissingFeatures", "NotFinite", "Error", "Invalid", "HoldOverruled"})
"""Why a candidate that a router runs does not decide for a while; every other reason is why it cannot be run at all."""

WRITTEN_AFTER_S = 10.0
"""Numbers that moved are written no sooner than so long after the last ones."""

_NUMBERS = ("arms", "comparisons", "shadow", "message")
_UNSURE = frozenset({"NotAcknowledged", "NoVerdictYet", FETCHING, *RESTS})


def candidate_status(old: Object | None, choice: CandidateChoice | None, now: str) -> Object | None:
    """``status.candidate``; ``None`` where none is declared. ``now`` is an RFC 3339 instant.

    ``old`` is what the status has, and stays as it is while nothing but numbers moved and they are young.
    """
    if choice is None:
        return None
    life, declared = choice.life, choice.declared
    before = old or {}
    ended = life.phase not in ON_TRIAL and before.get("phase") == life.phase
    kept = declared.digest or (before.get("digest") if ended else None)
    against = declared.against or before.get("against")
    new: Object = {
        "name": declared.spec.policy_ref.name,
        **({"digest": kept} if kept else {}),
        **({"against": against} if against else {}),
        "mode": before["mode"] if ended else declared.spec.mode,
        "phase": str(life.phase),
        "reason": life.why.reason,
        "message": life.why.message[:1024],
        "since": life.since,
        "observedAt": now,
    }
    percent = before.get("percent") if ended else declared.percent
    new |= {} if percent is None else {"percent": percent}
    new |= {name: before[name] for name in _NUMBERS[:3] if name in before} if ended else _numbers(choice)
    return new if old is None or _is_due(old, new) else old


def candidate_condition(said: Object | None) -> dict[str, tuple[str, str, str]]:
    """The condition by its name: status, reason, message; of ``status.candidate`` as it is to be written."""
    if said is None:
        return {}
    if said["phase"] in {Phase.ROLLED_BACK, Phase.REFUSED}:
        status = "False"
    elif said["reason"] in _UNSURE:
        status = "Unknown"
    else:
        status = "True"
    return {CONDITION: (status, said["reason"], f"{said['name']} ({said['phase']}): {said['message']}")}


def candidate_notes(old: Object, new: Object) -> list[Note]:
    """Events for what changed of the candidate between two statuses."""
    before, after = old.get("candidate") or {}, new.get("candidate") or {}
    notes = _farewell(before, after, new)
    if not after or (before and before.get("phase") == after["phase"] and _trial(before) == _trial(after)):
        return notes
    what, phase = _named(after), after["phase"]
    if phase in ON_TRIAL and (not before or before.get("phase") not in ON_TRIAL or _trial(before) != _trial(after)):
        share = f" for {after['percent']} % of the requests" if "percent" in after else ""
        notes.append(Note("CandidateStarted", f"{what} is on trial: {after['mode']}{share}"))
    elif phase == Phase.ROLLED_BACK:
        notes.append(Note("CandidateRolledBack", f"{what}: {after['reason']}: {after['message']}", warning=True))
    elif phase == Phase.PROMOTED:
        spec = f"set spec.policyRef.name to {after['name']} and remove spec.candidate"
        notes.append(Note("CandidatePromoted", f"{what} serves all requests; to keep it, {spec}. {after['message']}"))
    elif phase == Phase.REFUSED:
        notes.append(Note("CandidateRefused", f"{what}: {after['reason']}: {after['message']}", warning=True))
    return notes


def _farewell(before: Object, after: Object, new: Object) -> list[Note]:
    """What is to be said of a trial that another one, or none, takes the place of."""
    if not before or (after and _trial(before) == _trial(after)):
        return []
    if before.get("phase") in ON_TRIAL:
        if after and after["name"] == before.get("name") and after.get("digest") in {None, before.get("digest")}:
            return []  # the same one, tried otherwise, or not to be made any more: that is said
        why = f"{_named(after)} takes its place" if after else "spec.candidate is gone"
        return [Note("CandidateAbandoned", f"{_named(before)} is on trial no more: {why}")]
    if before.get("phase") == Phase.PROMOTED:
        serves = (new.get("activePolicy") or {}).get("name") == before.get("name")
        if serves:
            return [Note("PromotionCompleted", f"{_named(before)} is the policy that the spec names")]
        return [Note("PromotionEnded", f"{_named(before)} serves all requests no more: the spec was changed")]
    return []


def _trial(status: Object) -> tuple[object, ...]:
    return tuple(status.get(part) for part in ("name", "digest", "against", "mode", "percent"))


def _named(status: Object) -> str:
    return f"{status.get('name', '')} {status.get('digest', '')}".strip()


def _numbers(choice: CandidateChoice) -> Object:
    shown: Object = {}
    if choice.declared.spec.mode == "Canary" and choice.arms is not None and choice.said:
        shown["arms"] = [_arm(name, choice.arms[name]) for name in ARMS]
        found = choice.heard.verdict.comparisons if choice.heard.verdict is not None else ()
        shown["comparisons"] = [_comparison(one) for one in found if one.interval is not None]
    shadows = [one.shadow for one in choice.said if one.shadow is not None]
    if shadows:
        placements, compared = sum(one.placements for one in shadows), sum(one.compared for one in shadows)
        shown["shadow"] = {"decisions": sum(one.decisions for one in shadows)}
        if placements:
            agreed = sum(one.agreements for one in shadows) / placements
            shown["shadow"]["agreementFraction"] = round(agreed, 3)
        if compared:
            cost_s = sum((one.cost_difference_seconds or 0.0) * one.compared for one in shadows) / compared
            shown["shadow"]["costDifferenceSeconds"] = float(f"{cost_s:.3g}")
    return shown


def _arm(name: str, stats: ArmStats) -> Object:
    means = {"ttft": stats.ttft.mean_s, "tpot": stats.tpot.mean_s, "e2e": stats.e2e.mean_s}
    known = {f"{metric}MeanSeconds": float(f"{mean:.3g}") for metric, mean in means.items() if mean is not None}
    return {"arm": name, "requests": stats.requests, "errors": stats.errors, **known}


def _comparison(one: Comparison) -> Object:
    assert one.interval is not None  # noqa: S101 - those without are left out
    values = (one.interval.estimate, one.interval.low, one.interval.high)
    return {"metric": one.metric, **dict(zip(("ratio", "low", "high"), (round(v, 3) for v in values), strict=True))}


def _is_due(old: Object, new: Object) -> bool:
    """Whether anything but numbers moved, or they did and are no longer young."""

    def fixed(status: Object) -> Object:
        return {name: value for name, value in status.items() if name not in {*_NUMBERS, "observedAt"}}

    if fixed(old) != fixed(new) or "observedAt" not in old:
        return True
    if all(old.get(name) == new.get(name) for name in _NUMBERS):
        return False
    age_s = seconds_of(new["observedAt"]) - seconds_of(old["observedAt"])
    return not 0.0 <= age_s < WRITTEN_AFTER_S

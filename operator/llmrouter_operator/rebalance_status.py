"""What is said of a rebalance: the status, its condition, and Events for what a person would ask about. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmrouter_operator.models import Note
from llmrouter_operator.rebalance_memory import applied_rows, blocked_rows, change_row, proposed_rows
from llmrouter_operator.status import Verdict, condition_of, false, true, unknown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmrouter.planning.steps import Wish
    from llmrouter_operator.models import Object
    from llmrouter_operator.rebalance_memory import Applied, Block, Change

CONDITION = "RebalanceActive"
_MESSAGE_CHARACTERS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one look has to say. ``wanted`` is empty where there is no plan; ``taken`` GPUs are of the ``budget``."""

    mode: str
    phase: str
    verdict: Verdict
    budget: int
    taken: int = 0
    wanted: Mapping[str, int] = field(default_factory=dict)
    wishes: Mapping[str, Wish] = field(default_factory=dict)
    applied: Mapping[str, Applied] = field(default_factory=dict)
    blocked: Mapping[str, Block] = field(default_factory=dict)
    last: Change | None = None
    declared: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """What a look adds to the status of an LLMRouter; ``status`` is ``None`` for nothing."""

    status: Object | None = None
    verdict: Verdict | None = None
    notes: tuple[Note, ...] = ()
    again_after_s: float | None = None


def rebalance_status(old: Object | None, told: Told, now: str) -> Object:
    """``status.rebalance``; ``since`` stays while phase and reason do."""
    verdict = told.verdict
    same = old is not None and (old.get("phase"), old.get("reason")) == (told.phase, verdict.reason)
    return {
        "mode": told.mode,
        "phase": told.phase,
        "reason": verdict.reason,
        "message": verdict.message[:_MESSAGE_CHARACTERS],
        "since": (old or {}).get("since", now) if same else now,
        "summary": _summary(told),
        "gpus": {"budget": told.budget, "taken": told.taken},
        "proposed": proposed_rows(told.wanted, told.wishes),
        "applied": applied_rows(told.applied),
        **({"blocked": blocked_rows(told.blocked)} if told.blocked else {}),
        **change_row(told.last),
    }


def _summary(told: Told) -> str:
    return ", ".join(
        f"{pool} {replicas}" + (f"->{told.wanted[pool]}" if told.wanted.get(pool, replicas) != replicas else "")
        for pool, replicas in told.declared.items()
    )


def verdict_of(phase: str, message: str, blocked: Mapping[str, Block], plan: str) -> Verdict:
    """The condition: false as long as a pool is left alone, though others may move."""
    message = f"{message} ({plan})" if plan else message
    if blocked:
        pool, first = next(iter(blocked.items()))
        more = f" (and {len(blocked) - 1} more)" if len(blocked) > 1 else ""
        return false(first.reason, f"pool {pool}: {first.message}{more}; {message}")
    return true(phase, message)


NO_MIX = unknown("NoMix", "too little arrives, or routers have not said what: the replicas stay as they are")


def with_rebalance(status: Object, report: Report, *, generation: int, old: Object, now: str) -> Object:
    """The status of an LLMRouter with what a look adds."""
    if report.status is None:
        return status
    result: Object = {**status, "rebalance": report.status}
    before = next((one for one in old.get("conditions") or () if one["type"] == CONDITION), None)
    if report.verdict is None:  # nothing was looked at: what was known stays
        return result if before is None else {**result, "conditions": [*result["conditions"], before]}
    condition = condition_of(CONDITION, report.verdict, before, generation=generation, now=now)
    return {**result, "conditions": [*result["conditions"], condition]}


def notes_of(old: Object | None, told: Told, *, plan: str, done: Sequence[Note]) -> tuple[Note, ...]:
    """Events: a new proposal, what was done, and pools that are newly left alone."""
    notes: list[Note] = []
    before = {one["pool"]: one["replicas"] for one in (old or {}).get("proposed") or []}
    if told.wanted and dict(told.wanted) != before and any(told.wanted[p] != n for p, n in _declared(told).items()):
        notes.append(Note("RebalanceProposed", f"{_summary(told)}: {plan}"))
    known = {(one["pool"], one["reason"]) for one in (old or {}).get("blocked") or []}
    notes += [
        Note("RebalanceBlocked", f"pool {pool}: {one.reason}: {one.message}", warning=True)
        for pool, one in told.blocked.items()
        if (pool, one.reason) not in known
    ]
    if not told.blocked and told.verdict.status == "False" and (old or {}).get("reason") != told.verdict.reason:
        notes.append(Note("RebalanceBlocked", f"{told.verdict.reason}: {told.verdict.message}", warning=True))
    return (*notes, *done)


def _declared(told: Told) -> dict[str, int]:
    return {pool: replicas for pool, replicas in told.declared.items() if pool in told.wanted}


def kept(old: Object | None, verdict: Verdict, *, mode: str, phase: str, now: str) -> Object:
    """The status where a look failed: what was known stays, with the reason."""
    before = old or {}
    same = (before.get("phase"), before.get("reason")) == (phase, verdict.reason)
    return {
        **before,
        "mode": mode,
        "phase": phase,
        "reason": verdict.reason,
        "message": verdict.message[:_MESSAGE_CHARACTERS],
        "since": before.get("since", now) if same else now,
    }

"""What rebalancing has to know of the past, in the status: the operator keeps nothing that a restart would lose."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmrouter.planning.steps import Memory, Wish
from llmrouter_operator.instants import instant_of, instant_s

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter_operator.models import Object


@dataclass(frozen=True, slots=True)
class Applied:
    """A pool's replicas as they were last set, or taken over.

    ``ready`` is the last number that were all ready; ``failures`` counts changes that failed in a row.
    """

    replicas: int
    ready: int
    is_ours: bool = False
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """Why a pool is left alone. ``until_s`` is when it is tried again, ``generation`` the spec's when a hand edited."""

    reason: str
    message: str
    until_s: float | None = None
    generation: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a scale."""

    pool: str
    before: int
    after: int
    at_s: float

    @property
    def has_grown(self) -> bool:
        """Whether replicas were added."""
        return self.after > self.before


@dataclass(frozen=True, slots=True)
class Past:
    """What the last look left behind."""

    wishes: Mapping[str, Wish] = field(default_factory=dict)
    applied: Mapping[str, Applied] = field(default_factory=dict)
    blocked: Mapping[str, Block] = field(default_factory=dict)
    last: Change | None = None

    @property
    def memory(self) -> Memory:
        """As ``planning.steps`` has it."""
        if self.last is None:
            return Memory(self.wishes)
        return Memory(self.wishes, changed_at_s=self.last.at_s, has_shrunk=not self.last.has_grown)


def past_of(status: Object | None) -> Past:
    """Reads ``status.rebalance`` of the last look; what cannot be read there is as if it had not been written."""
    said = status or {}
    return Past(
        wishes={
            one["pool"]: Wish(int(one["smallest"]), since_s)
            for one in said.get("proposed") or []
            if "smallest" in one and (since_s := instant_s(one.get("since"))) is not None
        },
        applied={
            one["pool"]: Applied(
                replicas=int(one.get("replicas", 0)),
                ready=int(one.get("ready", 0)),
                is_ours=bool(one.get("setByUs")),
                failures=int(one.get("failures", 0)),
            )
            for one in said.get("applied") or []
        },
        blocked={
            one["pool"]: Block(
                one["reason"],
                one.get("message", ""),
                until_s=instant_s(one.get("until")),
                generation=one.get("generation"),
            )
            for one in said.get("blocked") or []
        },
        last=_change_of(said.get("last")),
    )


def _change_of(said: Object | None) -> Change | None:
    at_s = None if said is None else instant_s(said.get("at"))
    if said is None or at_s is None:
        return None
    return Change(said.get("pool", ""), int(said.get("from", 0)), int(said.get("to", 0)), at_s)


def applied_rows(applied: Mapping[str, Applied]) -> list[Object]:
    """``status.rebalance.applied``."""
    return [
        {"pool": pool, "replicas": one.replicas, "ready": one.ready, "setByUs": one.is_ours}
        | ({"failures": one.failures} if one.failures else {})
        for pool, one in applied.items()
    ]


def blocked_rows(blocked: Mapping[str, Block]) -> list[Object]:
    """``status.rebalance.blocked``."""
    return [
        {"pool": pool, "reason": one.reason, "message": one.message[:1024]}
        | ({} if one.until_s is None else {"until": instant_of(one.until_s)})
        | ({} if one.generation is None else {"generation": one.generation})
        for pool, one in blocked.items()
    ]


def proposed_rows(wanted: Mapping[str, int], wishes: Mapping[str, Wish]) -> list[Object]:
    """``status.rebalance.proposed``; with ``since`` where it is a change."""
    return [
        {"pool": pool, "replicas": replicas}
        | ({"smallest": wishes[pool].replicas, "since": instant_of(wishes[pool].since_s)} if pool in wishes else {})
        for pool, replicas in wanted.items()
    ]


def change_row(last: Change | None) -> Object:
    """``status.rebalance.last``."""
    if last is None:
        return {}
    return {"last": {"pool": last.pool, "from": last.before, "to": last.after, "at": instant_of(last.at_s)}}

"""Decides what to do about replicas now: which pools are left alone and why, and the step of the others. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmrouter.planning.steps import Memory, PoolState, Rules, Step, heard, next_step
from llmrouter_operator.rebalance_memory import Applied, Block
from llmrouter_operator.scaling_view import drained

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmrouter.rebalance_specs import RebalanceSpec
    from llmrouter.resources import PoolSpec
    from llmrouter_operator.rebalance_memory import Past
    from llmrouter_operator.scaling_view import TargetView

UNKNOWN = frozenset({"TargetNotFound", "SelectorMismatch"})
"""Why nothing can be said of a pool, let alone done."""

FIRST_BACK_OFF_S = 60.0
LONGEST_BACK_OFF_S = 3600.0


@dataclass(frozen=True, slots=True)
class RollBack:
    """A growth that is to be undone."""

    pool: str
    replicas: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is there, of all pools with a scale target.

    ``in_flight`` is what each live router says of draining instances.
    """

    pools: Mapping[str, PoolSpec]
    views: Sequence[TargetView]
    in_flight: Sequence[Mapping[str, int]]
    generation: int
    now_s: float


@dataclass(frozen=True, slots=True)
class Footing:
    """What a plan may move: pools that are left alone with the reason, and what is known of each pool's replicas."""

    blocked: Mapping[str, Block]
    applied: Mapping[str, Applied]
    roll_back: RollBack | None = None


def footing_of(situation: Situation, past: Past, spec: RebalanceSpec) -> Footing:
    """Which pools may be moved now, and whether a growth failed; who keeps replicas counts only for who sets them."""
    applied = {view.pool: _applied(view, past, situation.generation) for view in situation.views}
    if spec.mode != "Auto":
        kept = {
            view.pool: replace(applied[view.pool], replicas=view.declared, is_ours=view.is_kept_by_us)
            for view in situation.views
        }
        return Footing(_unknown(situation.views), kept)
    blocked: dict[str, Block] = {}
    roll_back = None
    for view in situation.views:
        found = _block(view, applied[view.pool], past, situation)
        late = None if found is not None else _late(view, past, spec, situation.now_s)
        if late is not None:
            undo = _roll_back(view, applied[view.pool], past, situation.pools[view.pool].min_replicas, late)
            roll_back = roll_back or undo
            found = Block("ReplicasNotReady", late) if undo is None else None
        if found is not None:
            blocked[view.pool] = found
    return Footing(blocked, applied, roll_back)


def _unknown(views: Sequence[TargetView]) -> dict[str, Block]:
    """Pools of which nothing can be said."""
    found = {view.pool: view.problem for view in views if view.problem is not None and view.problem.reason in UNKNOWN}
    return {pool: Block(problem.reason, problem.message) for pool, problem in found.items()}


def _applied(view: TargetView, past: Past, generation: int) -> Applied:
    before = past.applied.get(view.pool)
    if before is None or view.resource_version == "":
        return before or Applied(view.declared, view.ready, is_ours=view.is_kept_by_us)
    edited = past.blocked.get(view.pool)
    is_released = edited is not None and edited.generation is not None and edited.generation < generation
    is_all_ready = view.ready >= view.declared
    has_grown = past.last is not None and past.last.pool == view.pool and past.last.has_grown
    is_ours = view.is_kept_by_us or (before.is_ours and not is_released)
    return Applied(
        replicas=view.declared if view.is_kept_by_us or not is_ours else before.replicas,
        ready=view.declared if is_all_ready else before.ready,
        is_ours=is_ours,
        failures=0 if is_all_ready and has_grown else before.failures,
    )


def _block(view: TargetView, applied: Applied, past: Past, situation: Situation) -> Block | None:
    if view.problem is not None:
        return Block(view.problem.reason, view.problem.message)
    before = past.blocked.get(view.pool)
    if applied.is_ours and not view.is_kept_by_us:
        who = view.keepers[-1] if view.keepers else "somebody"
        message = f"{who} set {view.declared} replicas of {view.target} where {applied.replicas} were set here"
        rest = "; they stay until the LLMRouter's spec changes"
        generation = situation.generation if before is None or before.generation is None else before.generation
        return Block("EditedByHand", message + rest, generation=generation)
    if before is not None and before.until_s is not None and before.until_s > situation.now_s:
        return before
    return None


def _late(view: TargetView, past: Past, spec: RebalanceSpec, now_s: float) -> str | None:
    """Which replica has not become ready in time, and why; ``None`` where none is late."""
    deadline_s = spec.progress_deadline_seconds
    last = past.last
    asked_at_s = last.at_s if last is not None and last.pool == view.pool else 0.0
    for replica in view.live:
        if not replica.is_ready and now_s - max(replica.changed_at_s, replica.created_at_s) > deadline_s:
            return f"{replica.instance} is not ready after {deadline_s:g} s{_why(replica.trouble)}"
    missing = view.declared - len(view.live)
    if missing > 0 and not view.terminating and now_s - asked_at_s > deadline_s and (view.refusal or asked_at_s):
        return f"{missing} replicas of {view.target} are not there after {deadline_s:g} s{_why(view.refusal)}"
    return None


def _why(text: str) -> str:
    return f" ({text[:300]})" if text else ""


def _roll_back(view: TargetView, applied: Applied, past: Past, least: int, late: str) -> RollBack | None:
    """Undoes a growth of one's own; ``None`` where it was not, or would end replicas that serve."""
    last = past.last
    if last is None or last.pool != view.pool or not last.has_grown or not applied.is_ours:
        return None
    back = max(view.ready, min(applied.ready, view.declared), least)
    going = view.going()[: max(0, len(view.live) - back)]
    if back >= view.declared or any(one.is_ready for one in going):
        return None
    return RollBack(view.pool, back, f"{late}: back from {view.declared} to {back} replicas")


def back_off(applied: Applied, reason: str, message: str, now_s: float) -> tuple[Applied, Block]:
    """What is known of a pool after a change of it failed: it is tried again, each time later."""
    wait_s = min(FIRST_BACK_OFF_S * 2.0**applied.failures, LONGEST_BACK_OFF_S)
    after = replace(applied, failures=applied.failures + 1)
    return after, Block(reason, f"{message}; tried again in {wait_s:g} s", until_s=now_s + wait_s)


def states_of(situation: Situation, footing: Footing, spec: RebalanceSpec) -> list[PoolState]:
    """The pools as the order of steps sees them."""
    return [_state(view, situation, footing, spec) for view in situation.views]


def _state(view: TargetView, situation: Situation, footing: Footing, spec: RebalanceSpec) -> PoolState:
    pool = situation.pools[view.pool]
    may_go = drained(view, situation.in_flight, drain_s=spec.drain_seconds, now_s=situation.now_s)
    return PoolState(
        pool=view.pool,
        gpus_per_replica=pool.gpus_per_replica or 1,
        declared=view.declared,
        ready=view.ready,
        starting=len(view.live) - view.ready,
        terminating=view.terminating,
        drained=may_go,
        min_replicas=pool.min_replicas,
        max_replicas=pool.max_replicas,
        is_held=view.pool in footing.blocked,
    )


def least_gpus(pools: Mapping[str, PoolSpec]) -> int:
    """GPUs that the least replicas of all pools take."""
    return sum(pool.min_replicas * (pool.gpus_per_replica or 1) for pool in pools.values())


def step_of(
    states: Sequence[PoolState], spec: RebalanceSpec, past: Past, wanted: Mapping[str, int], now_s: float
) -> tuple[Step, Memory]:
    """The step to take now, and what is remembered of wishes."""
    rules = Rules(
        gpu_budget=spec.gpu_budget,
        stabilization_s=spec.stabilization_seconds,
        cooldown_s=spec.cooldown_seconds,
        max_step=spec.max_step,
    )
    memory = heard(past.memory, states, wanted, now_s=now_s)
    return next_step(states, rules, memory, now_s=now_s), memory

"""The order in which replicas move: one step at a time, and never more GPUs than the budget has.

A plan says how many replicas each pool should have. ``next_step`` says what to do now: grow into GPUs that are free,
else drain and shrink a pool that has too many, and grow only once what shrank is gone. What counts against the budget
is what is *taken*: of each pool the larger of the replicas that are declared and those that are there, and the ones
that are terminating besides. So nothing that a controller does late can exceed it.

The operator and the simulator call the same functions: they observe, tell ``heard`` what is wanted, ask ``next_step``,
do what it says, and remember it by ``Memory.after``. Nothing else needs to be remembered; time is a parameter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Phase(StrEnum):
    """What goes on."""

    SETTLED = "Settled"
    STABILIZING = "Stabilizing"
    COOLING_DOWN = "CoolingDown"
    DRAINING = "Draining"
    SHRINKING = "Shrinking"
    GROWING = "Growing"
    BLOCKED = "Blocked"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """The replicas of one pool as they are observed.

    Attributes:
        pool: its name.
        gpus_per_replica: GPUs that each takes.
        declared: replicas that its controller is told to keep.
        ready: replicas that serve.
        starting: replicas that are there and do not serve yet.
        terminating: replicas that are told to end and still hold their GPUs.
        drained: of those that would go first, how many may go now: nothing is in flight there, or their time is over.
        min_replicas: the fewest it may have.
        max_replicas: the most; ``None`` is what the budget allows.
        is_held: it is left alone, whatever is wanted.
    """

    pool: str
    gpus_per_replica: int
    declared: int
    ready: int
    starting: int = 0
    terminating: int = 0
    drained: int = 0
    min_replicas: int = 0
    max_replicas: int | None = None
    is_held: bool = False

    @property
    def present(self) -> int:
        """Replicas that are there and not told to end."""
        return self.ready + self.starting

    @property
    def surplus(self) -> int:
        """Replicas that are there and will be told to end."""
        return max(0, self.present - self.declared)

    @property
    def taken_gpus(self) -> int:
        """GPUs that it has or may have before anything else is declared."""
        return self.gpus_per_replica * (max(self.declared, self.present) + self.terminating)

    @property
    def leaving_gpus(self) -> int:
        """GPUs that become free without doing anything."""
        return self.gpus_per_replica * (self.surplus + self.terminating)

    def bounded(self, replicas: int) -> int:
        """``replicas`` within the pool's bounds."""
        most = replicas if self.max_replicas is None else min(replicas, self.max_replicas)
        return max(most, self.min_replicas)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How fast, and within what. ``gpu_budget`` is of all pools together."""

    gpu_budget: int
    stabilization_s: float = 120.0
    cooldown_s: float = 60.0
    max_step: int = 1


@dataclass(frozen=True, slots=True)
class Wish:
    """A change that is asked for without a break since ``since_s``; ``replicas`` is the smallest that was."""

    replicas: int
    since_s: float


@dataclass(frozen=True, slots=True)
class Memory:
    """What has to be known of the past: wishes by pool, when a scale was changed last, and whether it shrank."""

    wishes: Mapping[str, Wish] = field(default_factory=dict)
    changed_at_s: float | None = None
    has_shrunk: bool = False

    def after(self, step: Step, *, now_s: float) -> Memory:
        """Once a step's change of a scale is done."""
        return replace(self, changed_at_s=now_s, has_shrunk=step.phase is Phase.SHRINKING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What to do now, and why.

    Attributes:
        phase: what goes on; with ``replicas`` it says whether that grows or shrinks the pool.
        message: why, in words.
        pool: which pool it is about; empty for none.
        replicas: what to declare of ``pool``; ``None`` where no scale is to be changed.
        draining: replicas of each pool that should get no new requests now; of other pools none.
        again_after_s: when to look again though nothing changes; ``None`` for no such time.
    """

    phase: Phase
    message: str
    pool: str = ""
    replicas: int | None = None
    draining: Mapping[str, int] = field(default_factory=dict)
    again_after_s: float | None = None


def heard(memory: Memory, observed: Sequence[PoolState], wanted: Mapping[str, int], *, now_s: float) -> Memory:
    """What is remembered once ``wanted`` replicas by pool were heard.

    A wish lives while it is in one direction. In that time the smallest change that was ever asked for counts: a plan
    that wavers between one and three more is one more.
    """
    wishes = {
        state.pool: _wish(memory.wishes.get(state.pool), state, state.bounded(wanted[state.pool]), now_s)
        for state in observed
        if not state.is_held and state.bounded(wanted.get(state.pool, state.declared)) != state.declared
    }
    return replace(memory, wishes=wishes)


def _wish(before: Wish | None, state: PoolState, replicas: int, now_s: float) -> Wish:
    if before is None or (before.replicas - state.declared) * (replicas - state.declared) <= 0:
        return Wish(replicas, now_s)
    smallest = min(before.replicas, replicas, key=lambda one: abs(one - state.declared))
    return Wish(smallest, min(before.since_s, now_s))


def next_step(observed: Sequence[PoolState], rules: Rules, memory: Memory, *, now_s: float) -> Step:
    """What to do now. ``memory`` has heard what is wanted; the same arguments give the same step."""
    step = _Look(observed, rules, memory, now_s).step()
    draining = {state.pool: state.surplus for state in observed if state.surplus}
    if step.phase in {Phase.DRAINING, Phase.SHRINKING} and step.pool and step.draining:
        draining[step.pool] = draining.get(step.pool, 0) + step.draining[step.pool]
    return replace(step, draining=draining)


def taken_gpus(observed: Sequence[PoolState]) -> int:
    """GPUs that all pools have or may have before anything else is declared."""
    return sum(state.taken_gpus for state in observed)


class _Look:
    """One look at what is there and what is wished."""

    def __init__(self, observed: Sequence[PoolState], rules: Rules, memory: Memory, now_s: float) -> None:
        self.pools = [state for state in observed if not state.is_held]
        self.rules = rules
        self.memory = memory
        self.now_s = now_s
        self.free = rules.gpu_budget - taken_gpus(observed)
        self.leaving = sum(state.leaving_gpus for state in observed)
        self.target = {state.pool: self._target(state) for state in self.pools}

    def step(self) -> Step:
        growing = self._ordered([one for one in self.pools if self.target[one.pool] > one.declared])
        shrinking = self._ordered([one for one in self.pools if self.target[one.pool] < one.declared])
        if growing:
            return self._grow(growing, shrinking)
        if any(self._asks(state) > 0 for state in self.pools):
            return self._stabilizing()
        if shrinking:
            return self._shrink(shrinking[0], self._most(shrinking[0]))
        return self._stabilizing() if self.memory.wishes else self._idle()

    def _grow(self, growing: list[PoolState], shrinking: list[PoolState]) -> Step:
        for state in growing:
            fits = min(self._most(state), self.free // state.gpus_per_replica)
            if fits >= 1:
                return self._waits() or self._rests() or self._grown(state, fits)
        first = growing[0]
        if self.free + self.leaving >= first.gpus_per_replica:
            return self._leaves(first)
        freed = sum((one.declared - self.target[one.pool]) * one.gpus_per_replica for one in shrinking)
        if self.free + self.leaving + freed < first.gpus_per_replica:
            return self._stabilizing() if self._may_free_more() else self._no_room(first)
        giver = shrinking[0]
        needed = self._most(first) * first.gpus_per_replica - (self.free + self.leaving)
        return self._shrink(giver, min(self._most(giver), math.ceil(needed / giver.gpus_per_replica)), first)

    def _shrink(self, state: PoolState, count: int, gains: PoolState | None = None) -> Step:
        waits = self._waits() or self._rests(goes_on=gains is not None)
        if waits is not None:
            return waits
        why = f", whose GPUs {gains.pool} is to get" if gains is not None else ", which has more than it needs"
        what = f"{count} of {state.declared} replicas of {state.pool}{why}"
        if state.drained < count:
            message = f"no new requests for {what}; {state.drained} may go already"
            return Step(phase=Phase.DRAINING, message=message, pool=state.pool, draining={state.pool: count})
        return Step(
            phase=Phase.SHRINKING,
            message=f"scaling down by {what}",
            pool=state.pool,
            replicas=state.declared - count,
            draining={state.pool: count},
        )

    def _grown(self, state: PoolState, count: int) -> Step:
        message = f"scaling {state.pool} up from {state.declared} to {state.declared + count} replicas"
        return Step(phase=Phase.GROWING, message=message, pool=state.pool, replicas=state.declared + count)

    def _waits(self) -> Step | None:
        """One move at a time: what was begun is to be ready first, but for replicas that nobody wants any more."""
        for state in self.pools:
            if state.ready < min(state.declared, self.target[state.pool]):
                message = f"{state.pool}: {state.ready} of {state.declared} replicas are ready"
                return Step(phase=Phase.GROWING, message=message, pool=state.pool)
        return None

    def _rests(self, *, goes_on: bool = True) -> Step | None:
        """A move that has shrunk a pool goes on without a rest to what it was for."""
        changed_at_s = self.memory.changed_at_s
        if changed_at_s is None or (goes_on and self.memory.has_shrunk):
            return None
        left_s = changed_at_s + self.rules.cooldown_s - self.now_s
        if left_s <= 0.0:
            return None
        message = f"the next move begins {self.rules.cooldown_s:g} s after the last"
        return Step(phase=Phase.COOLING_DOWN, message=message, again_after_s=left_s)

    def _leaves(self, gains: PoolState) -> Step:
        names = sorted(state.pool for state in self.pools if state.leaving_gpus)
        message = f"waiting for replicas of {', '.join(names) or 'other pools'} to be gone before {gains.pool} grows"
        return Step(phase=Phase.SHRINKING, message=message, pool=gains.pool)

    def _no_room(self, state: PoolState) -> Step:
        message = f"{state.pool} needs {state.gpus_per_replica} GPUs for one more replica, {max(0, self.free)} are free"
        return Step(phase=Phase.BLOCKED, message=message, pool=state.pool)

    def _stabilizing(self) -> Step:
        young = [wish.since_s for wish in self.memory.wishes.values() if not self._is_stable(wish)]
        left_s = min((since_s + self.rules.stabilization_s - self.now_s for since_s in young), default=None)
        asked = ", ".join(f"{pool} {wish.replicas}" for pool, wish in sorted(self.memory.wishes.items()))
        message = f"asked for: {asked}; a change is made once it was asked for during {self.rules.stabilization_s:g} s"
        return Step(phase=Phase.STABILIZING, message=message, again_after_s=left_s)

    def _idle(self) -> Step:
        if waits := [state for state in self.pools if state.ready < state.declared]:
            message = f"{waits[0].pool}: {waits[0].ready} of {waits[0].declared} replicas are ready"
            return Step(phase=Phase.GROWING, message=message, pool=waits[0].pool)
        if waits := [state for state in self.pools if state.leaving_gpus]:
            message = f"{waits[0].pool}: {waits[0].surplus + waits[0].terminating} replicas are going"
            return Step(phase=Phase.SHRINKING, message=message, pool=waits[0].pool)
        return Step(phase=Phase.SETTLED, message="every pool has the replicas that are wanted")

    def _target(self, state: PoolState) -> int:
        wish = self.memory.wishes.get(state.pool)
        return state.bounded(wish.replicas) if wish is not None and self._is_stable(wish) else state.declared

    def _is_stable(self, wish: Wish) -> bool:
        return self.now_s - wish.since_s >= self.rules.stabilization_s

    def _asks(self, state: PoolState) -> int:
        wish = self.memory.wishes.get(state.pool)
        return 0 if wish is None else wish.replicas - state.declared

    def _may_free_more(self) -> bool:
        """Whether a wish that is still young would give GPUs back."""
        return any(self._asks(state) < 0 and self.target[state.pool] == state.declared for state in self.pools)

    def _most(self, state: PoolState) -> int:
        return min(abs(self.target[state.pool] - state.declared), self.rules.max_step)

    def _ordered(self, states: list[PoolState]) -> list[PoolState]:
        """The largest change first, in GPUs; of equal ones by name."""
        return sorted(
            states, key=lambda one: (-abs(self.target[one.pool] - one.declared) * one.gpus_per_replica, one.pool)
        )

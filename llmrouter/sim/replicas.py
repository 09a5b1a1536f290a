"""Replicas that come and go while a run goes on: as the controllers of a cluster have them, told by a ``Planner``.

Each pool has so many places for replicas. One that is declared takes a place and its GPUs at once, serves after
``start_s``, and one that is told to end loses what is in flight on it and gives its GPUs back ``stop_s`` later. Those
that a planner wants drained get no new requests. Replicas that go are, in this order, those that do not serve yet,
those that drain, and those with the fewest requests in flight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import numpy as np

from llmrouter.errors import InvalidInputError
from llmrouter.planning.steps import PoolState
from llmrouter.sim.setup import Setup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.sim.kernel.records import World
    from llmrouter.sim.model import EngineModel
    from llmrouter.sim.setup import RouterSide


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPool:
    """A pool whose replicas may change.

    Attributes:
        name: as planners know it.
        engine: what each replica runs.
        replicas: how many there are, and serve, when the run begins.
        most: how many there may be at once, those that end included.
        gpus_per_replica: that each takes.
        min_replicas: the fewest that planners may declare.
        models: those that it serves; none for all.
    """

    name: str
    engine: EngineModel
    replicas: int
    most: int
    gpus_per_replica: int = 1
    min_replicas: int = 0
    models: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not 0 <= self.replicas <= self.most or self.most < 1:
            raise InvalidInputError(f"pool {self.name}: replicas must be 0 to most, {self.most}, not {self.replicas}")
        if self.engine.prefix_caching:
            raise InvalidInputError(f"pool {self.name}: replicas that come and go with prefix caches are not simulated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """Seconds from a declaration to a replica that serves, of a drain at most, of an end, and between two looks."""

    start_s: float = 60.0
    drain_s: float = 120.0
    stop_s: float = 5.0
    look_every_s: float = 5.0

    def __post_init__(self) -> None:
        for name in ("start_s", "drain_s", "stop_s"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise InvalidInputError(f"{name} must be finite and at least 0, not {getattr(self, name)}")
        if not 0.0 < self.look_every_s < math.inf:
            raise InvalidInputError(f"look_every_s must be finite and above 0, not {self.look_every_s}")


class Planner(Protocol):
    """Whoever says how many replicas there should be."""

    def look(self, replicas: Replicas, *, now_s: float) -> None:
        """Called every ``look_every_s``: may ``declare`` and ``drain``."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The replicas from an instant on: what was observed of each pool, and the GPUs they take together."""

    at_s: float
    pools: tuple[PoolState, ...]
    gpus: int


class _Phase(Enum):
    GONE = 0
    STARTING = 1
    READY = 2
    ENDING = 3


@dataclass(slots=True)
class _Place:
    """A place for a replica: instance ``e`` of the run."""

    e: int
    phase: _Phase
    due_at_s: float = 0.0
    drains_since_s: float | None = None


@dataclass(slots=True)
class _Kept:
    """A pool and its places."""

    pool: ReplicaPool
    declared: int
    places: list[_Place] = field(default_factory=list)

    def those(self, phase: _Phase) -> list[_Place]:
        return [one for one in self.places if one.phase is phase]


class Replicas:
    """The replicas of one run; ``setup`` has an instance for each place, the pools' one after the other.

    Raises:
        InvalidInputError: no pool, or two of one name.
    """

    def __init__(self, pools: Sequence[ReplicaPool], planner: Planner, lifetimes: Lifetimes | None = None) -> None:
        if not pools or len({pool.name for pool in pools}) < len(pools):
            raise InvalidInputError("pools: at least one is needed, each with a name of its own")
        self.history: list[Moment] = []
        self._times = lifetimes or Lifetimes()
        self._planner = planner
        self._pools: dict[str, _Kept] = {}
        count = 0
        for pool in pools:
            phases = [_Phase.READY] * pool.replicas + [_Phase.GONE] * (pool.most - pool.replicas)
            places = [_Place(count + n, phase) for n, phase in enumerate(phases)]
            self._pools[pool.name] = _Kept(pool, pool.replicas, places)
            count += pool.most
        self._world: World | None = None
        self._now_s = 0.0
        self._next_look_s = 0.0

    def setup(self, routers: RouterSide) -> Setup:
        """The setup of a run with these replicas."""
        kept = self._pools.values()
        serves = tuple(one.pool.models for one in kept for _ in one.places)
        return Setup(
            engines=tuple(one.pool.engine for one in kept for _ in one.places),
            routers=routers,
            serves=serves if all(serves) else (),
            absent=frozenset(place.e for one in kept for place in one.those(_Phase.GONE)),
        )

    def observed(self) -> tuple[PoolState, ...]:
        """Every pool as a planner sees it."""
        return tuple(self._observed(one) for one in self._pools.values())

    @property
    def gpus(self) -> int:
        """GPUs that replicas have: those that start, serve, drain or end."""
        return sum(
            one.pool.gpus_per_replica * (len(one.places) - len(one.those(_Phase.GONE))) for one in self._pools.values()
        )

    def in_flight(self, pool: str) -> int:
        """Requests that the ledger counts on the replicas of a pool."""
        return sum(self._in_flight(place) for place in self._pools[pool].places)

    def dispatched_since(self, since_s: float) -> list[tuple[int, float]]:
        """Rows of the workload that were dispatched from an instant on until now, and when (s), in order."""
        return self._rows("dispatched_at", since_s)

    def finished_since(self, since_s: float) -> list[tuple[int, float]]:
        """Rows that were answered in full from an instant on until now, and when (s), in order."""
        return self._rows("finished_at", since_s)

    def _rows(self, field_name: str, since_s: float) -> list[tuple[int, float]]:
        at_N = self._told().pool.sequences[field_name]
        rows = np.flatnonzero((at_N >= since_s) & (at_N < self._now_s))  # what comes in this instant is yet to come
        rows = rows[np.argsort(at_N[rows], kind="stable")]
        return list(zip(rows.tolist(), at_N[rows].tolist(), strict=True))

    def declare(self, pool: str, replicas: int) -> None:
        """Sets how many replicas a pool is to have; they begin to start, or end, at once."""
        kept = self._pools[pool]
        kept.declared = replicas
        there = kept.those(_Phase.STARTING) + kept.those(_Phase.READY)
        for place in self._going_first(kept)[: max(0, len(there) - replicas)]:
            self._end(place)
        free = kept.those(_Phase.GONE)
        for place in free[: max(0, replicas - len(there))]:
            place.phase, place.due_at_s = _Phase.STARTING, self._now_s + self._times.start_s

    def drain(self, pool: str, count: int) -> None:
        """Has the ``count`` replicas of a pool that would go first take no new requests, and all others take them."""
        for rank, place in enumerate(self._going_first(self._pools[pool])):
            if rank >= count:
                place.drains_since_s = None
            elif place.drains_since_s is None:
                place.drains_since_s = self._now_s

    def control(self, world: World) -> None:
        """Brings the replicas up to the instant that the run has reached, and lets the planner look."""
        self._world, self._now_s = world, float(world.run["now"][0])
        for kept in self._pools.values():
            for place in kept.places:
                self._come_and_go(place)
        if self._now_s >= self._next_look_s:
            self._next_look_s = self._now_s + self._times.look_every_s
            self._planner.look(self, now_s=self._now_s)
            for kept in self._pools.values():
                self.declare(kept.pool.name, kept.declared)  # what ended may leave room for what is to start
            self._note()
        self._tell(world)

    def begin(self, world: World) -> None:
        """Asks to be called first when the run begins."""
        self._world = world
        world.run["control_at"] = 0.0

    def _told(self) -> World:
        if self._world is None:
            raise InvalidInputError("replicas are asked outside a run")
        return self._world

    def _observed(self, kept: _Kept) -> PoolState:
        ready, starting = kept.those(_Phase.READY), kept.those(_Phase.STARTING)
        return PoolState(
            pool=kept.pool.name,
            gpus_per_replica=kept.pool.gpus_per_replica,
            declared=kept.declared,
            ready=len(ready),
            starting=len(starting),
            terminating=len(kept.those(_Phase.ENDING)),
            drained=sum(self._may_go(place) for place in ready + starting),
            min_replicas=kept.pool.min_replicas,
            max_replicas=kept.pool.most,
        )

    def _may_go(self, place: _Place) -> bool:
        if place.drains_since_s is None:
            return False
        return self._in_flight(place) == 0 or self._now_s - place.drains_since_s >= self._times.drain_s

    def _in_flight(self, place: _Place) -> int:
        return int(self._told().pool.engines["ledger_requests"][place.e])

    def _is_empty(self, place: _Place) -> bool:
        return self._in_flight(place) == 0 and self._told().pool.engines["blocks_used"][place.e] == 0

    def _going_first(self, kept: _Kept) -> list[_Place]:
        def rank(place: _Place) -> tuple[bool, bool, int, int]:
            return (
                place.phase is not _Phase.STARTING,
                place.drains_since_s is None,
                self._in_flight(place),
                -place.e,
            )

        return sorted(kept.those(_Phase.STARTING) + kept.those(_Phase.READY), key=rank)

    def _end(self, place: _Place) -> None:
        place.phase, place.due_at_s, place.drains_since_s = _Phase.ENDING, self._now_s + self._times.stop_s, None
        world = self._told()
        if not self._is_empty(place):
            world.pool.engines["lost"][place.e] = 1
            world.run["losing"] = 1

    def _come_and_go(self, place: _Place) -> None:
        if place.due_at_s > self._now_s:
            return
        if place.phase is _Phase.STARTING:
            place.phase = _Phase.READY
        elif place.phase is _Phase.ENDING and self._is_empty(place):
            place.phase = _Phase.GONE

    def _tell(self, world: World) -> None:
        """Writes who takes new requests, and when to be called again."""
        due_s = [self._next_look_s]
        for kept in self._pools.values():
            for place in kept.places:
                accepts = int(place.phase is _Phase.READY and place.drains_since_s is None)
                if accepts != world.pool.engines["accepts"][place.e]:
                    world.pool.engines["accepts"][place.e] = accepts
                    world.dirty[:] = 1
                if place.phase in {_Phase.STARTING, _Phase.ENDING} and place.due_at_s > self._now_s:
                    due_s.append(place.due_at_s)
        world.run["control_at"] = min(due_s)

    def _note(self) -> None:
        if not self.history or self.observed() != self.history[-1].pools:
            self.history.append(Moment(self._now_s, self.observed(), self.gpus))

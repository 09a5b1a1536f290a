"""The simulator's questions to a policy outside it: put as a router puts them, answered into the arrays."""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING

from llmrouter.domain import (
    Hold,
    Instance,
    InstanceView,
    Load,
    Placement,
    PoolSnapshot,
    Request,
    Role,
)
from llmrouter.routing.inflight import kv_bound
from llmrouter.sim.kernel.records import LOAD_FIELDS, MAX_BIDS, NO_CANDIDATE, NONE

if TYPE_CHECKING:
    from llmrouter.routing.policies import Policy
    from llmrouter.sim.kernel.records import World
    from llmrouter.sim.setup import Setup
    from llmrouter.sim.workload import Workload

_NOTHING = Load()


class Asking:
    """Asks a policy what the simulator wants to know.

    With several routers each has a shallow copy of the policy: what it shares with the others is what it was given
    (models, rules), what it remembers by itself (a cursor) is its own.
    """

    def __init__(self, world: World, setup: Setup, workload: Workload, policy: Policy, seed: int) -> None:
        self._rng = random.Random(seed)
        routers = setup.routers.routers
        self._policies = [policy] if routers == 1 else [copy.copy(policy) for _ in range(routers)]
        every = frozenset(workload.models)
        self._stages = setup.routers.stages is not None
        self._all = [
            (
                row * LOAD_FIELDS,
                Instance(
                    instance_id=f"{row:03d}",
                    endpoint=f"{row:03d}:8000",
                    pool=engine.profile.name,
                    profile=engine.profile,
                    models=setup.serves[row] if setup.serves else every,
                    role=engine.role if self._stages else Role.MIXED,
                ),
            )
            for row, engine in enumerate(setup.engines)
            if self._stages or engine.role is not Role.DECODE
        ]
        self._accepts = world.pool.engines["accepts"]
        self.look_around()
        self._refreshes = setup.routers.refresh_s, setup.routers.routers
        self._models, self._applications = workload.models, workload.applications
        self._checks = bool(world.run["checks"][0])
        self._loads, self._rooms = world.asked_loads, world.bid_rooms
        self._cached, self._caches = world.asked_cached, bool(world.pool.engines["prefix_caching"].any())
        # Single numbers are read from memory views: several times as fast as from arrays.
        self._bids, self._prefills, self._prefill_rooms = world.bids.data, world.bid_prefills, world.bid_prefill_rooms
        run = world.run
        self._now, self._asking, self._router = (run[name].data for name in ("now", "asking", "asking_router"))
        self._answered, self._count = run["answered"].data, run["bids"].data
        self._sensitive, self._until = run["load_sensitive"].data, run["hold_until"].data
        self._size = run["hold_size"].data
        self._held, self._since = run["asking_held"].data, run["asking_since"].data
        self._gap, self._batch = run["gap"].data, setup.routers.batch
        self._is_batch = world.pool.sequences["batch"].data
        self._arrived_at = world.pool.sequences["arrived_at"].data
        self._prompt, self._predicted = workload.prompt_tokens.data, workload.predicted_output_tokens.data
        self._model, self._application = workload.model.data, workload.application.data

    def look_around(self) -> None:
        """Notes which instances take new requests: at first, and whenever that has changed."""
        self._instances = [one for one in self._all if self._accepts[one[0] // LOAD_FIELDS]]
        self._place_of = {instance.instance_id: place for place, (_, instance) in enumerate(self._instances)}
        self._rows = [at // LOAD_FIELDS for at, _ in self._instances]

    def answer(self) -> None:
        """Answers the question that the arrays hold.

        Raises:
            KeyError: the policy names an instance that it was not shown.
        """
        row, policy = self._asking[0], self._policies[self._router[0] if len(self._policies) > 1 else 0]
        snapshot = self._snapshot()
        request = self._request(row)
        seen = self._batch.gaps(request, snapshot) if self._gap[0] else snapshot
        decision = seen if isinstance(seen, Hold) else policy.decide(request, seen, self._rng)
        self._answered[0] = 1
        if isinstance(decision, Placement):
            self._bid(decision, snapshot, policy)
        elif isinstance(decision, Hold):
            self._count[0] = 0
            self._hold(decision)
        else:
            self._count[0] = NO_CANDIDATE

    def _hold(self, hold: Hold) -> None:
        """Says when the head tries again, as a router's line would; an instant that is over says nothing."""
        if hold.until_s is not None and hold.until_s > self._now[0]:
            self._until[0] = hold.until_s
        self._size[0] = hold.until_held or 0

    def _bid(self, decision: Placement, snapshot: PoolSnapshot, policy: Policy) -> None:
        """Writes the candidates; where they are checked again, also the bounds that the reserve call holds them to."""
        candidates = decision.candidates[: MAX_BIDS if self._checks else 1]
        self._count[0] = len(candidates)
        for bid, candidate in enumerate(candidates):
            place = self._place_of[candidate.instance_id]
            self._bids[bid] = self._rows[place]
            if self._checks:
                self._rooms[3 * bid : 3 * bid + 3] = self._room(policy, snapshot.views[place])
            if self._stages:
                self._prefills[bid] = NONE
            if candidate.prefill is not None:
                place = self._place_of[candidate.prefill.instance_id]
                self._prefills[bid] = self._rows[place]
                self._prefill_rooms[3 * bid : 3 * bid + 3] = self._room(policy, snapshot.views[place])
        self._sensitive[0] = decision.load_sensitive

    def _room(self, policy: Policy, view: InstanceView) -> tuple[float, float, float]:
        room = policy.room_of(view)
        if self._gap[0]:
            room = self._batch.tightened(room, view.instance.profile)
        return room.max_requests, kv_bound(room), room.decode_reserve_fraction

    def _request(self, row: int) -> Request:
        return Request(
            request_id=f"r{row}",
            model=self._models[self._model[row]],
            prompt_tokens=self._prompt[row],
            predicted_output_tokens=self._predicted[row],
            arrived_at_s=self._arrived_at[row],
            application=self._applications[self._application[row]],
            cached_tokens=self._cached_tokens(),
            batch=bool(self._is_batch[row]),
        )

    def _cached_tokens(self) -> dict[str, int]:
        if not self._caches:
            return {}
        cached = self._cached.tolist()
        return {one.instance_id: tokens for at, one in self._instances if (tokens := cached[at // LOAD_FIELDS])}

    def _snapshot(self) -> PoolSnapshot:
        loads = self._loads.tolist()
        views = []
        for at, instance in self._instances:
            requests, context, queued, remaining = loads[at : at + LOAD_FIELDS]
            load = Load(int(requests), int(context), int(queued), remaining)
            views.append(InstanceView(instance, load, _NOTHING))
        since_s = self._since[0]
        return PoolSnapshot(
            tuple(views),
            self._now[0],
            load_age_s=self._load_age_s(),
            held=self._held[0],
            head_since_s=since_s if since_s >= 0.0 else None,
        )

    def _load_age_s(self) -> float:
        """Seconds since the router's view was refreshed as a whole; routers take turns, see ``run.play``."""
        period_s, routers = self._refreshes
        if period_s <= 0.0:
            return 0.0
        since_first_s = self._now[0] - period_s * self._router[0] / routers
        return float(self._now[0] if since_first_s < 0.0 else since_first_s % period_s)

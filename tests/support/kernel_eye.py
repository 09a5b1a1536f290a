"""The simulator's own decision on a snapshot that somebody else took."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.sim_worlds import Interpreted

from llmrouter.domain import Hold, Placement
from llmrouter.sim.arrays import lay_out
from llmrouter.sim.kernel.decisions import name_bids
from llmrouter.sim.kernel.records import LOAD_FIELDS
from llmrouter.sim.model import EngineModel
from llmrouter.sim.run import _configure
from llmrouter.sim.setup import RouterSide, Setup
from llmrouter.sim.workload import Workload

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Sequence

    from llmrouter.domain import Decision, EngineProfile, InstanceView, PoolSnapshot, Request, Room
    from llmrouter.routing.policies import Policy
    from llmrouter.sim.setup import CompiledPolicy

Seen = tuple["Request", "PoolSnapshot"]


class Recorder:
    """Decides as another policy, and keeps every question."""

    def __init__(self, policy: Policy) -> None:
        self.name = policy.name
        self.seen: list[Seen] = []
        self._policy = policy

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        self.seen.append((request, snapshot))
        return self._policy.decide(request, snapshot, rng)

    def room_of(self, view: InstanceView) -> Room:
        return self._policy.room_of(view)


class KernelEye:
    """The kernel of the simulator, interpreted, that is shown requests and loads and says whom it would name."""

    def __init__(self, policy: CompiledPolicy, profiles: Sequence[EngineProfile], seen: Iterable[Seen]) -> None:
        requests = [request for request, _ in seen]
        count = len(requests)
        workload = Workload.of(
            [float(n) for n in range(count)],
            [one.prompt_tokens for one in requests],
            [1] * count,
            predicted_output_tokens=[one.predicted_output_tokens for one in requests],
        )
        # Views that age are what a decision is made of, and the loads that a reserve call checks make it name several.
        self._requests = requests
        side = RouterSide(refresh_s=1.0, max_wait_s=policy.batch_hold.longest_wait_s)
        setup = Setup(engines=tuple(map(EngineModel, profiles)), routers=side)
        arrays = lay_out(setup, workload, seed=1)
        _configure(arrays, setup, policy)
        self._world = Interpreted()._copy_of(arrays)

    def named(self, row: int, snapshot: PoolSnapshot) -> list[int]:
        """Instances that the kernel names for a request, the best first; empty where none has room."""
        world, request = self._world, self._requests[row]
        run, now_s = world.run[0], snapshot.taken_at_s
        run._now = now_s
        world.pool.sequences[row].arrived_at = request.arrived_at_s
        world.pool.sizes[2 * run.instances] = snapshot.held
        world.head_since[0] = now_s if snapshot.head_since_s is None else snapshot.head_since_s
        for place, view in enumerate(snapshot.views):
            load, at = view.total, place * LOAD_FIELDS
            world.views[at : at + LOAD_FIELDS] = [
                *(float(load.requests), float(load.context_tokens), float(load.queued_prefill_tokens)),
                load.remaining_decode_tokens,
            ]
        return [int(bid) for bid in world.bids[: name_bids(world, 0, row)]]

    def best(self, row: int, snapshot: PoolSnapshot, *, draws: int) -> set[int]:
        """Who comes first in so many draws: of four that tie, 40 draws miss one once in 25,000 times."""
        return {named[0] for _ in range(draws) if (named := self.named(row, snapshot))}


def ranked(decision: Decision, snapshot: PoolSnapshot) -> list[tuple[int, float]]:
    """Places and scores of a decision's candidates; empty where it holds."""
    assert isinstance(decision, Placement | Hold)
    if isinstance(decision, Hold):
        return []
    place_of = {view.instance.instance_id: place for place, view in enumerate(snapshot.views)}
    return [(place_of[one.instance_id], one.score) for one in decision.candidates]

"""What is still in flight on instances that are to go: the operator waits for it."""

from __future__ import annotations

from heapq import nsmallest
from typing import TYPE_CHECKING

from llmrouter.acknowledgement import MAX_QUIETEST

if TYPE_CHECKING:
    from router_grpc.world import World

QUIETEST_OF_A_POOL = 8


def in_flight_on_draining(world: World) -> dict[str, int]:
    """Requests in flight by draining instance: what the ledger has of all routers, and what the engine has besides."""
    now_s = world.clock()
    known = {one.instance_id: one for one in world.instances.current()}
    return {
        name: world.replica.view(known[name], now_s=now_s).total.requests
        if name in known
        else world.replica.load_of(name).requests
        for name in world.instances.draining
    }


def quietest_pods(world: World) -> dict[str, int]:
    """The pods of each pool with the fewest requests in flight that are not told to go, and how many they have."""
    now_s = world.clock()
    by_pool: dict[str, list[tuple[int, str]]] = {}
    for one in world.instances.current():
        if one.instance_id != one.endpoint and one.instance_id not in world.instances.draining:
            requests = world.replica.view(one, now_s=now_s).total.requests
            by_pool.setdefault(one.pool, []).append((requests, one.instance_id))
    least = [pair for pairs in by_pool.values() for pair in nsmallest(QUIETEST_OF_A_POOL, pairs)]
    return {name: requests for requests, name in least[:MAX_QUIETEST]}


class EmptyWatch:
    """Notices which draining instances have nothing in flight, so that it is told at once."""

    def __init__(self) -> None:
        self._empty: frozenset[str] = frozenset()

    def has_changed(self, world: World) -> bool:
        """Whether other ones are empty than at the last look."""
        if not world.instances.draining and not self._empty:
            return False
        empty = frozenset(name for name, requests in in_flight_on_draining(world).items() if requests == 0)
        before, self._empty = self._empty, empty
        return empty != before

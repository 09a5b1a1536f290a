"""Where a request goes that makes no tokens: to the ready instance with the fewest requests, without a reservation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.domain import Role
from llmrouter.errors import NoInstanceError
from router_grpc.calls import allows

if TYPE_CHECKING:
    from router_grpc.world import World


def least_loaded(world: World, subset: frozenset[str] | None) -> str:
    """Endpoint of the ready instance with the fewest requests in flight, of equal ones any.

    Raises:
        NoInstanceError: nothing is ready, or nothing of ``subset`` is.
    """
    now_s = world.clock()
    views = [
        world.replica.view(one, now_s=now_s)
        for one in world.ready()
        if one.role is not Role.PREFILL and allows(subset, one.endpoint)
    ]
    if not views:
        raise NoInstanceError("no instance is ready" if subset is None else "no instance of the subset is ready")
    least = min(view.total.requests for view in views)
    return world.rng.choice([view for view in views if view.total.requests == least]).instance.endpoint

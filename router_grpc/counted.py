"""What every listener counts of a request that it asks a place for: its outcome, and the time that it took."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.errors import LLMRouterError
from router_grpc.forwarding import least_loaded

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from router_grpc.calls import RouteAnswer, RouteAsk
    from router_grpc.service import RouterService
    from router_grpc.world import World


async def counted_route(
    world: World, service: RouterService, ask: RouteAsk, *, deadline_s: float | None = None
) -> RouteAnswer:
    """``service.route``, counted; raises what that raises."""
    return await counted(world, service.route(ask, deadline_s=deadline_s), since_s=world.clock())


async def counted(world: World, step: Awaitable[RouteAnswer], *, since_s: float) -> RouteAnswer:
    """The answer of a step of what began at ``since_s``, counted; raises what the step raises."""
    try:
        answer = await step
    except LLMRouterError as error:
        world.metrics.requests.labels(error.reason).inc()
        raise
    world.metrics.requests.labels("Routed").inc()
    world.metrics.route_seconds.observe(world.clock() - since_s)
    return answer


def counted_forward(world: World, subset: frozenset[str] | None) -> str:
    """``least_loaded``, counted; raises what that raises."""
    try:
        endpoint = least_loaded(world, subset)
    except LLMRouterError as error:
        world.metrics.requests.labels(error.reason).inc()
        raise
    world.metrics.requests.labels("Forwarded").inc()
    return endpoint

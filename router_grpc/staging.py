"""Requests whose prompt one instance computes and another decodes: what the router notes of both."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmrouter.domain import Role
from llmrouter.routing.inflight import prefill_contribution

if TYPE_CHECKING:
    from llmrouter.domain import Instance, Request, Reservation
    from llmrouter.routing.prefixes import Use
    from router_grpc.open_requests import OpenRequest
    from router_grpc.world import World


def needs_prefill(reservation: Reservation) -> bool:
    """Whether another instance still computes the prompt."""
    return bool(reservation.prefill_instance_id) and not reservation.prefilled


def dispatched(world: World, request: Request, entry: OpenRequest, chosen: Instance, prefill: Instance | None) -> None:
    """A request goes to ``chosen``; ``prefill`` computes its prompt where that is another one.

    A prompt that is handed over is in the prefix cache of both.
    """
    now_s = world.clock()
    world.outliers.dispatched(chosen.instance_id, request.request_id, now_s=now_s)
    if prefill is not None:
        world.outliers.dispatched(prefill.instance_id, request.request_id, now_s=now_s)
    if entry.cost is None and (prefill is not None or chosen.role is not Role.MIXED):  # no repeated answer
        world.metrics.prompts.labels((prefill or chosen).role.value).inc()
    if entry.prefix is None:
        entry.prefix = _cached(world, request, chosen, prefill)
    world.calibrating.dispatched(entry.reservation, chosen, world.replica, now_s=now_s)


def _cached(world: World, request: Request, chosen: Instance, prefill: Instance | None) -> Use | None:
    if prefill is not None:
        world.prefixes.handed_over(request, chosen)
    return world.prefixes.sent(request, prefill or chosen, world.metrics.prefixes)


def counted_in_engine(world: World, instance_id: str) -> int:
    """Requests counted on an instance whose engine has heard of them: not of one whose prompt another still computes.

    Of other routers' requests as many are taken to be so, in proportion, as of this one's.
    """
    counted = world.replica.load_of(instance_id).requests
    if not world.presuming.has_stages:
        return counted
    own = [needs_prefill(one) for one in world.open_requests.reservations() if one.instance_id == instance_id]
    return counted - round(counted * sum(own) / len(own)) if own else counted


def instances_of(reservation: Reservation, *, at_work: bool = False) -> tuple[str, ...]:
    """The instances of a request, in the order that it passes them; ``at_work`` those that it has not left yet.

    A request that fails before its first token speaks against both: who of the two is well answers others meanwhile.
    """
    if needs_prefill(reservation) if at_work else reservation.prefill_instance_id:
        return reservation.prefill_instance_id, reservation.instance_id
    return (reservation.instance_id,)


def first_token(world: World, reservation: Reservation) -> bool:
    """The first token is there: the instance that computed the prompt, if that was another one, has room again."""
    if not reservation.prefill_instance_id:
        return False
    world.answered(reservation.prefill_instance_id, reservation.request_id)
    part = prefill_contribution(replace(reservation, prefilled=False))
    if part is not None:
        world.replica.subtract(reservation.prefill_instance_id, part)
    return True

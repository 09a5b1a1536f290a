"""Bids of a reserve call: what a decision's candidates were scored on, and the room that each must still have."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmrouter.domain import Room
from router_grpc.ports import Bid

if TYPE_CHECKING:
    from llmrouter.domain import Candidate, InstanceView, Request
    from llmrouter.routing.batch import BatchRules
    from llmrouter.routing.guard import Guard
    from router_grpc.world import World


def bid_of(world: World, request: Request, candidate: Candidate, guard: Guard, batch: BatchRules | None) -> Bid | None:
    """A candidate's bid, and that of who computes its prompt; ``None`` where one of them is gone."""
    instance = world.instances.get(candidate.instance_id)
    if instance is None:
        return None
    bid = _bid(request, candidate, world.replica.view(instance, now_s=world.clock()), guard, batch)
    if candidate.prefill is None:
        return bid
    prefill = bid_of(world, request, candidate.prefill, guard, batch)
    return None if prefill is None else replace(bid, prefill=prefill)


def _bid(request: Request, candidate: Candidate, view: InstanceView, guard: Guard, batch: BatchRules | None) -> Bid:
    room = guard.room_of(view)
    if batch is not None:
        room = batch.tightened(room, view.instance.profile)
    if view.foreign.requests or view.foreign.context_tokens:
        limit = room.kv_limit_tokens
        room = Room(
            max_requests=max(1, room.max_requests - view.foreign.requests),
            kv_limit_tokens=None if limit is None else max(0, limit - view.foreign.context_tokens),
            decode_reserve_fraction=room.decode_reserve_fraction,
        )
    cached_tokens = request.cached_tokens.get(candidate.instance_id, 0)
    return Bid(candidate.instance_id, candidate.seen.requests, room, cached_tokens)

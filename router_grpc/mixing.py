"""Tells the meter of the traffic's mix what was dispatched and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.lengths.predictor import refusal
from llmrouter.planning.mix import Dispatched

if TYPE_CHECKING:
    from router_grpc.length_service import Foretold
    from router_grpc.open_requests import OpenRequest
    from router_grpc.world import World


def note_dispatch(world: World, request_id: str, foretold: Foretold) -> Foretold:
    """Keeps what was foretold of an open request, and counts it once; returns what its first call foretold: it stays.

    A request whose instance went away meanwhile counts for nothing: it will be asked for again. What fails or is
    cancelled later stays as foretold, and a request that is reported at another router is corrected by nobody.
    """
    entry = world.open_requests.get(request_id)
    if entry is None:
        return foretold
    if entry.foretold is not None:
        return entry.foretold
    entry.foretold, reservation, prompt_tokens = foretold, entry.reservation, foretold.prompt_tokens
    instance = world.instances.get(reservation.instance_id)
    if instance is not None:
        sharers = max(1, world.replica.load_of(instance.instance_id).requests)
        cached_tokens = min(reservation.cached_tokens, prompt_tokens)
        entry.dispatched = Dispatched(
            foretold.law, prompt_tokens, instance.profile, sharers, cached_tokens, foretold.request.model
        )
        world.mix.dispatched(entry.dispatched, now_s=world.clock())
    return foretold


def note_finish(world: World, entry: OpenRequest, output_tokens: int, *, now_s: float) -> None:
    """Corrects what was foretold of a request that was counted; usage that cannot be true corrects nothing."""
    if entry.dispatched is None or entry.foretold is None or refusal(entry.foretold.request, output_tokens) is not None:
        return
    world.mix.finished(entry.dispatched, output_tokens=output_tokens, now_s=now_s)

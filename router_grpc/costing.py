"""What a decision promised and what came of it: seconds on the chosen instance, foretold and taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.quick import quick
from llmrouter.routing.own_time import own_times
from llmrouter.routing.stages import decode_row, prefill_s, prompt_of, row_of
from router_grpc.staging import needs_prefill

if TYPE_CHECKING:
    from llmrouter.domain import InstanceView, PoolSnapshot, Request
    from router_grpc.open_requests import OpenRequest
    from router_grpc.world import World


@quick
@dataclass(frozen=True, slots=True)
class ForetoldCost:
    """Seconds from dispatch to finish, and to the first token, as the decision saw them, whoever made it."""

    policy: str
    seconds: float
    first_token_s: float
    dispatched_at_s: float


def own_seconds(request: Request, view: InstanceView, prefill: InstanceView | None = None) -> tuple[float, float]:
    """Seconds that a request is expected to take on an instance, and that the first of its tokens does.

    Both are ``own`` of the marginal cost, on the loads seen; with those that its prompt takes elsewhere, if it does.
    """
    if prefill is None:
        return own_times(row_of(request, view))
    before_s = prefill_s(prompt_of(request), prefill)
    whole_s, first_s = own_times(decode_row(request, view))
    return before_s + whole_s, before_s + first_s


def note_cost(world: World, request: Request, entry: OpenRequest, snapshot: PoolSnapshot, policy: str) -> None:
    """Keeps what is foretold of a dispatch, by the snapshot that decided it; a repeated answer changes nothing."""
    if entry.cost is not None:
        return
    reservation = entry.reservation
    chosen = world.replica.find(snapshot, reservation.instance_id)
    if chosen is not None:
        staged = needs_prefill(reservation)
        prefill = world.replica.find(snapshot, reservation.prefill_instance_id) if staged else None
        entry.cost = ForetoldCost(policy, *own_seconds(request, chosen, prefill), world.clock())


def observe_cost(world: World, entry: OpenRequest, *, now_s: float) -> None:
    """Shows the seconds that a finished request took as a share of those foretold."""
    cost = entry.cost
    if cost is not None and cost.seconds > 0.0:
        ratio = max(0.0, now_s - cost.dispatched_at_s) / cost.seconds
        world.metrics.cost_ratio.labels(cost.policy).observe(ratio)
        world.presuming.learn(ratio)

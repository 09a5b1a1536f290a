"""What a decision promised and what came of it: seconds on the chosen instance, foretold and taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.quick import quick
from llmrouter.routing.rules import PREDICTED, own_latency
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
    row = row_of(request, view) if prefill is None else decode_row(request, view)
    before_s = 0.0 if prefill is None else prefill_s(prompt_of(request), prefill)
    first = (*row[:PREDICTED], 1.0, *row[PREDICTED + 1 :])
    return before_s + float(own_latency(row)), before_s + float(own_latency(first))


def note_cost(world: World, request: Request, entry: OpenRequest, snapshot: PoolSnapshot, policy: str) -> None:
    """Keeps what is foretold of a dispatch, by the snapshot that decided it; a repeated answer changes nothing."""
    if entry.cost is not None:
        return
    reservation = entry.reservation
    chosen = _view_of(snapshot, reservation.instance_id)
    if chosen is not None:
        prefill = _view_of(snapshot, reservation.prefill_instance_id) if needs_prefill(reservation) else None
        entry.cost = ForetoldCost(policy, *own_seconds(request, chosen, prefill), world.clock())


def _view_of(snapshot: PoolSnapshot, instance_id: str) -> InstanceView | None:
    for view in snapshot.views:
        if view.instance.instance_id == instance_id:
            return view
    return None


def observe_cost(world: World, entry: OpenRequest, *, now_s: float) -> None:
    """Shows the seconds that a finished request took as a share of those foretold."""
    cost = entry.cost
    if cost is not None and cost.seconds > 0.0:
        ratio = max(0.0, now_s - cost.dispatched_at_s) / cost.seconds
        world.metrics.cost_ratio.labels(cost.policy).observe(ratio)
        world.presuming.learn(ratio)

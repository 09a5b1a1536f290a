"""A Route call as what is asked of policies and of the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.domain import Request
from router_grpc.ports import Bid, ReserveAsk

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.routing.claims import Claim
    from router_grpc.calls import RouteAsk
    from router_grpc.length_service import Foretold
    from router_grpc.prefixing import NamedPrompt


def request_of(
    ask: RouteAsk,
    foretold: Foretold,
    excluded: frozenset[str],
    *,
    request_id: str,
    named: NamedPrompt,
    hits: Mapping[str, int],
    arrived_at_s: float,
) -> Request:
    """A request as policies see it; ``hits`` are prompt tokens by who has them cached."""
    return Request(
        request_id=request_id,
        model=ask.model,
        prompt_tokens=foretold.prompt_tokens,
        predicted_output_tokens=foretold.law.expected_tokens,
        arrived_at_s=arrived_at_s,
        application=ask.application,
        max_output_tokens=ask.max_output_tokens or None,
        excluded_instance_ids=excluded,
        predicted_rank=foretold.law.rank,
        priority=ask.priority,
        tenant=ask.tenant,
        deadline_at_s=arrived_at_s + ask.deadline_ms / 1000 if ask.deadline_ms else None,
        cached_tokens=hits,
        prefix_hashes=named[0],
        prefix_block_tokens=named[1],
        batch=ask.batch,
    )


def reserve_ask(
    request: Request,
    bids: tuple[Bid, ...],
    *,
    tolerance: int | None,
    final: bool,
    claim: Claim | None = None,
) -> ReserveAsk:
    """What the ledger is asked for it."""
    expected_tokens = request.predicted_output_tokens
    return ReserveAsk(
        request.request_id, request.prompt_tokens, expected_tokens, bids, tolerance, final, request.model, claim
    )

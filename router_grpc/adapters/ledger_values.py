"""What both ledgers agree on: exact units, bounds, and which candidate a reserve call commits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.errors import InvalidRequestError
from llmrouter.routing.inflight import has_room
from router_grpc.ports import ReserveOutcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmrouter.domain import Load
    from router_grpc.ports import Bid, ReserveAsk

MAX_TOKENS = 10**9
"""Bound of every token count of one reservation: sums of millions of them stay exact in a double."""

MILLI = 1000
FIRST_TTL_S = 30.0
"""How long a router that reserves before its first heartbeat is taken to live."""

TAKEN_MAX = 10_000
"""How many take-overs a ledger remembers for a router that does not reconcile."""


def milli_tokens(tokens: float) -> int:
    """Tokens as whole milli-tokens: the unit in which ledgers add, so that sums return to zero.

    Raises:
        InvalidRequestError: where ``tokens`` is not a number between 0 and ``MAX_TOKENS``.
    """
    if not 0 <= tokens <= MAX_TOKENS:
        raise InvalidRequestError(f"tokens must be between 0 and {MAX_TOKENS}, not {tokens}")
    return round(tokens * MILLI)


def whole_tokens(tokens: int) -> int:
    """Returns ``tokens`` where it is within the bounds of ``milli_tokens``; raises as that does."""
    if not 0 <= tokens <= MAX_TOKENS:
        raise InvalidRequestError(f"tokens must be between 0 and {MAX_TOKENS}, not {tokens}")
    return tokens


def check_bids(bids: Sequence[Bid]) -> None:
    """Raises InvalidRequestError where cached tokens are out of bounds."""
    for bid in bids:
        if bid.cached_tokens:
            whole_tokens(bid.cached_tokens)
        if bid.prefill is not None:
            whole_tokens(bid.prefill.cached_tokens)


def choose(ask: ReserveAsk, loads: Mapping[str, Load], predicted_output_tokens: float) -> Bid | ReserveOutcome:
    """The bid to commit on ``loads``, or why there is none: the rule of ``ReserveAsk``.

    The first candidate with room that gained at most the tolerance; where there is none and the call is final, the
    one with room that gained least. ``predicted_output_tokens`` are those of ``ask`` as the ledger counts them.
    """
    moved = []
    for bid in ask.bids:
        if not _has_place(ask, bid, loads, predicted_output_tokens):
            continue
        if bid.prefill is not None and not _has_place(ask, bid.prefill, loads, 0.0):
            continue
        if ask.moved_tolerance is None or _gain(bid, loads) <= ask.moved_tolerance:
            return bid
        moved.append(bid)
    if not moved:
        return ReserveOutcome.FULL
    return min(moved, key=lambda bid: _gain(bid, loads)) if ask.final else ReserveOutcome.MOVED


def _has_place(ask: ReserveAsk, bid: Bid, loads: Mapping[str, Load], output_tokens: float) -> bool:
    load, prompt_tokens = loads[bid.instance_id], ask.prompt_tokens
    return has_room(load, bid.room, prompt_tokens=prompt_tokens, predicted_output_tokens=output_tokens)


def _gain(bid: Bid, loads: Mapping[str, Load]) -> int:
    """How many requests a bid's instance has gained since it was seen; the most of the two, where there are two."""
    own = loads[bid.instance_id].requests - bid.seen_requests
    return own if bid.prefill is None else max(own, _gain(bid.prefill, loads))

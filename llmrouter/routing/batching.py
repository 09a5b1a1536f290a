"""Batch-hold: engines that prefill first are given their prompts in batches, not one by one.

Such an engine stops all that decode for every prefill step, whether it has one prompt or ten. So where the cheapest
instance is *closed*, for it prefills first, decodes, and has no prompt queued, the head of the line waits: until a
batch waits that the instance has room for, or until it has been the first for long enough. Then it goes, and what waits
behind it follows, for the marginal cost finds an instance with prompts queued cheaper by ``coalesce``.

Nobody waits where few decode: a batch then spares them less than the wait costs. Where the cheapest instance is not
closed nobody waits either: it is idle, chunks its prefills, or has prompts queued. A prompt
joins others only where that is cheapest. To join wherever it can, though another instance would be cheaper alone, makes
one instance prefill for seconds while the others decode little: the sooner, the more instances share the arrivals.

``waits_for_batch`` is written over plain numbers: the router calls it, the simulator compiles it. The features x of an
instance are those of ``rules``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.domain import Hold
from llmrouter.routing.inflight import kv_bound
from llmrouter.routing.rules import BASE, CONTEXT, PREDICTED, PREFILL_FIRST, PROMPT, QUEUED, REMAINING, REQUESTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmrouter.domain import BatchHold, InstanceView, PoolSnapshot, Request, Room

MOST_OF_WAIT = 0.5
"""Share of the longest hold after which nobody waits at will: who waited so long is to go where there is room."""


def hold_for_batch(
    rules: BatchHold,
    x: Sequence[float],
    room: Room,
    *,
    request: Request,
    snapshot: PoolSnapshot,
    roomy: Iterable[InstanceView],
) -> Hold | None:
    """A hold at will, or ``None``; x are the features of the cheapest ``roomy`` instance, ``room`` its bound."""
    now_s = snapshot.taken_at_s
    since_s = now_s if snapshot.head_since_s is None else snapshot.head_since_s
    until_s = at_the_latest_s(since_s, request.arrived_at_s, rules.wait_s, rules.longest_wait_s)
    if not (since_s <= now_s < until_s and snapshot.load_age_s <= rules.stale_after_s):
        return None
    if not waits_for_batch(x, snapshot.held, rules.size, rules.wait_s, kv_bound(room), room.decode_reserve_fraction):
        return None
    if any(view.total.requests <= 0 for view in roomy):
        return None
    reason = f"the cheapest instance decodes and has no prompt queued: it is given {rules.size} together"
    return Hold(reason, until_s, rules.size if snapshot.held < rules.size else None)


def at_the_latest_s(head_since_s: float, arrived_at_s: float, wait_s: float, longest_wait_s: float) -> float:
    """Until when a head may wait at will (s)."""
    return min(head_since_s + wait_s, arrived_at_s + MOST_OF_WAIT * longest_wait_s)


def waits_for_batch(  # noqa: PLR0917 - compiled by the simulator, which passes by position
    x: Sequence[float], held: int, size: int, wait_s: float, kv_limit_tokens: float, decode_reserve_fraction: float
) -> bool:
    """Whether an instance is closed, there is no batch for it, and one would be worth waiting for.

    A batch spares each of the n that decode a stall for every prompt but the first: ``n·b·(size − 1)`` seconds in all,
    which must be ``wait_s`` at least.

    A batch is ``size`` requests that are ``held`` and that fit, were they all like this one:
    ``C + size·p + r·(R + size·d)`` is within the KV limit; one below 0 bounds nothing.
    """
    if x[PREFILL_FIRST] <= 0.0 or x[REQUESTS] <= 0.0 or x[QUEUED] > 0.0 or size <= 1:
        return False
    if x[REQUESTS] * x[BASE] * (size - 1) < wait_s:
        return False
    if held < size:
        return True
    if kv_limit_tokens < 0.0:
        return False
    expected = decode_reserve_fraction * (x[REMAINING] + size * x[PREDICTED])
    return x[CONTEXT] + size * x[PROMPT] + expected > kv_limit_tokens

"""The batch class: requests that nobody waits for fill the gaps that the others leave.

A batch request stands below every other (``orders.standing``). It goes only where it leaves head-room for those that
may come next, ``leaves_headroom``: a bound on the instance's KV and batch, both after it, and on the prompts that wait
there. So that it is served at all where no gap ever comes, one that has waited for ``patience_s`` may go first, without
head-room, once in so many dispatches: ``has_turn``.

Among batch requests the next is one that shares the longest beginning of its prompt with the one that was dispatched
last, so that engines find it in their prefix caches (the idea of BatchLLM, arXiv 2412.03594); of equal ones, and once
after every ``MOST_IN_A_ROW`` that went for that reason, the one that came first.

The formulas are numbers only: the router calls them as they stand, the simulator compiles them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmrouter.domain import Hold, Role
from llmrouter.routing.inflight import fits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llmrouter.domain import EngineProfile, InstanceView, Load, PoolSnapshot, Request, Room
    from llmrouter.resources import BatchSpec

MOST_IN_A_ROW = 32
"""So many batch requests may follow one another for their common beginning before the oldest goes."""


def leaves_headroom(  # noqa: PLR0917 - compiled by the simulator, which passes by position
    requests: float,
    context_tokens: float,
    queued_prefill_tokens: float,
    remaining_decode_tokens: float,
    kv_tokens: float,
    max_sequences: float,
    prompt_tokens: float,
    predicted_output_tokens: float,
    fraction: float,
    most_queued_tokens: float,
) -> bool:
    """Whether an instance keeps a share of itself free with one more request, and has few prompt tokens that wait.

    ``n < f·max``, ``C + p + R + d ≤ f·K`` and ``Q ≤ q``: with all that is expected still to come counted, other than by
    the gate. An idle instance always does.
    """
    if requests > 0 and queued_prefill_tokens > most_queued_tokens:
        return False
    return fits(
        requests,
        context_tokens,
        remaining_decode_tokens,
        fraction * max_sequences,
        fraction * kv_tokens,
        1.0,
        prompt_tokens,
        predicted_output_tokens,
    )


def has_turn(waited_s: float, patience_s: float, since_batch: float, least_share: float) -> bool:
    """Whether a batch request that waited so long goes first, ``since_batch`` dispatches of others after the last one.

    Of the dispatches at most ``least_share`` go that way; with 0 none.
    """
    return waited_s >= patience_s and since_batch * least_share >= 1.0 - least_share


def kinship(common_blocks: int) -> int:
    """How near two prompts are that begin with so many common blocks: the largest power of two within it, or 0."""
    near = 0
    step = 1
    while step <= common_blocks:
        near = step
        step *= 2
    return near


@dataclass(frozen=True, slots=True)
class BatchRules:
    """What a policy says of the batch class.

    ``fraction`` of an instance's KV and sequences may be filled with batch requests; they go only where at most
    ``most_queued_tokens`` of prompts wait. ``grouped`` says whether common beginnings of prompts count.
    """

    fraction: float = 0.1
    most_queued_tokens: int = 0
    patience_s: float = 300.0
    least_share: float = 0.02
    grouped: bool = True

    def headroom(self, request: Request, load: Load, profile: EngineProfile) -> bool:
        """Whether a request leaves head-room on an instance; see ``leaves_headroom``."""
        return leaves_headroom(
            load.requests,
            load.context_tokens,
            load.queued_prefill_tokens,
            load.remaining_decode_tokens,
            profile.kv_tokens,
            profile.max_sequences,
            request.prompt_tokens,
            request.predicted_output_tokens,
            self.fraction,
            self.most_queued_tokens,
        )

    def gaps(self, request: Request, snapshot: PoolSnapshot) -> PoolSnapshot | Hold:
        """What a policy is shown of the pool for a request that fills a gap: the instances with head-room for it."""
        serving = [view for view in snapshot.views if request.model in view.instance.models]
        views = tuple(view for view in serving if self.headroom(request, view.total, view.instance.profile))
        if any(_prefills_alone(serving, one) and not _prefills_alone(views, one) for one in (True, False)):
            return Hold("no instance has head-room for a batch request")
        return replace(snapshot, views=views)

    def tightened(self, room: Room, profile: EngineProfile) -> Room:
        """The bound that a reserve call holds a batch request to: head-room, but for the prompts that wait."""
        limit = int(self.fraction * profile.kv_tokens)
        return replace(
            room,
            max_requests=max(1, min(room.max_requests, math.ceil(self.fraction * profile.max_sequences))),
            kv_limit_tokens=limit if room.kv_limit_tokens is None else min(limit, room.kv_limit_tokens),
            decode_reserve_fraction=1.0,
        )


def _prefills_alone(views: Sequence[InstanceView], prefill: bool) -> bool:  # noqa: FBT001 - a role, of two
    """Whether there is an instance that computes prompts for others, or one that does not."""
    return any((view.instance.role is Role.PREFILL) is prefill for view in views)


def batch_rules_of(spec: BatchSpec) -> BatchRules:
    """A policy's batch class as lines and the simulator take it."""
    return BatchRules(
        fraction=spec.fill_fraction,
        most_queued_tokens=spec.max_queued_tokens,
        patience_s=spec.patience_seconds,
        least_share=spec.least_share,
    )


def marks(prefix_hashes: Sequence[int]) -> Iterator[int]:
    """The hashes of a prompt's first 1, 2, 4, … blocks: who shares one has that kinship at least."""
    depth = 1
    while depth <= len(prefix_hashes):
        yield prefix_hashes[depth - 1]
        depth *= 2


class Kinship:
    """What was dispatched last from the batch class of a line, and how many went there for their kinship in a row."""

    def __init__(self) -> None:
        self._marks: tuple[int, ...] = ()
        self._in_a_row = 0

    def nearest(self) -> Iterator[int]:
        """The marks to look for, the longest beginning first; none where it is the turn of whoever came first."""
        return iter(self._marks[::-1] if self._in_a_row < MOST_IN_A_ROW else ())

    def dispatched(self, prefix_hashes: Sequence[int]) -> None:
        """A batch request left for an engine."""
        own = tuple(marks(prefix_hashes))
        is_kin = bool(own and self._marks and own[0] == self._marks[0]) and self._in_a_row < MOST_IN_A_ROW
        self._in_a_row = self._in_a_row + 1 if is_kin else 0
        self._marks = own

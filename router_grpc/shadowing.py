"""A candidate in shadow: what it would have done with requests that the current policy has placed.

It is asked after the request is on its way, in a turn of the event loop of its own, on the snapshot that the current
policy decided by. It reserves nothing, holds nothing, and nothing of the current policy's guard knows of it.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmrouter.acknowledgement import RouterShadow
from llmrouter.domain import Placement
from llmrouter.routing.guard_shares import is_eligible
from llmrouter.routing.rules import marginal_cost_row, queued_prefill_s
from llmrouter.routing.stages import row_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.domain import PoolSnapshot, Request
    from router_grpc.arms import Placed
    from router_grpc.runtime import Runtime
    from router_grpc.world import World

MOST_PER_S = 50.0
"""Decisions in shadow in a second, at most; the others are skipped."""

MOST_OF_LOOP = 0.02
"""Share of the event loop's time that they may take."""

DELAY_S = 0.002
"""After which a request's shadow is scored: its own answer is out by then."""

BEHIND_S = 0.01
"""How late a loop may be that has time for shadows."""


@dataclass(slots=True)
class ShadowCounts:
    """What a candidate in shadow has done since it began.

    ``decisions`` are ``placements``, ``holds``, and ``fallbacks`` where it could not decide. Of ``compared`` ones the
    cost of its choice, minus that of the one taken, sums up to ``cost_difference_s``; ``seconds`` is what all took.
    """

    decisions: int = 0
    placements: int = 0
    agreements: int = 0
    holds: int = 0
    fallbacks: int = 0
    skipped: int = 0
    compared: int = 0
    cost_difference_s: float = 0.0
    seconds: float = 0.0
    last_fallback: str = ""


@dataclass(frozen=True, slots=True)
class _Offer:
    """A request as it was placed."""

    runtime: Runtime
    request: Request
    snapshot: PoolSnapshot
    taken: tuple[str, str]
    due_s: float


class Shadow:
    """Scores one candidate; one decision waits at a time. ``counts`` may be read whenever.

    A loop that is later than ``behind_s`` is busy: the shadow is skipped.
    """

    def __init__(self, behind_s: float = BEHIND_S) -> None:
        self._behind_s = behind_s
        self._rng = random.Random(0)
        self._offer: _Offer | None = None
        self._not_before_s = 0.0
        self.counts = ShadowCounts()
        self._told = 0

    @property
    def has_news(self) -> bool:
        """Whether it was asked since ``told``."""
        return self.counts.decisions != self._told

    def told(self) -> RouterShadow:
        """What the router says of it."""
        one = self.counts
        self._told = one.decisions
        return RouterShadow(
            decisions=one.decisions,
            placements=one.placements,
            agreements=one.agreements,
            holds=one.holds,
            fallbacks=one.fallbacks,
            skipped=one.skipped,
            compared=one.compared,
            cost_difference_seconds=one.cost_difference_s / one.compared if one.compared else None,
            decision_seconds=one.seconds / one.decisions if one.decisions else None,
        )

    def reset(self, trial: str) -> None:
        """Another trial: its draws are seeded with its name, those of live decisions stay as they are."""
        self._rng = random.Random(trial)
        self._offer = None
        self.counts = ShadowCounts()
        self._told = 0

    def placed(self, world: World, runtime: Runtime, placed: Placed) -> None:
        """A request was placed by the current policy, by this snapshot: the candidate may be asked of it."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        if self._offer is not None or now_s < self._not_before_s:
            self._skip(world, "Busy")
            return
        request, snapshot = placed.request, placed.snapshot
        if snapshot.reservations is not None:  # a view on what changes: kept as it was when the policy saw it
            seen = [one for one in snapshot.reservations() if one.request_id != request.request_id]
            snapshot = replace(snapshot, reservations=lambda: seen)
        taken = (placed.answer.instance_id, placed.answer.prefill_instance_id)
        self._not_before_s = now_s + 1.0 / MOST_PER_S
        self._offer = _Offer(runtime, request, snapshot, taken, now_s + DELAY_S)
        loop.call_later(DELAY_S, self._due, world)

    def _skip(self, world: World, why: str) -> None:
        self.counts.skipped += 1
        world.metrics.arms.shadow_skipped.labels(why).inc()

    def _due(self, world: World) -> None:
        offer, self._offer = self._offer, None
        now_s = asyncio.get_running_loop().time()
        if offer is None:
            return  # another candidate began meanwhile
        if now_s - offer.due_s > self._behind_s:
            self._skip(world, "LoopBehind")
            return
        self._score(world, offer)
        spent_s = asyncio.get_running_loop().time() - now_s
        self._not_before_s = max(self._not_before_s, now_s + spent_s / MOST_OF_LOOP)

    def _score(self, world: World, offer: _Offer) -> None:
        """Asks the candidate."""
        request, runtime = offer.request, offer.runtime
        guard = None if runtime.candidate is None else runtime.candidate.guard
        if guard is None:
            return
        counts, arms = self.counts, world.metrics.arms
        started_s = world.clock()
        seen = world.warmed(offer.snapshot) or offer.snapshot
        guarded = guard.decide(request, seen, self._rng)
        decided_s = world.clock() - started_s
        counts.decisions += 1
        counts.seconds += decided_s
        arms.shadow_decision_seconds.observe(decided_s)
        if guarded.fallback_reason is not None:
            counts.fallbacks += 1
            counts.last_fallback = f"{guarded.fallback_reason}: {guarded.detail}"
            arms.shadow_decisions.labels("Fallback").inc()
        elif isinstance(guarded.decision, Placement):
            self._compare(world, offer, guarded.decision)
        else:
            counts.holds += 1
            arms.shadow_decisions.labels("Held").inc()

    def _compare(self, world: World, offer: _Offer, placement: Placement) -> None:
        best, taken, arms = placement.candidates[0], offer.taken, world.metrics.arms
        chosen = (best.instance_id, "" if best.prefill is None else best.prefill.instance_id)
        agrees = chosen == taken
        self.counts.placements += 1
        self.counts.agreements += agrees
        arms.shadow_decisions.labels("Agreed" if agrees else "Disagreed").inc()
        if chosen[1] or taken[1]:
            return  # what a prompt costs elsewhere is another rule's
        weights, choices = offer.runtime.config.policy.weights.in_order, (chosen[0], taken[0])
        difference_s = 0.0 if agrees else cost_difference_s(offer.request, offer.snapshot, weights, choices)
        if difference_s is not None:
            self.counts.compared += 1
            self.counts.cost_difference_s += difference_s
            arms.shadow_cost_difference_seconds.observe(difference_s)


def cost_difference_s(
    request: Request, snapshot: PoolSnapshot, weights: Sequence[float], choices: tuple[str, str]
) -> float | None:
    """Marginal cost of the first choice minus that of the second (s): ``rules.marginal_cost_row``, by one snapshot.

    ``None`` where an instance is not in it.
    """
    rows = {view.instance.instance_id: row_of(request, view) for view in snapshot.views if is_eligible(view, request)}
    if not all(one in rows for one in choices):
        return None
    backlog_s = sum(map(queued_prefill_s, rows.values())) / len(rows)
    first, second = (marginal_cost_row(rows[one], weights, backlog_s) for one in choices)
    return float(first - second)

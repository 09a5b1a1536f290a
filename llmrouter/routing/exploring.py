"""Exploration: now and then any instance that has room, each as likely; and how likely each choice of a policy was.

A log of a policy that never varies says nothing of what other choices would have brought. With ε of
``spec.exploration.fraction``, an instance is the first candidate with probability ``ε/K + (1 − ε)·p``, where K
instances have room and p is the policy's own probability.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmrouter.domain import Candidate, Placement
from llmrouter.routing.guard_shares import is_eligible
from llmrouter.routing.inflight import has_room
from llmrouter.routing.policies import MAX_CANDIDATES, PowerOfTwo, Random, RoomyPolicy

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence

    from llmrouter.domain import Decision, InstanceView, PoolSnapshot, Request, Room
    from llmrouter.routing.policies import Policy


class Exploring:
    """A policy that explores: with probability ``fraction`` its placement begins with any instance that has room.

    Where it waits or has no candidate, nothing is explored. The other candidates follow in the policy's order. One that
    the policy did not name has the score of the last that it did.
    """

    def __init__(self, policy: Policy, fraction: float) -> None:
        self.name, self.room_of = policy.name, policy.room_of
        self.names_only_roomy = isinstance(policy, RoomyPolicy)
        self._policy, self._fraction = policy, fraction

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        """The policy's decision, or the same with another first candidate."""
        decision = self._policy.decide(request, snapshot, rng)
        if not isinstance(decision, Placement) or rng.random() >= self._fraction:
            return decision
        _, roomy = roomy_of(self.room_of, request, snapshot.views)
        drawn = rng.choice(roomy)
        name = drawn.instance.instance_id
        known = next((one for one in decision.candidates if one.instance_id == name), None)
        first = known or Candidate(name, decision.candidates[-1].score, drawn.load)
        others = [one for one in decision.candidates if one.instance_id != name]
        return replace(
            decision,
            candidates=tuple([first, *others][:MAX_CANDIDATES]),
            reason=f"explored: {name}, one of {len(roomy)} with room; {decision.reason}",
            explored=True,
        )


def roomy_of(
    room_of: Callable[[InstanceView], Room], request: Request, views: Sequence[InstanceView]
) -> tuple[int, list[InstanceView]]:
    """How many instances are eligible for a request, and those of them that have room by a rule."""
    eligible = [one for one in views if is_eligible(one, request)]
    prompt, predicted = request.prompt_tokens, request.predicted_output_tokens
    roomy = [
        one
        for one in eligible
        if has_room(one.total, room_of(one), prompt_tokens=prompt, predicted_output_tokens=predicted)
    ]
    return len(eligible), roomy


def propensities(
    name: str, placement: Placement, roomy: Sequence[InstanceView], fraction: float
) -> Mapping[str, float] | None:
    """The probability of each instance that has room to be the first candidate, by its id.

    Args:
        name: of the policy that made the placement.
        placement: as it was, explored or not.
        roomy: the K instances with room.
        fraction: ε.

    Returns:
        Probabilities that sum to 1; ``None`` where more instances may have tied for the first place than are named.
    """
    own = _own(name, placement, roomy)
    if own is None:
        return None
    explored = fraction / len(roomy)
    return {
        one.instance.instance_id: explored + (1.0 - fraction) * own.get(one.instance.instance_id, 0.0) for one in roomy
    }


def _own(name: str, placement: Placement, roomy: Sequence[InstanceView]) -> Mapping[str, float] | None:
    """The policy's own probabilities: where it draws, those of its draw; else those of the best, ties alike."""
    count = len(roomy)
    if name == Random.name:
        return {one.instance.instance_id: 1.0 / count for one in roomy}
    if name == PowerOfTwo.name:
        return _of_two(roomy)
    best = min(one.score for one in placement.candidates)
    tied = [one.instance_id for one in placement.candidates if one.score == best]
    if len(tied) == len(placement.candidates) < count:
        return None
    return dict.fromkeys(tied, 1.0 / len(tied))


def _of_two(roomy: Sequence[InstanceView]) -> Mapping[str, float]:
    """Of two drawn at random the one with fewer requests: ``(#more + #equal/2) / C(K, 2)``."""
    count = len(roomy)
    if count == 1:
        return {roomy[0].instance.instance_id: 1.0}
    loads = [one.total.requests for one in roomy]
    pairs = count * (count - 1) / 2.0
    return {
        view.instance.instance_id: (
            sum(other > mine for other in loads) + (sum(other == mine for other in loads) - 1) / 2.0
        )
        / pairs
        for view, mine in zip(roomy, loads, strict=True)
    }

"""The policies. Each answers one question: where does this request go, or does it wait? And says why.

A policy sees only a request, a snapshot and a random stream. ``RoundRobin`` alone keeps something between decisions:
its cursor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from llmrouter.domain import Candidate, Decision, Hold, NoCandidate, Placement, Room
from llmrouter.routing.features import features_of, weights_of
from llmrouter.routing.inflight import has_room

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from llmrouter.domain import InstanceView, ObjectiveWeights, PoolSnapshot, Request

MAX_CANDIDATES = 8
"""How many instances, best first, a decision names; the reserve call walks them in order."""


class ScorerLike(Protocol):
    """A model as a policy needs it."""

    def score(self, features_IF: NDArray[np.float32], weights_W: NDArray[np.float32]) -> NDArray[np.float32]:
        """Costs in seconds (I,), lower is better."""
        ...


class Policy(Protocol):
    """Decides; see the module's docstring."""

    name: str

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        """One decision, with its reason."""
        ...

    def room_of(self, view: InstanceView) -> Room:
        """The bound that the reserve call checks again for this instance."""
        ...


class NonFiniteScoreError(ValueError):
    """A model answered NaN or infinity."""


def request_bound(max_requests: int) -> Callable[[InstanceView], Room]:
    """Room by requests in flight alone: engines queue by themselves up to ``max_requests``."""
    room = Room(max_requests=max_requests)
    return lambda _view: room


def kv_gate(kv_fraction: float, decode_reserve_fraction: float = 0.15) -> Callable[[InstanceView], Room]:
    """Room by batch slots and KV: ``n < max sequences`` and ``C + p + r·(R + d) ≤ θ·K − block``."""

    def room(view: InstanceView) -> Room:
        profile = view.instance.profile
        return Room(
            max_requests=profile.max_sequences,
            kv_limit_tokens=int(kv_fraction * profile.kv_tokens) - profile.block_tokens,
            decode_reserve_fraction=decode_reserve_fraction,
        )

    return room


class _RuledPolicy:
    """What all policies share: who is eligible, who has room, and the answer where there is nobody."""

    name = ""
    load_sensitive = True

    def __init__(self, room_rule: Callable[[InstanceView], Room]) -> None:
        self.room_of = room_rule

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        """Filters, orders and names the candidates."""
        eligible = [
            view
            for view in snapshot.views
            if request.model in view.instance.models and view.instance.instance_id not in request.excluded_instance_ids
        ]
        if not eligible:
            return NoCandidate(f"no ready instance serves model {request.model!r}")
        roomy = [view for view in eligible if self._fits(request, view)]
        if not roomy:
            return Hold(f"none of {len(eligible)} instances has room")
        ranked = self._rank(request, roomy, rng)[:MAX_CANDIDATES]
        candidates = tuple(Candidate(view.instance.instance_id, score, view.load) for score, view in ranked)
        reason = self._reason(candidates, len(eligible), len(roomy))
        return Placement(candidates, reason, load_sensitive=self.load_sensitive)

    def _fits(self, request: Request, view: InstanceView) -> bool:
        return has_room(
            view.total,
            self.room_of(view),
            prompt_tokens=request.prompt_tokens,
            predicted_output_tokens=request.predicted_output_tokens,
        )

    def _rank(
        self, request: Request, views: Sequence[InstanceView], rng: random.Random
    ) -> list[tuple[float, InstanceView]]:
        raise NotImplementedError

    def _reason(self, candidates: Sequence[Candidate], eligible: int, roomy: int) -> str:
        best = candidates[0]
        return f"{self.name}: {best.instance_id} scored {best.score:.4g}; {roomy} of {eligible} instances have room"


def _ordered(
    scores: Sequence[float], views: Sequence[InstanceView], rng: random.Random
) -> list[tuple[float, InstanceView]]:
    """Views by score, ties in random order."""
    tie_breakers = [rng.random() for _ in views]
    order = sorted(range(len(views)), key=lambda i: (scores[i], tie_breakers[i]))
    return [(scores[i], views[i]) for i in order]


class RoundRobin(_RuledPolicy):
    """One instance after the other, whatever they carry."""

    name = "RoundRobin"
    load_sensitive = False

    def __init__(self, room_rule: Callable[[InstanceView], Room]) -> None:
        super().__init__(room_rule)
        self._last = ""

    def _rank(
        self, request: Request, views: Sequence[InstanceView], rng: random.Random
    ) -> list[tuple[float, InstanceView]]:
        del request, rng
        by_id = sorted(views, key=lambda view: view.instance.instance_id)
        later = [view for view in by_id if view.instance.instance_id > self._last]
        ring = later + by_id[: len(by_id) - len(later)]
        self._last = ring[0].instance.instance_id
        return [(float(place), view) for place, view in enumerate(ring)]


class Random(_RuledPolicy):
    """Any instance, each as likely."""

    name = "Random"
    load_sensitive = False

    def _rank(
        self, request: Request, views: Sequence[InstanceView], rng: random.Random
    ) -> list[tuple[float, InstanceView]]:
        del request
        return _ordered([0.0] * len(views), views, rng)


class LeastInFlight(_RuledPolicy):
    """The instance with the fewest requests in flight."""

    name = "LeastInFlight"

    def _rank(
        self, request: Request, views: Sequence[InstanceView], rng: random.Random
    ) -> list[tuple[float, InstanceView]]:
        del request
        return _ordered([float(view.total.requests) for view in views], views, rng)


class PowerOfTwo(_RuledPolicy):
    """The less loaded of two instances drawn at random; the rest follow by chance."""

    name = "PowerOfTwo"

    def _rank(
        self, request: Request, views: Sequence[InstanceView], rng: random.Random
    ) -> list[tuple[float, InstanceView]]:
        del request
        drawn = rng.sample(list(views), len(views))
        drawn[:2] = sorted(drawn[:2], key=lambda view: view.total.requests)
        return [(float(view.total.requests), view) for view in drawn]


class Scored(_RuledPolicy):
    """The instance whose cost a model puts lowest (``spec.type: Onnx``)."""

    name = "Onnx"

    def __init__(
        self, room_rule: Callable[[InstanceView], Room], scorer: ScorerLike, weights: ObjectiveWeights
    ) -> None:
        super().__init__(room_rule)
        self._scorer = scorer
        self._weights_W = weights_of(weights)

    def _rank(
        self, request: Request, views: Sequence[InstanceView], rng: random.Random
    ) -> list[tuple[float, InstanceView]]:
        scores_I = self._scorer.score(features_of(request, views), self._weights_W)
        if not np.isfinite(scores_I).all():
            raise NonFiniteScoreError(f"{int((~np.isfinite(scores_I)).sum())} of {len(views)} scores are not finite")
        return _ordered(scores_I.tolist(), views, rng)


PLAIN_POLICIES = {policy.name: policy for policy in (RoundRobin, Random, LeastInFlight, PowerOfTwo)}
"""The policies that need no model, by the name that ``RoutingPolicy.spec.type`` and ``spec.guard.fallback`` use."""

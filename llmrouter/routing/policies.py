"""The policies. Each answers one question: where does this request go, or does it wait? And says why.

A policy sees only a request, a snapshot and a random stream. ``RoundRobin`` keeps its cursor between decisions; the
other policies of this module keep nothing. Policies that are one formula are in ``formulas.py``, all by name in
``catalogue.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Protocol, overload

import numpy as np

from llmrouter.domain import BatchHold, Candidate, Decision, Hold, NoCandidate, Placement, Room
from llmrouter.routing.batching import hold_for_batch
from llmrouter.routing.columns import MANY, Columns
from llmrouter.routing.features import feature_rows, features_of, profile_features, weights_of
from llmrouter.routing.inflight import fits, kv_bound
from llmrouter.routing.rooms import MAX_KNOWN, kv_gate, per_profile, request_bound
from llmrouter.routing.rules import FORMULAS, Rule

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from numpy.typing import NDArray

    from llmrouter.domain import InstanceView, ObjectiveWeights, PoolSnapshot, Request

__all__ = [
    "MAX_CANDIDATES",
    "CannotDecideError",
    "LeastInFlight",
    "MissingFeatureError",
    "NonFiniteScoreError",
    "Policy",
    "PowerOfTwo",
    "Random",
    "RoundRobin",
    "Ruled",
    "Scored",
    "ScorerLike",
    "kv_gate",
    "request_bound",
]

MAX_CANDIDATES = 8
"""How many instances, best first, a decision names; the reserve call walks them in order."""

_NO_BATCH_HOLD = BatchHold()

Ranked = list[tuple[float, "InstanceView"]]
_Room = tuple[int, int, float, int, int, float]
"""The first arguments of ``fits``: a load, and the room that a policy gives it."""


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


class CannotDecideError(ValueError):
    """A policy has no answer to this question; ``reason`` is a CamelCase word fit for a metric label."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NonFiniteScoreError(CannotDecideError):
    """A score is NaN or infinite."""

    def __init__(self, message: str) -> None:
        super().__init__("NotFinite", message)


class MissingFeatureError(CannotDecideError):
    """The policy cannot see what it needs."""

    def __init__(self, message: str) -> None:
        super().__init__("MissingFeatures", message)


_tail_of = per_profile(profile_features)


class RoomyPolicy:
    """What all policies share: who is eligible, who has room, and the answer where there is nobody.

    ``rule`` is the rule of ``rules.py`` that decides as the policy does; ``None`` where none does.
    """

    name = ""
    load_sensitive = True
    rule: Rule | None = None
    batch_hold = _NO_BATCH_HOLD
    _columns: Columns | None = None
    """Where the policy can score many instances at once."""

    def __init__(self, room_rule: Callable[[InstanceView], Room]) -> None:
        self.room_of = room_rule
        self._rooms: dict[int, tuple[InstanceView, _Room]] = {}

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        """Filters, orders and names the candidates."""
        many = self._columns if len(snapshot.views) >= MANY else None
        roomy: Sequence[InstanceView]
        if many is None:
            eligible, roomy = self._with_room(request, snapshot.views)
        else:
            many.follow(snapshot.views)
            eligible, places_P = many.roomy(request)
            roomy = _Picked(snapshot.views, places_P)
        if not eligible:
            return NoCandidate(f"no ready instance serves model {request.model!r}")
        if not len(roomy):
            return Hold(f"none of {eligible} instances has room")
        if many is None:
            ranked = self._rank(request, roomy, rng)
        else:
            ranked = ordered_columns(self._scores(many.rows(request, places_P)), roomy, rng)
        if self.batch_hold.size > 1 and (hold := self._waits(request, snapshot, ranked[0][1], roomy)) is not None:
            return hold
        candidates = tuple(
            [Candidate(view.instance.instance_id, score, view.load) for score, view in ranked[:MAX_CANDIDATES]]
        )
        reason = self._reason(candidates, eligible, len(roomy))
        return Placement(candidates, reason, load_sensitive=self.load_sensitive)

    def _with_room(self, request: Request, views: Sequence[InstanceView]) -> tuple[int, list[InstanceView]]:
        """How many instances are eligible, and those of them that have room."""
        model, excluded = request.model, request.excluded_instance_ids
        prompt, predicted = request.prompt_tokens, request.predicted_output_tokens
        eligible, roomy, rooms = 0, [], self._rooms
        for view in views:
            instance = view.instance
            if model not in instance.models or instance.instance_id in excluded:
                continue
            eligible += 1
            known = rooms.get(id(view)) or self._look_at(view)
            if fits(*known[1], prompt, predicted):
                roomy.append(view)
        return eligible, roomy

    def _look_at(self, view: InstanceView) -> tuple[InstanceView, _Room]:
        """What ``fits`` is told of an instance, remembered for as long as its view stands."""
        load, room = view.total, self.room_of(view)
        part = load.requests, load.context_tokens, load.remaining_decode_tokens
        if len(self._rooms) >= MAX_KNOWN:
            self._rooms.clear()
        known = (view, (*part, room.max_requests, kv_bound(room), room.decode_reserve_fraction))
        self._rooms[id(view)] = known  # the view is kept, so that its id stays its own
        return known

    def _rank(self, request: Request, views: Sequence[InstanceView], rng: random.Random) -> Ranked:
        """The views in order, the best first; ``MAX_CANDIDATES`` of them are enough."""
        raise NotImplementedError

    def _scores(self, rows_PF: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores (P,) of feature rows (P, F), where the policy has ``_columns``: what ``_rank`` orders by."""
        raise NotImplementedError

    def _waits(
        self, request: Request, snapshot: PoolSnapshot, best: InstanceView, roomy: Sequence[InstanceView]
    ) -> Hold | None:
        """The answer *wait for a batch*, where the best instance is to be given one; see ``batching``."""
        row = next(iter(feature_rows(request, [best], _tail_of)))
        return hold_for_batch(self.batch_hold, row, self.room_of(best), request=request, snapshot=snapshot, roomy=roomy)

    def _reason(self, candidates: Sequence[Candidate], eligible: int, roomy: int) -> str:
        best = candidates[0]
        return f"{self.name}: {best.instance_id} scored {best.score:.4g}; {roomy} of {eligible} instances have room"


class _Picked(Sequence["InstanceView"]):
    """Some of the views of a snapshot."""

    def __init__(self, views: Sequence[InstanceView], places_P: NDArray[np.intp]) -> None:
        self._views, self._places_P = views, places_P

    def __len__(self) -> int:
        return len(self._places_P)

    @overload
    def __getitem__(self, at: int) -> InstanceView: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[InstanceView]: ...

    def __getitem__(self, at: int | slice) -> InstanceView | Sequence[InstanceView]:
        if isinstance(at, slice):
            return _Picked(self._views, self._places_P[at])
        return self._views[self._places_P.item(at)]


def ordered_columns(scores_P: NDArray[np.float64], views: Sequence[InstanceView], rng: random.Random) -> Ranked:
    """``ordered`` of scores as an array: the same views in the same order, after the same draws."""
    wrong = len(scores_P) - int(np.count_nonzero(np.isfinite(scores_P)))
    if wrong:
        raise NonFiniteScoreError(f"{wrong} of {len(scores_P)} scores are not finite")
    drawn_P = np.array([rng.random() for _ in range(len(scores_P))])
    first = np.lexsort((drawn_P, scores_P))[:MAX_CANDIDATES].tolist()
    return [(scores_P.item(place), views[place]) for place in first]


def ordered(scores: Sequence[float], views: Sequence[InstanceView], rng: random.Random) -> Ranked:
    """Views by score, ties in random order.

    Raises:
        NonFiniteScoreError: a score is NaN or infinite.
    """
    wrong = len(scores) - sum(map(isfinite, scores))
    if wrong:
        raise NonFiniteScoreError(f"{wrong} of {len(scores)} scores are not finite")
    drawn = [(score, rng.random(), place) for place, score in enumerate(scores)]
    drawn.sort()
    return [(score, views[place]) for score, _, place in drawn[:MAX_CANDIDATES]]


class RoundRobin(RoomyPolicy):
    """One instance after the other in the order of their ids, whatever they carry.

    Fails where engines are unequal (the slow one gets as much as the fast), where requests are (a giant prompt and a
    one-liner count alike), and where many routers turn in step.
    """

    name = "RoundRobin"
    load_sensitive = False
    rule = Rule.ROUND_ROBIN

    def __init__(self, room_rule: Callable[[InstanceView], Room]) -> None:
        super().__init__(room_rule)
        self._last = ""

    def _rank(self, request: Request, views: Sequence[InstanceView], rng: random.Random) -> Ranked:
        del request, rng
        by_id = sorted(views, key=lambda view: view.instance.instance_id)
        later = [view for view in by_id if view.instance.instance_id > self._last]
        ring = later + by_id[: len(by_id) - len(later)]
        self._last = ring[0].instance.instance_id
        return [(float(place), view) for place, view in enumerate(ring)]


class Random(RoomyPolicy):
    """Any instance, each as likely. Fails as round-robin does, and leaves some idle by chance while others queue."""

    name = "Random"
    load_sensitive = False
    rule = Rule.RANDOM

    def _rank(self, request: Request, views: Sequence[InstanceView], rng: random.Random) -> Ranked:
        del request
        return [(0.0, view) for view in rng.sample(views, min(MAX_CANDIDATES, len(views)))]


class PowerOfTwo(RoomyPolicy):
    """The one with fewer requests in flight of two instances drawn at random; the rest follow by chance.

    Mitzenmacher, "The power of two choices in randomized load balancing" (2001). Never herds; fails as counting
    requests does, and passes over an idle instance that it did not draw.
    """

    name = "PowerOfTwo"
    rule = Rule.POWER_OF_TWO

    def _rank(self, request: Request, views: Sequence[InstanceView], rng: random.Random) -> Ranked:
        del request
        drawn = rng.sample(views, min(MAX_CANDIDATES, len(views)))
        drawn[:2] = sorted(drawn[:2], key=lambda view: view.total.requests)
        return [(float(view.total.requests), view) for view in drawn]


class Ruled(RoomyPolicy):
    """The instance with the lowest score under a formula of ``rules.py``; ties at random."""

    rule: Rule

    def __init__(self, room_rule: Callable[[InstanceView], Room]) -> None:
        super().__init__(room_rule)
        self._score = FORMULAS[self.rule]
        self._tail_of = per_profile(profile_features)

    def _rank(self, request: Request, views: Sequence[InstanceView], rng: random.Random) -> Ranked:
        score = self._score
        return ordered([score(row) for row in feature_rows(request, views, self._tail_of)], views, rng)


class LeastInFlight(Ruled):
    """The instance with the fewest requests in flight: ``n``. Join the shortest queue, counted in requests.

    Fails where one request is a giant prompt: it counts like a one-liner, and what joins it waits for its prefill.
    """

    name = "LeastInFlight"
    rule = Rule.LEAST_IN_FLIGHT


class Scored(RoomyPolicy):
    """The instance whose cost a model puts lowest (``spec.type: Onnx``).

    Fails where the model was made for other engines or traffic than it meets; scores that are not finite are refused.
    """

    name = "Onnx"

    def __init__(
        self,
        room_rule: Callable[[InstanceView], Room],
        scorer: ScorerLike,
        weights: ObjectiveWeights,
        batch_hold: BatchHold = _NO_BATCH_HOLD,
    ) -> None:
        super().__init__(room_rule)
        self.batch_hold = batch_hold
        self._scorer = scorer
        self._weights_W = weights_of(weights)
        self._tail_of = per_profile(profile_features)
        self._columns = Columns(room_rule, self._tail_of)

    def _rank(self, request: Request, views: Sequence[InstanceView], rng: random.Random) -> Ranked:
        scores_I = self._scorer.score(features_of(request, views, self._tail_of), self._weights_W)
        return ordered(scores_I.tolist(), views, rng)

    def _scores(self, rows_PF: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._scorer.score(rows_PF.astype(np.float32), self._weights_W).astype(np.float64)

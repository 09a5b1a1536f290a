"""Policies that provoke a guard, one kind of trouble each, for simulated and for real routers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.domain import Candidate, Hold, NoCandidate, ObjectiveWeights, Placement
from llmrouter.feature_set import FEATURE_NAMES
from llmrouter.routing.envelope import Envelope, Enveloped
from llmrouter.routing.marginal_cost import FormulaScorer
from llmrouter.routing.policies import MissingFeatureError, Scored
from llmrouter.routing.rooms import request_bound

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from numpy.typing import NDArray

    from llmrouter.domain import Decision, InstanceView, PoolSnapshot, Request, Room

ROOM = request_bound(8)


class Provoking:
    """A policy whose answers are another's; it has room for eight requests on every instance."""

    name = "Provoking"

    def __init__(self, answer: Callable[[Request, PoolSnapshot], Decision]) -> None:
        self._answer = answer
        self.asked = 0

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        del rng
        self.asked += 1
        return self._answer(request, snapshot)

    def room_of(self, view: InstanceView) -> Room:
        return ROOM(view)


def placed(view: InstanceView, score: float = 0.0) -> Placement:
    return Placement((Candidate(view.instance.instance_id, score, view.load),), "as told")


def always_holds(until_s: float | None = None) -> Provoking:
    """Keeps everything waiting, whatever there is; ``until_s`` is an instant, not a span."""
    return Provoking(lambda _request, _snapshot: Hold("not now", until_s))


def holds_while_busy(for_s: float) -> Provoking:
    """Places on an idle instance, and holds for a while where there is none, as a learned agent may."""

    def answer(request: Request, snapshot: PoolSnapshot) -> Decision:
        del request
        idle = [view for view in snapshot.views if view.total.requests == 0]
        return placed(idle[0]) if idle else Hold("to see what comes", snapshot.taken_at_s + for_s)

    return Provoking(answer)


def always_picks_the_first() -> Provoking:
    """Sends everything to one place as long as it has room there."""

    def answer(request: Request, snapshot: PoolSnapshot) -> Decision:
        del request
        first = snapshot.views[0]
        return placed(first) if first.total.requests < ROOM(first).max_requests else placed(snapshot.views[-1])

    return Provoking(answer)


def raises() -> Provoking:
    def answer(request: Request, snapshot: PoolSnapshot) -> Decision:
        raise RuntimeError(f"boom on {request.request_id} and {len(snapshot.views)} instances")

    return Provoking(answer)


def sees_too_little() -> Provoking:
    def answer(request: Request, snapshot: PoolSnapshot) -> Decision:
        raise MissingFeatureError(f"made for more than {len(snapshot.views)} instances, {request.request_id}")

    return Provoking(answer)


def scores_nothing() -> Provoking:
    return Provoking(lambda _request, snapshot: placed(snapshot.views[0], math.nan))


def names_a_stranger() -> Provoking:
    def answer(request: Request, snapshot: PoolSnapshot) -> Decision:
        del request
        return Placement((Candidate("nobody", 0.0, snapshot.views[0].load),), "as told")

    return Provoking(answer)


def sees_nobody() -> Provoking:
    return Provoking(lambda _request, _snapshot: NoCandidate("I see nobody"))


class NanScorer:
    """A model that answers NaN."""

    def score(self, features_IF: NDArray[np.float32], weights_W: NDArray[np.float32]) -> NDArray[np.float32]:
        del weights_W
        return np.full(len(features_IF), np.nan, np.float32)


def scores_nan() -> Scored:
    return Scored(ROOM, NanScorer(), ObjectiveWeights())


class Slow(Provoking):
    """Takes its time, on a clock that it moves itself."""

    def __init__(self, takes_s: float, move: Callable[[float], None]) -> None:
        super().__init__(lambda _request, snapshot: placed(snapshot.views[0]))
        self._takes_s = takes_s
        self._move = move

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        self._move(self._takes_s)
        return super().decide(request, snapshot, rng)


class Clock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def move(self, by_s: float) -> None:
        self.now_s += by_s


def out_of_range(*, max_clamped_fraction: float = 0.5) -> tuple[Scored, Envelope]:
    """The marginal cost as a model that was made for prompts of at most one token, and its envelope."""
    high = np.full(len(FEATURE_NAMES), 1e9, np.float32)
    high[FEATURE_NAMES.index("prompt_tokens")] = 1.0
    envelope = Envelope(
        np.zeros(len(FEATURE_NAMES), np.float32), high, FEATURE_NAMES, max_clamped_fraction=max_clamped_fraction
    )
    return Scored(ROOM, Enveloped(FormulaScorer(), envelope), ObjectiveWeights()), envelope

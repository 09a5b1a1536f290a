"""Exploration draws as it says, and how likely each choice was is what its frequency comes to."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from support.decisions import request, view

from llmrouter.domain import Hold, NoCandidate, Placement, PoolSnapshot
from llmrouter.routing.catalogue import make_policy
from llmrouter.routing.exploring import Exploring, propensities, roomy_of
from llmrouter.routing.guard import Guard
from llmrouter.routing.policies import MAX_CANDIDATES, LeastInFlight
from llmrouter.routing.rooms import request_bound

if TYPE_CHECKING:
    from llmrouter.domain import InstanceView

DRAWS = 3_000
LOADS = {"uneven": (2, 0, 1, 5), "ties": (1, 1, 3, 4), "all alike": (0, 0, 0, 0), "one": (3,), "one full": (9, 1, 2, 2)}


def snapshot_of(*views: InstanceView) -> PoolSnapshot:
    return PoolSnapshot(views, 10.0)


@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize("name", ["LeastInFlight", "Random", "PowerOfTwo", "WorkloadImpact"])
def test_propensities_are_the_frequencies_of_first_candidates(name: str, loads: tuple[int, ...]) -> None:
    fraction = 0.2
    views = [view(str(place), requests, context_tokens=100 * requests) for place, requests in enumerate(loads)]
    policy = Exploring(make_policy(name, request_bound(8)), fraction)
    rng, counts = random.Random(7), Counter[str]()
    said = None
    for _ in range(DRAWS):
        decision = policy.decide(request(), snapshot_of(*views), rng)
        assert isinstance(decision, Placement)
        counts[decision.candidates[0].instance_id] += 1
        _, roomy = roomy_of(policy.room_of, request(), views)
        again = propensities(name, decision, roomy, fraction)
        assert said is None or again == pytest.approx(said)  # the same whoever was drawn
        said = again
    assert said is not None
    assert sum(said.values()) == pytest.approx(1.0)
    for one, probability in said.items():
        assert counts[one] / DRAWS == pytest.approx(probability, abs=4.0 * (0.25 / DRAWS) ** 0.5)
    assert set(counts) <= set(said)


def test_more_ties_than_a_decision_names_are_not_guessed_at() -> None:
    views = [view(str(place)) for place in range(MAX_CANDIDATES + 1)]
    decision = make_policy("LeastInFlight", request_bound(8)).decide(request(), snapshot_of(*views), random.Random(1))
    assert isinstance(decision, Placement)
    assert propensities("LeastInFlight", decision, views, 0.1) is None


def test_an_instance_beyond_the_named_may_be_drawn_and_comes_first() -> None:
    views = [view(f"{place:02d}", place) for place in range(30)]
    policy = Exploring(make_policy("LeastInFlight", request_bound(64)), 1.0)
    first = Counter[str]()
    for seed in range(300):
        decision = policy.decide(request(), snapshot_of(*views), random.Random(seed))
        assert isinstance(decision, Placement)
        assert decision.explored
        assert decision.reason.startswith("explored: ")
        assert len({one.instance_id for one in decision.candidates}) == len(decision.candidates) == MAX_CANDIDATES
        first[decision.candidates[0].instance_id] += 1
    assert len(first) > 25


def test_nothing_is_explored_where_the_policy_waits_or_nobody_is_there() -> None:
    policy = Exploring(LeastInFlight(request_bound(1)), 1.0)
    assert isinstance(policy.decide(request(), snapshot_of(view("a", 1)), random.Random(1)), Hold)
    assert isinstance(policy.decide(request(), snapshot_of(), random.Random(1)), NoCandidate)


def test_without_exploration_the_policys_own_draws_are_untouched() -> None:
    views = [view(str(place)) for place in range(4)]
    plain, none = LeastInFlight(request_bound(8)), Exploring(LeastInFlight(request_bound(8)), 0.0)
    seen = snapshot_of(*views)
    assert plain.decide(request(), seen, random.Random(3)) == none.decide(request(), seen, random.Random(3))


def test_the_guard_stands_around_exploration() -> None:
    room = request_bound(8)
    guard = Guard(Exploring(LeastInFlight(room), 1.0), LeastInFlight(room), budget_s=1.0, clock=lambda: 0.0)
    guarded = guard.decide(request(), snapshot_of(view("a"), view("b")), random.Random(1))
    assert isinstance(guarded.decision, Placement)
    assert guarded.decision.explored
    assert guarded.policy == "LeastInFlight"
    assert guarded.fallback_reason is None

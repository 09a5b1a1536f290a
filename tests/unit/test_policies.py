from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.pools import request, snapshot, view

from llmrouter.domain import Hold, Load, NoCandidate, ObjectiveWeights, Placement
from llmrouter.profiles import H100_MIX
from llmrouter.routing.catalogue import COMPARISONS, POLICIES, make_policy
from llmrouter.routing.marginal_cost import FormulaScorer
from llmrouter.routing.paper import Dedicated
from llmrouter.routing.policies import (
    MAX_CANDIDATES,
    LeastInFlight,
    NonFiniteScoreError,
    PowerOfTwo,
    Random,
    RoundRobin,
    Scored,
    kv_gate,
    request_bound,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.domain import Decision, InstanceView, Request
    from llmrouter.routing.policies import Policy

BOUND = request_bound(8)


def every_policy() -> list[Policy]:
    """All but the one that divides the pool."""
    whole = [name for name in POLICIES if name != Dedicated.name]
    return [*(make_policy(name, BOUND) for name in whole), Scored(BOUND, FormulaScorer(), ObjectiveWeights())]


def placement(decision: Decision) -> Placement:
    assert isinstance(decision, Placement), decision
    return decision


def chosen(policy: Policy, views: Sequence[InstanceView], rng: random.Random, asked: Request | None = None) -> str:
    return placement(policy.decide(asked or request(), snapshot(views), rng)).candidates[0].instance_id


@pytest.fixture
def rng() -> random.Random:
    return random.Random(1)


class TestEveryPolicy:
    @pytest.fixture(params=every_policy(), ids=lambda policy: policy.name)
    def policy(self, request: pytest.FixtureRequest) -> Policy:
        made: Policy = request.param
        return made

    def test_no_candidate_for_an_unknown_model(self, policy: Policy, rng: random.Random) -> None:
        decision = policy.decide(request(model="gpt-9"), snapshot([view("a")]), rng)
        assert isinstance(decision, NoCandidate)
        assert "gpt-9" in decision.reason

    def test_no_candidate_in_an_empty_pool(self, policy: Policy, rng: random.Random) -> None:
        assert isinstance(policy.decide(request(), snapshot([]), rng), NoCandidate)

    def test_no_candidate_where_all_are_excluded(self, policy: Policy, rng: random.Random) -> None:
        asked = request(excluded_instance_ids=frozenset({"a"}))
        assert isinstance(policy.decide(asked, snapshot([view("a")]), rng), NoCandidate)

    def test_hold_where_all_are_full(self, policy: Policy, rng: random.Random) -> None:
        decision = policy.decide(request(), snapshot([view("a", 8), view("b", 9)]), rng)
        assert isinstance(decision, Hold)
        assert "2 instances" in decision.reason

    def test_names_only_instances_with_room_of_the_right_model(self, policy: Policy, rng: random.Random) -> None:
        views = [view("full", 8), view("other", model="another"), view("out"), view("b", 3), view("c")]
        asked = request(excluded_instance_ids=frozenset({"out"}))
        decision = placement(policy.decide(asked, snapshot(views), rng))
        assert {one.instance_id for one in decision.candidates} == {"b", "c"}

    def test_candidates_carry_the_load_they_were_judged_on(self, policy: Policy, rng: random.Random) -> None:
        views = [view("a", 2), view("b", 3)]
        seen = {
            one.instance_id: one.seen for one in placement(policy.decide(request(), snapshot(views), rng)).candidates
        }
        assert seen == {one.instance.instance_id: one.load for one in views}

    def test_names_each_candidate_once_and_not_too_many(self, policy: Policy, rng: random.Random) -> None:
        views = [view(f"i{number:02}") for number in range(3 * MAX_CANDIDATES)]
        ids = [one.instance_id for one in placement(policy.decide(request(), snapshot(views), rng)).candidates]
        assert len(ids) == len(set(ids)) == MAX_CANDIDATES

    def test_gives_a_reason(self, policy: Policy, rng: random.Random) -> None:
        assert policy.name in placement(policy.decide(request(), snapshot([view("a")]), rng)).reason


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in COMPARISONS])
def test_instances_alike_are_all_chosen_in_time(name: str, rng: random.Random) -> None:
    policy, views = make_policy(name, BOUND), [view("a", 1), view("b", 1), view("c", 1)]
    assert {chosen(policy, views, rng) for _ in range(60)} == {"a", "b", "c"}


@pytest.mark.parametrize("name", POLICIES)
def test_same_seed_same_decisions(name: str) -> None:
    views = snapshot([view(f"i{number}") for number in range(6)])

    def decisions() -> list[Decision]:
        policy, rng = make_policy(name, BOUND), random.Random(3)
        return [policy.decide(request(), views, rng) for _ in range(5)]

    assert decisions() == decisions()


class TestRoundRobin:
    def test_rotates(self, rng: random.Random) -> None:
        policy = RoundRobin(BOUND)
        views = [view("c"), view("a"), view("b")]
        assert [chosen(policy, views, rng) for _ in range(7)] == list("abcabca")

    def test_ignores_load(self, rng: random.Random) -> None:
        policy = RoundRobin(BOUND)
        assert [chosen(policy, [view("a", 7), view("b")], rng) for _ in range(4)] == list("abab")
        assert not placement(policy.decide(request(), snapshot([view("a")]), rng)).load_sensitive

    def test_passes_over_a_full_one_and_takes_it_up_again(self, rng: random.Random) -> None:
        policy = RoundRobin(BOUND)
        full = [view("a"), view("b", 8), view("c")]
        free = [view("a"), view("b"), view("c")]
        assert [chosen(policy, full, rng) for _ in range(3)] == list("aca")
        assert [chosen(policy, free, rng) for _ in range(3)] == list("bca")

    def test_passes_over_an_excluded_one(self, rng: random.Random) -> None:
        policy = RoundRobin(BOUND)
        views = [view("a"), view("b"), view("c")]
        without_b = request(excluded_instance_ids=frozenset({"b"}))
        assert chosen(policy, views, rng) == "a"
        assert chosen(policy, views, rng, without_b) == "c"
        assert chosen(policy, views, rng) == "a"

    def test_survives_instances_that_come_and_go(self, rng: random.Random) -> None:
        policy = RoundRobin(BOUND)
        assert chosen(policy, [view("a"), view("b")], rng) == "a"
        assert chosen(policy, [view("c"), view("d")], rng) == "c"
        assert chosen(policy, [view("a"), view("b")], rng) == "a"

    def test_a_hold_does_not_move_it(self, rng: random.Random) -> None:
        policy = RoundRobin(BOUND)
        assert chosen(policy, [view("a"), view("b")], rng) == "a"
        policy.decide(request(), snapshot([view("a", 8), view("b", 8)]), rng)
        assert chosen(policy, [view("a"), view("b")], rng) == "b"


class TestRandom:
    def test_takes_each_as_often(self, rng: random.Random) -> None:
        policy = Random(BOUND)
        counts = Counter(chosen(policy, [view("a", 7), view("b"), view("c")], rng) for _ in range(3_000))
        assert all(900 < counts[name] < 1_100 for name in "abc")


class TestLeastInFlight:
    def test_orders_by_requests(self, rng: random.Random) -> None:
        decision = LeastInFlight(BOUND).decide(request(), snapshot([view("a", 3), view("b", 1), view("c", 2)]), rng)
        assert [one.instance_id for one in placement(decision).candidates] == list("bca")

    def test_breaks_ties_at_random(self, rng: random.Random) -> None:
        policy = LeastInFlight(BOUND)
        counts = Counter(chosen(policy, [view("a", 1), view("b", 1), view("c", 5)], rng) for _ in range(1_000))
        assert set(counts) == {"a", "b"}
        assert all(420 < count < 580 for count in counts.values())

    def test_counts_what_reached_the_engine_past_the_routers(self, rng: random.Random) -> None:
        crowded = replace(view("a"), foreign=Load(requests=5))
        assert chosen(LeastInFlight(BOUND), [crowded, view("b", 2)], rng) == "b"


class TestPowerOfTwo:
    def test_never_the_busier_of_two(self, rng: random.Random) -> None:
        policy = PowerOfTwo(BOUND)
        assert {chosen(policy, [view("a", 4), view("b", 3)], rng) for _ in range(50)} == {"b"}

    def test_never_the_busiest_and_the_least_loaded_most_often(self, rng: random.Random) -> None:
        policy = PowerOfTwo(BOUND)
        views = [view("a", 1), view("b", 2), view("c", 3)]
        counts = Counter(chosen(policy, views, rng) for _ in range(3_000))
        assert counts["c"] == 0
        assert 1_850 < counts["a"] < 2_150  # it wins both pairs it is in, of three

    def test_the_second_candidate_is_the_loser_of_the_pair(self, rng: random.Random) -> None:
        for _ in range(50):
            views = [view("a", 1), view("b", 2), view("c", 3), view("d", 4)]
            first, second, *_ = placement(PowerOfTwo(BOUND).decide(request(), snapshot(views), rng)).candidates
            assert first.score < second.score

    def test_one_instance(self, rng: random.Random) -> None:
        assert chosen(PowerOfTwo(BOUND), [view("a")], rng) == "a"


class Fixed:
    def __init__(self, scores: list[float]) -> None:
        self.scores = scores

    def score(self, features_IF: NDArray[np.float32], weights_W: NDArray[np.float32]) -> NDArray[np.float32]:
        del features_IF, weights_W
        return np.array(self.scores, dtype=np.float32)


class TestScored:
    def test_lowest_cost_first(self, rng: random.Random) -> None:
        policy = Scored(BOUND, Fixed([3.0, 1.0, 2.0]), ObjectiveWeights())
        decision = placement(policy.decide(request(), snapshot([view("a"), view("b"), view("c")]), rng))
        assert [(one.instance_id, one.score) for one in decision.candidates] == [("b", 1.0), ("c", 2.0), ("a", 3.0)]
        assert decision.load_sensitive

    def test_breaks_ties_at_random(self, rng: random.Random) -> None:
        policy = Scored(BOUND, Fixed([1.0, 1.0, 2.0]), ObjectiveWeights())
        counts = Counter(chosen(policy, [view("a"), view("b"), view("c")], rng) for _ in range(1_000))
        assert set(counts) == {"a", "b"}
        assert all(420 < count < 580 for count in counts.values())

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_refuses_scores_that_are_not_finite(self, rng: random.Random, bad: float) -> None:
        policy = Scored(BOUND, Fixed([1.0, bad]), ObjectiveWeights())
        with pytest.raises(NonFiniteScoreError, match="1 of 2"):
            policy.decide(request(), snapshot([view("a"), view("b")]), rng)


class TestKvGate:
    def test_holds_where_kv_is_taken(self, rng: random.Random) -> None:
        small = replace(H100_MIX, kv_tokens=2_000)
        policy = LeastInFlight(kv_gate(1.0))
        assert isinstance(policy.decide(request(prompt_tokens=900), snapshot([view("a", 3, profile=small)]), rng), Hold)
        assert chosen(policy, [view("a", 3, profile=small)], rng, request(prompt_tokens=100)) == "a"

    def test_an_idle_instance_takes_anything(self, rng: random.Random) -> None:
        small = replace(H100_MIX, kv_tokens=2_000)
        huge = request(prompt_tokens=10**9)
        assert chosen(LeastInFlight(kv_gate(1.0)), [view("a", profile=small)], rng, huge) == "a"

    def test_holds_at_the_engine_s_batch_slots(self, rng: random.Random) -> None:
        narrow = replace(H100_MIX, max_sequences=2)
        assert isinstance(
            LeastInFlight(kv_gate(1.0)).decide(request(), snapshot([view("a", 2, profile=narrow)]), rng), Hold
        )

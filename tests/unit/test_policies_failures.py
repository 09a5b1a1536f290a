"""Where each policy is known to fail, shown on the smallest pool that shows it, beside one that does not."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support.pools import request, snapshot, view

from llmrouter.domain import Hold, Load, ObjectiveWeights, Placement
from llmrouter.profiles import H100_MIX, PAPER_V100
from llmrouter.routing.catalogue import make_policy
from llmrouter.routing.formulas import WorkloadImpact
from llmrouter.routing.paper import Dedicated, MaxCapacity
from llmrouter.routing.policies import NonFiniteScoreError
from llmrouter.routing.rooms import request_bound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.domain import EngineProfile, InstanceView, Request
    from llmrouter.routing.policies import Policy

BOUND = request_bound(1_000)
TRIES = 40


def loaded(
    name: str,
    requests: int,
    *,
    context: int = 0,
    queued: int = 0,
    left: float = 0.0,
    profile: EngineProfile = H100_MIX,
) -> InstanceView:
    return replace(view(name, profile=profile), load=Load(requests, context, queued, left))


def choices(policy: str | Policy, views: Sequence[InstanceView], asked: Request | None = None) -> set[str]:
    """Everything that a policy chooses in many tries."""
    made = make_policy(policy, BOUND) if isinstance(policy, str) else policy
    rng, found = random.Random(5), set()
    for _ in range(TRIES):
        decision = made.decide(asked or request(), snapshot(views), rng)
        assert isinstance(decision, Placement)
        found.add(decision.candidates[0].instance_id)
    return found


def filled(policy: str, profiles: dict[str, EngineProfile], requests: int) -> Counter[str]:
    """How many of equal requests each instance gets where none ends."""
    made, rng = make_policy(policy, BOUND), random.Random(5)
    views = {name: loaded(name, 0, profile=profile) for name, profile in profiles.items()}
    for _ in range(requests):
        decision = made.decide(request(), snapshot(tuple(views.values())), rng)
        assert isinstance(decision, Placement)
        chosen = views[decision.candidates[0].instance_id]
        one_more = chosen.load.plus(Load(1, 100, 0, 50.0))
        views[chosen.instance.instance_id] = replace(chosen, load=one_more)
    return Counter({name: one.load.requests for name, one in views.items()})


GIANT = loaded("giant", 1, context=30_000, queued=30_000, left=100.0)
SHORT = loaded("short", 2, context=600, left=100.0)


class TestUnequalEngines:
    PROFILES = {"fast": H100_MIX, "slow": PAPER_V100}  # noqa: RUF012 - read only

    @pytest.mark.parametrize("policy", ["RoundRobin", "LeastInFlight", "LeastKvTokens", "LMetric", "LeastTokensLeft"])
    def test_rules_without_seconds_load_a_slow_engine_like_a_fast_one(self, policy: str) -> None:
        assert filled(policy, self.PROFILES, 40) == {"fast": 20, "slow": 20}

    @pytest.mark.parametrize("policy", ["OwnLatency", "MinMin", "WorkloadImpact", "MixingPenaltyScaled"])
    def test_rules_in_seconds_do_not(self, policy: str) -> None:
        got = filled(policy, self.PROFILES, 40)
        assert got["fast"] > 2 * got["slow"]


class TestGiantPrompt:
    """One instance prefills 30,000 tokens, 0.7 s; the other has two short decodes."""

    @pytest.mark.parametrize("policy", ["LeastInFlight", "DecodeBalancer"])
    def test_counting_requests_or_decodes_joins_it(self, policy: str) -> None:
        assert "giant" in choices(policy, [GIANT, SHORT])

    @pytest.mark.parametrize(
        "policy", ["LMetric", "PrefillLoad", "TokenLoad", "LeastTokensLeft", "OwnLatency", "MinMin", "WorkloadImpact"]
    )
    def test_counting_queued_prefill_avoids_it(self, policy: str) -> None:
        assert choices(policy, [GIANT, SHORT]) == {"short"}


def test_round_robin_and_random_see_no_load() -> None:
    for policy in ("RoundRobin", "Random"):
        assert choices(policy, [GIANT, SHORT]) == {"giant", "short"}


def test_power_of_two_passes_over_the_one_idle_instance() -> None:
    busy = [loaded(f"busy{number}", 9) for number in range(7)]
    assert choices("PowerOfTwo", [*busy, loaded("idle", 0)]) > {"idle"}
    assert choices("LeastInFlight", [*busy, loaded("idle", 0)]) == {"idle"}


class TestLeastKvTokens:
    def test_joins_short_contexts_that_have_all_still_to_prefill(self) -> None:
        queued = loaded("queued", 10, context=4_000, queued=4_000, left=500.0)
        decoding = loaded("decoding", 2, context=5_000, left=100.0)
        assert choices("LeastKvTokens", [queued, decoding]) == {"queued"}
        assert choices("LMetric", [queued, decoding]) == {"decoding"}

    def test_takes_a_batch_of_many_for_a_light_one(self) -> None:
        crowd = loaded("crowd", 60, context=6_000, left=6_000.0, profile=PAPER_V100)
        long = loaded("long", 2, context=7_000, left=200.0, profile=PAPER_V100)
        assert choices("LeastKvTokens", [crowd, long]) == {"crowd"}
        assert choices("WorkloadImpact", [crowd, long]) == {"long"}


class TestLMetric:
    def test_an_empty_instance_wins_whatever_the_prompt(self) -> None:
        asked = request(prompt_tokens=100_000)
        assert choices("LMetric", [loaded("empty", 0), loaded("busy", 1, context=10)], asked) == {"empty"}

    def test_an_empty_slow_instance_wins_a_large_prompt_too(self) -> None:
        asked = request(prompt_tokens=15_000)
        views = [loaded("empty", 0, profile=PAPER_V100), loaded("busy", 1, context=100, left=20.0)]
        assert choices("LMetric", views, asked) == {"empty"}  # 4.8 s of prefill there, 0.35 s on the other
        assert choices("WorkloadImpact", views, asked) == {"busy"}

    def test_where_nothing_is_queued_only_the_batch_counts(self) -> None:
        long = loaded("long", 3, context=60_000, left=3_000.0)
        short = loaded("short", 4, context=400, left=40.0)
        assert choices("LMetric", [long, short]) == {"long"}
        assert choices("WorkloadImpact", [long, short]) == {"short"}

    def test_a_long_prompt_queues_behind_a_long_prompt(self) -> None:
        asked = request(prompt_tokens=30_000, predicted_output_tokens=5.0)
        views = [GIANT, loaded("batch", 10, context=2_000, left=20.0)]
        assert choices("LMetric", views, asked) == {"giant"}
        assert choices("OwnLatency", views, asked) == {"batch"}


class TestTokenLoad:
    def test_without_queued_prefill_the_scorer_chooses_at_random(self) -> None:
        views = [loaded("full", 100, context=50_000, left=9_000.0), loaded("idle", 0)]
        assert choices("PrefillLoad", views) == {"full", "idle"}

    def test_the_kv_term_outweighs_a_long_queue(self) -> None:
        views = [
            loaded("queue", 20, context=30_000, queued=30_000, left=99.0),
            loaded("decode", 2, context=35_000, left=9.0),
        ]
        assert choices("TokenLoad", views) == {"queue"}
        assert choices("PrefillLoad", views) == {"decode"}


class TestPaper:
    def test_tokens_left_takes_an_output_token_for_a_prompt_token(self) -> None:
        """1,000 prompt tokens take 23 ms here; 900 output tokens take 900 steps of 6.5 ms."""
        views = [loaded("prompt", 1, context=1_000, queued=1_000, left=10.0), loaded("decode", 1, left=900.0)]
        assert choices("LeastTokensLeft", views) == {"decode"}

    def test_the_decode_balancer_is_blind_to_prefill(self) -> None:
        views = [loaded("queue", 20, queued=20_000, left=100.0), loaded("clear", 1, left=101.0)]
        assert choices("DecodeBalancer", views) == {"queue"}

    @pytest.mark.parametrize("predicted", [260.0, 990.0])
    def test_min_min_sees_no_difference_within_a_bucket(self, predicted: float) -> None:
        """A queue of 0.46 s against a batch that adds 0.6 ms to each step: at 260 tokens the batch costs 0.16 s."""
        asked = request(predicted_output_tokens=predicted)
        views = [loaded("queue", 1, queued=20_000), loaded("batch", 30, left=1.0)]
        assert choices("MinMin", views, asked) == {"queue"}
        assert choices("OwnLatency", views, asked) == ({"batch"} if predicted < 500 else {"queue"})

    def test_min_min_turns_at_the_edge_of_a_bucket(self) -> None:
        views = [loaded("queue", 1, queued=20_000), loaded("batch", 30, left=1.0)]
        under, over = (choices("MinMin", views, request(predicted_output_tokens=d)) for d in (250.0, 251.0))
        assert (under, over) == ({"batch"}, {"queue"})

    def test_the_mixing_penalty_counts_only_requests_below_epsilon(self) -> None:
        views = [loaded("long", 1, context=12_000), loaded("short", 2, context=200)]
        assert choices("MixingPenalty", views) == {"long"}

    def test_the_mixing_penalty_does_not_know_the_engine(self) -> None:
        views = [loaded("slow", 1, context=100, profile=PAPER_V100), loaded("fast", 2, context=200)]
        assert choices("MixingPenalty", views) == {"slow"}
        assert choices("MixingPenaltyScaled", views) == {"fast"}


class TestOwnLatency:
    VIEWS = (
        loaded("crowd", 20, context=10_000, left=2_000.0),
        loaded("queue", 1, context=4_500, queued=4_000, left=100.0),
    )
    LONG = request(prompt_tokens=8_000)

    def test_stalls_twenty_to_save_itself_a_short_wait(self) -> None:
        """20 decodes stall for 0.18 s each, so that one request waits 0.09 s less."""
        assert choices("OwnLatency", self.VIEWS, self.LONG) == {"crowd"}

    def test_the_marginal_cost_charges_for_it(self) -> None:
        assert choices("WorkloadImpact", self.VIEWS, self.LONG) == {"queue"}

    def test_and_without_the_charge_it_is_the_same(self) -> None:
        free = WorkloadImpact(BOUND, ObjectiveWeights(stall=0.0, slowdown=0.0, coalesce=0.0, overflow=0.0))
        assert choices(free, self.VIEWS, self.LONG) == {"crowd"}

    def test_without_predictions_the_marginal_cost_is_blind_to_contexts(self) -> None:
        views = [loaded("long", 2, context=100_000), loaded("short", 2, context=200)]
        assert choices("WorkloadImpact", views, request(predicted_output_tokens=0.0)) == {"long", "short"}

    @pytest.mark.parametrize("policy", ["OwnLatency", "WorkloadImpact", "MinMin", "MixingPenalty"])
    def test_a_prediction_that_is_no_number_is_refused(self, policy: str) -> None:
        with pytest.raises(NonFiniteScoreError, match="2 of 2"):
            choices(policy, self.VIEWS, request(predicted_output_tokens=float("nan")))


class TestMaxCapacity:
    def at(self, policy: MaxCapacity, now_s: float, *views: InstanceView) -> str:
        decision = policy.decide(request(), replace(snapshot(views), taken_at_s=now_s), random.Random(5))
        assert isinstance(decision, Placement)
        assert not decision.load_sensitive
        return decision.candidates[0].instance_id

    def test_herds_for_a_second(self) -> None:
        policy = MaxCapacity(BOUND)
        first = self.at(policy, 10.0, loaded("a", 1, context=100), loaded("b", 1, context=101))
        later = [
            self.at(policy, 10.0 + 0.1 * turn, loaded("a", 9 * turn, context=9_000 * turn), loaded("b", 0))
            for turn in range(10)
        ]
        assert {first, *later} == {"a"}
        assert self.at(policy, 11.0, loaded("a", 90, context=90_000), loaded("b", 0)) == "b"

    def test_takes_another_at_once_where_the_chosen_one_has_no_room(self) -> None:
        policy = MaxCapacity(request_bound(5))
        assert self.at(policy, 10.0, loaded("a", 1), loaded("b", 2, context=1)) == "a"
        assert self.at(policy, 10.1, loaded("a", 5), loaded("b", 2, context=1)) == "b"

    def test_is_of_shares_so_that_unequal_engines_are_filled_alike(self) -> None:
        small = replace(H100_MIX, kv_tokens=1_000)
        views = (loaded("small", 1, context=500, profile=small), loaded("large", 9, context=9_000))
        assert self.at(MaxCapacity(BOUND), 0.0, *views) == "large"


class TestDedicated:
    SMALL, LARGE = request(predicted_output_tokens=20.0), request(predicted_output_tokens=500.0)

    def test_half_the_pool_idles_while_the_other_half_is_full(self) -> None:
        views = [loaded("a", 8), loaded("b", 8), loaded("c", 0), loaded("d", 0)]
        policy = Dedicated(request_bound(8))
        assert isinstance(policy.decide(self.SMALL, snapshot(views), random.Random(5)), Hold)
        assert choices(policy, views, self.LARGE) == {"c", "d"}

    def test_least_in_flight_within_a_part(self) -> None:
        views = [loaded("d", 1), loaded("c", 2), loaded("b", 3), loaded("a", 4)]
        assert choices(Dedicated(BOUND), views, self.SMALL) == {"b"}
        assert choices(Dedicated(BOUND), views, self.LARGE) == {"d"}

    @pytest.mark.parametrize(("share", "heavy"), [(0.0, {"d"}), (0.75, {"b", "c", "d"}), (1.0, {"b", "c", "d"})])
    def test_both_parts_have_an_instance(self, share: float, heavy: set[str]) -> None:
        views = [loaded(name, 0) for name in "abcd"]
        assert choices(Dedicated(BOUND, heavy_share=share), views, self.LARGE) == heavy

    def test_one_instance_serves_all(self) -> None:
        assert choices(Dedicated(BOUND), [loaded("a", 0)], self.SMALL) == {"a"}

"""The two-level pick over snapshots: who computes a prompt, who decodes, and why."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support.pools import request, snapshot, view

from llmrouter.domain import Candidate, Hold, Load, NoCandidate, ObjectiveWeights, Placement, Role
from llmrouter.profiles import PROFILES
from llmrouter.routing.catalogue import make_policy
from llmrouter.routing.guard import Guard
from llmrouter.routing.guard_shares import is_eligible
from llmrouter.routing.rooms import kv_gate, request_bound
from llmrouter.routing.stages import Prefills, Staged, StageRules, prefill_s, prompt_of, spared_s

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.domain import Decision, InstanceView, Request

BOUND = request_bound(64)
LONG = request(prompt_tokens=4_000, predicted_output_tokens=200.0)
PROMPT = prompt_of(LONG)
SLOWER = PROFILES["llama-3.1-8b-rtx4090"]


def of(role: Role, instance_id: str, load: Load | None = None, *, locality: str = "") -> InstanceView:
    made = view(instance_id)
    return replace(made, instance=replace(made.instance, role=role, locality=locality), load=load or Load())


def prefill(instance_id: str, queued: int = 0, *, locality: str = "") -> InstanceView:
    load = Load(requests=1, context_tokens=queued, queued_prefill_tokens=queued) if queued else Load()
    return of(Role.PREFILL, instance_id, load, locality=locality)


def decode(instance_id: str, requests: int = 0, *, locality: str = "", role: Role = Role.DECODE) -> InstanceView:
    load = Load(requests, context_tokens=800 * requests, remaining_decode_tokens=100.0 * requests)
    return of(role, instance_id, load, locality=locality)


def mixed(instance_id: str, requests: int = 0, *, locality: str = "") -> InstanceView:
    return decode(instance_id, requests, locality=locality, role=Role.MIXED)


def by_cost(rules: StageRules | None = None) -> Staged:
    weights = ObjectiveWeights()
    whole, rest = (make_policy("WorkloadImpact", kv_gate(1.0), one) for one in (weights, replace(weights, reuse=0.0)))
    return Staged(whole, rules, decode=rest, weights=weights)


def by_count(rules: StageRules | None = None) -> Staged:
    return Staged(make_policy("LeastInFlight", BOUND), rules)


def decided(policy: Staged, asked: Request, *views: InstanceView, seed: int = 1) -> Decision:
    return policy.decide(asked, snapshot(views), random.Random(seed))


def best(policy: Staged, asked: Request, *views: InstanceView, seed: int = 1) -> Candidate:
    decision = decided(policy, asked, *views, seed=seed)
    assert isinstance(decision, Placement), decision
    return decision.candidates[0]


def chosen(policy: Staged, asked: Request, *views: InstanceView, seed: int = 1) -> tuple[str, str]:
    found = best(policy, asked, *views, seed=seed)
    return found.instance_id, "" if found.prefill is None else found.prefill.instance_id


def with_hits(asked: Request, hits: Mapping[str, int]) -> Request:
    return replace(asked, cached_tokens=hits)


both = pytest.mark.parametrize("policy", [by_cost(), by_count()], ids=["by cost", "by count"])


@both
def test_each_stage_goes_where_it_is_cheapest(policy: Staged) -> None:
    views = prefill("p1", 9_000), prefill("p2", 1_000), decode("d1", 9), decode("d2", 3)
    assert chosen(policy, LONG, *views) == ("d2", "p2")


@both
def test_the_load_that_was_seen_goes_with_each_candidate(policy: Staged) -> None:
    found = best(policy, LONG, prefill("p", 1_000), decode("d", 2))
    assert found.prefill is not None
    assert (found.seen.requests, found.prefill.seen.queued_prefill_tokens) == (2, 1_000)
    assert found.prefill.score == pytest.approx(prefill_s(PROMPT, prefill("p", 1_000)))


@both
@pytest.mark.parametrize(("tokens", "where"), [(255, ""), (256, "p")])
def test_a_short_prompt_stays(policy: Staged, tokens: int, where: str) -> None:
    assert chosen(policy, request(prompt_tokens=tokens), prefill("p"), decode("d")) == ("d", where)


@both
def test_a_prompt_that_is_cached_where_it_decodes_stays(policy: Staged) -> None:
    views = prefill("p"), decode("d1"), decode("d2", 1)
    assert chosen(policy, with_hits(LONG, {"d1": 3_800}), *views) == ("d1", "")
    assert chosen(policy, with_hits(LONG, {"d1": 3_700}), *views) == ("d1", "p")


def test_hits_of_a_busy_instance_do_not_hide_an_idle_one() -> None:
    views = prefill("p"), decode("d1", 60), decode("d2")
    assert chosen(by_cost(), with_hits(LONG, {"d1": 3_900}), *views) == ("d2", "p")


@both
def test_a_prompt_goes_where_most_of_it_is_cached(policy: Staged) -> None:
    views = prefill("p1"), prefill("p2", 1_000), decode("d")
    assert chosen(policy, LONG, *views) == ("d", "p1")
    assert chosen(policy, with_hits(LONG, {"p2": 3_000}), *views) == ("d", "p2")


@both
def test_decode_instances_do_it_all_where_no_prefill_instance_is_ready(policy: Staged) -> None:
    decision = decided(policy, LONG, decode("d1"), decode("d2", 1))
    assert isinstance(decision, Placement)
    assert decision.candidates[0].prefill is None
    assert decision.reason.endswith("no prefill instance is ready")
    without = replace(LONG, excluded_instance_ids=frozenset({"p"}))
    assert chosen(policy, without, prefill("p"), decode("d")) == ("d", "")


@both
def test_prefill_instances_never_do_it_all(policy: Staged) -> None:
    decision = decided(policy, LONG, prefill("p"))
    assert isinstance(decision, NoCandidate)
    assert "decodes" in decision.reason
    assert chosen(policy, request(prompt_tokens=1), prefill("p"), decode("d", 63)) == ("d", "")


def test_full_prefill_instances_make_decode_ones_wait_and_mixed_ones_work() -> None:
    policy = Staged(make_policy("LeastInFlight", request_bound(1)))
    full = prefill("p", 1_000)
    decision = decided(policy, LONG, full, decode("d"))
    assert decision == Hold("none of 1 prefill instances has room")
    assert chosen(policy, LONG, full, decode("d"), mixed("m")) == ("m", "")
    assert chosen(policy, request(prompt_tokens=9), full, decode("d")) == ("d", "")


@both
def test_no_room_to_decode_is_a_hold(policy: Staged) -> None:
    full = of(Role.DECODE, "d", Load(requests=10_000, context_tokens=10**9, remaining_decode_tokens=10**6))
    assert isinstance(decided(policy, LONG, prefill("p"), full), Hold)


@both
def test_a_mixed_instance_is_spared_what_others_there_would_wait(policy: Staged) -> None:
    idle, busy = mixed("m"), mixed("m", 8)
    assert spared_s(PROMPT, idle) == pytest.approx(prefill_s(PROMPT, prefill("p")))
    assert chosen(policy, LONG, prefill("p"), idle) == ("m", "")
    assert chosen(policy, LONG, prefill("p"), busy) == ("m", "p")
    assert chosen(policy, LONG, prefill("p", 200_000), busy) == ("m", "")


def test_what_is_spared_is_the_prompts_own_time_and_one_stall_of_each_other() -> None:
    profile = mixed("m").instance.profile
    own_s = profile.prefill_s_per_token * 4_000 + profile.prefill_s_per_token_squared * 4_000**2
    assert spared_s(PROMPT, mixed("m")) == pytest.approx(own_s)
    assert spared_s(PROMPT, mixed("m", 5)) == pytest.approx(6 * own_s)
    waits = replace(mixed("m", 5), load=replace(mixed("m", 5).load, queued_prefill_tokens=700))
    assert spared_s(PROMPT, waits) == pytest.approx(6 * own_s), "who decodes there waits behind the same prompts"


def test_whole_and_staged_costs_are_compared_in_the_same_seconds() -> None:
    found = best(by_cost(), LONG, prefill("p"), decode("d", 1), mixed("m", 3))
    assert (found.instance_id, found.prefill is None) == ("d", False)
    found = best(by_cost(), LONG, prefill("p", 100_000), decode("d", 1), mixed("m", 3))
    assert (found.instance_id, found.prefill is None) == ("m", True)


def test_a_slow_prefill_instance_makes_nobody_prefer_slow_decoding() -> None:
    slow = decode("slow")
    slow = replace(slow, instance=replace(slow.instance, profile=SLOWER))
    assert chosen(by_cost(), LONG, prefill("p"), slow, decode("fast")) == ("fast", "p")


@both
def test_near_instances_are_preferred_up_to_what_crossing_costs(policy: Staged) -> None:
    here, there = prefill("p1", locality="a"), prefill("p2", locality="b")
    assert chosen(policy, LONG, here, there, decode("d", locality="b")) == ("d", "p2")
    queued = int(0.05 / here.instance.profile.prefill_s_per_token)
    assert chosen(policy, LONG, here, prefill("p2", queued, locality="b"), decode("d", locality="b")) == ("d", "p2")
    assert chosen(policy, LONG, here, prefill("p2", 3 * queued, locality="b"), decode("d", locality="b")) == ("d", "p1")
    assert chosen(policy, LONG, here, prefill("p2", queued, locality="b"), decode("d")) == ("d", "p1")
    assert chosen(policy, LONG, prefill("p1"), prefill("p2", queued, locality="b"), decode("d", locality="b")) == (
        "d",
        "p1",
    )


def test_an_instance_near_a_free_prefill_one_is_preferred_by_cost() -> None:
    views = prefill("p", locality="a"), decode("d1", locality="b"), decode("d2", locality="a")
    assert {chosen(by_cost(), LONG, *views, seed=seed) for seed in range(8)} == {("d2", "p")}


def test_the_nearest_of_many_is_that_of_a_search_through_all() -> None:
    draw = random.Random(5)
    rules = StageRules(cross_locality_s=0.2)
    for _ in range(200):
        views = [
            prefill(f"p{n}", draw.randrange(0, 30_000), locality=draw.choice(["", "a", "b", "c"]))
            for n in range(draw.randrange(1, 9))
        ]
        there = decode("d", locality=draw.choice(["", "a", "b", "z"]))
        near, found = Prefills([prefill_s(PROMPT, one) for one in views], views, rules, draw).nearest(there)
        each = {
            one.instance.instance_id: prefill_s(PROMPT, one)
            + (
                rules.cross_locality_s
                if one.instance.locality and there.instance.locality not in {"", one.instance.locality}
                else 0.0
            )
            for one in views
        }
        assert near == pytest.approx(min(each.values()))
        assert each[found.instance.instance_id] == pytest.approx(near)


def test_where_no_prefill_instance_has_room_it_waits() -> None:
    full = [of(Role.PREFILL, f"p{n}", Load(10_000, 10**9, 1)) for n in range(40)]
    assert isinstance(decided(by_cost(), LONG, *full, decode("d")), Hold)


def test_ties_are_broken_at_random() -> None:
    views = prefill("p1"), prefill("p2"), decode("d1"), decode("d2")
    assert len({chosen(by_cost(), LONG, *views, seed=seed) for seed in range(40)}) == 4


@both
def test_without_stages_it_is_the_policy_itself(policy: Staged) -> None:
    views = [mixed(f"m{n}", n) for n in range(4)]
    plain = make_policy(policy.name, policy.room_of, ObjectiveWeights())
    for seed in range(5):
        shown = snapshot(views)
        assert policy.decide(LONG, shown, random.Random(seed)) == plain.decide(LONG, shown, random.Random(seed))


@both
def test_the_reason_names_both(policy: Staged) -> None:
    decision = decided(policy, LONG, prefill("p"), decode("d"))
    assert isinstance(decision, Placement)
    assert decision.reason.startswith(f"{policy.name}: d of 1 scored ")
    assert "the prompt is computed at p, in 0." in decision.reason
    whole = decided(policy, LONG, prefill("p", 200_000), mixed("m", 2))
    assert isinstance(whole, Placement)
    assert "it computes the prompt itself: that costs " in whole.reason


def test_who_computes_prompts_for_others_is_nobodys_destination() -> None:
    assert not is_eligible(prefill("p"), LONG)
    assert is_eligible(decode("d"), LONG)
    assert is_eligible(mixed("m"), LONG)


def test_the_guard_caps_shares_of_those_that_decode_alone() -> None:
    class OneOnly:
        """Sends everything to one place, as a broken model might."""

        name = "OneOnly"
        room_of = staticmethod(BOUND)

        def decide(self, asked: Request, shown: object, rng: random.Random) -> Decision:
            del asked, shown, rng
            return Placement((Candidate("d1", 0.0, Load()),), "one only")

    fallback = Staged(make_policy("LeastInFlight", BOUND))
    guard = Guard(Staged(OneOnly()), fallback, budget_s=10.0, clock=lambda: 0.0)
    views = [prefill("p1"), prefill("p2"), *(decode(f"d{n}", 5 if n == 1 else 0) for n in range(1, 7))]
    places, actions = [], set[str]()
    for _ in range(60):
        guarded = guard.decide(LONG, snapshot(views), random.Random(1))
        assert isinstance(guarded.decision, Placement)
        places.append(guarded.decision.candidates[0])
        actions |= {*guarded.actions}
    assert places[0].instance_id == "d1"
    assert actions == {"ShareCapped"}
    assert {one.instance_id for one in places} > {"d1"}
    assert all(one.instance_id.startswith("d") for one in places)
    assert all(one.prefill is not None and one.prefill.instance_id.startswith("p") for one in places)

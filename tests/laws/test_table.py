"""Compiled rows decide as the formulas say: the same candidates, the same scores to the bit, after the same draws."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrouter.domain import (
    Candidate,
    EngineMode,
    EngineProfile,
    Hold,
    Instance,
    InstanceView,
    Load,
    NoCandidate,
    ObjectiveWeights,
    PoolSnapshot,
    Request,
    Room,
)
from llmrouter.routing.catalogue import POLICIES as BY_NAME
from llmrouter.routing.features import FEATURE_NAMES, feature_rows, profile_features, tail_of_view
from llmrouter.routing.formulas import WorkloadImpact
from llmrouter.routing.guard_shares import is_eligible
from llmrouter.routing.inflight import has_room
from llmrouter.routing.marginal_cost import FormulaScorer, marginal_cost, marginal_costs
from llmrouter.routing.paper import Dedicated
from llmrouter.routing.policies import MAX_CANDIDATES, NonFiniteScoreError, RoomyPolicy, Ruled, Scored
from llmrouter.routing.ranking import MOST_NAMED, best, named
from llmrouter.routing.rooms import kv_gate, per_profile, request_bound
from llmrouter.routing.rules import score
from llmrouter.routing.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

WEIGHTS = ObjectiveWeights(wait=0.3, reuse=0.7)
POLICIES: dict[str, Callable[[Callable[[InstanceView], Room]], RoomyPolicy]] = {
    **{name: kind for name, kind in BY_NAME.items() if issubclass(kind, Ruled) and kind is not Dedicated},
    "WorkloadImpact": lambda room: WorkloadImpact(room, WEIGHTS),
    "Onnx": lambda room: Scored(room, FormulaScorer(), WEIGHTS),
}
COUNTS = (1, 8, 40)
ROOMS: dict[str, Callable[[], Callable[[InstanceView], Room]]] = {
    "kv": lambda: kv_gate(0.9),
    "requests": lambda: request_bound(20),
}


def profiles(rng: random.Random) -> list[EngineProfile]:
    return [
        EngineProfile(
            name=f"p{number}",
            base_decode_s=rng.choice([0.0, 1e-5, rng.uniform(0.005, 0.05)]),
            base_prefill_s=0.02,
            prefill_s_per_token=rng.uniform(1e-5, 4e-4),
            context_s_per_token=rng.uniform(1e-8, 1e-6),
            sequence_s=rng.uniform(1e-6, 1e-4),
            kv_tokens=rng.choice([8_000, 60_000, 400_000]),
            max_sequences=rng.choice([8, 64, 256]),
            token_budget=2_048,
            mode=rng.choice(list(EngineMode)),
            prefill_s_per_token_squared=rng.choice([0.0, 1e-9]),
        )
        for number in range(4)
    ]


def load(rng: random.Random) -> Load:
    if rng.random() < 0.2:
        return Load()
    queued = rng.choice([0, rng.randrange(20_000)])
    return Load(rng.randrange(1, 40), queued + rng.randrange(60_000), queued, rng.randrange(10**7) / 1000)


def views(count: int, rng: random.Random) -> list[InstanceView]:
    kinds = profiles(rng)
    models = [frozenset({"m"}), frozenset({"m", "other"}), frozenset({"other"})]
    made = []
    for number in range(count):
        instance = Instance(f"i{number}", f"h{number}:80", "pool", rng.choice(kinds), rng.choice(models))
        foreign = load(rng) if rng.random() < 0.2 else Load()
        made.append(InstanceView(instance, load(rng), foreign=foreign))
    return made


def moved(all_views: list[InstanceView], rng: random.Random) -> list[InstanceView]:
    """Some instances have another load, now and then one is another instance."""
    found = list(all_views)
    for place in rng.sample(range(len(found)), min(3, len(found))):
        found[place] = replace(found[place], load=load(rng))
    if rng.random() < 0.2:
        place = rng.randrange(len(found))
        other = replace(found[place].instance, instance_id=f"n{rng.random()}", models=frozenset({"m"}))
        found[place] = InstanceView(other, load(rng))
    return found


def request(all_views: list[InstanceView], rng: random.Random) -> Request:
    ids = [one.instance.instance_id for one in all_views]
    prompt = rng.choice([1, 200, rng.randrange(1, 30_000)])
    return Request(
        "r",
        rng.choice(["m", "m", "other", "unknown"]),
        prompt,
        rng.randrange(1, 2_000_000) / 1000,
        0.0,
        excluded_instance_ids=frozenset(rng.sample(ids, rng.choice([0, 0, min(3, len(ids))]))),
        cached_tokens={one: rng.randrange(1, prompt + 1) for one in rng.sample(ids, rng.choice([0, min(5, len(ids))]))},
    )


def by_formula(policy: RoomyPolicy, rows: list[tuple[float, ...]]) -> list[float]:
    if isinstance(policy, Scored):
        weights_W = np.array(WEIGHTS.in_order, np.float32)
        scores: list[float] = marginal_cost(np.array(rows, np.float32), weights_W).tolist()
        return scores
    if isinstance(policy, WorkloadImpact):
        return marginal_costs(rows, WEIGHTS.in_order)
    assert policy.rule is not None
    return [score(policy.rule, row, ()) for row in rows]


def by_rows(
    policy: RoomyPolicy, asked: Request, seen: list[InstanceView], rng: random.Random
) -> tuple[int, list[str], list[tuple[str, float]]]:
    """Eligible instances, those with room, and the candidates with their scores: one after the other, interpreted."""
    eligible = [one for one in seen if is_eligible(one, asked)]
    prompt, output = asked.prompt_tokens, asked.predicted_output_tokens
    roomy = [
        one
        for one in eligible
        if has_room(one.total, policy.room_of(one), prompt_tokens=prompt, predicted_output_tokens=output)
    ]
    scores = by_formula(policy, feature_rows(asked, roomy, tail_of_view)) if roomy else []
    drawn = sorted((one, rng.random(), place) for place, one in enumerate(scores))
    ids = [one.instance.instance_id for one in roomy]
    return len(eligible), ids, [(ids[place], one) for one, _, place in drawn[:MAX_CANDIDATES]]


@pytest.mark.parametrize("room", list(ROOMS))
@pytest.mark.parametrize("name", list(POLICIES))
def test_what_is_compiled_decides_as_what_is_interpreted(name: str, room: str) -> None:
    rng = random.Random(f"{name} {room}")
    policy, placed = POLICIES[name](ROOMS[room]()), 0
    for count in COUNTS:
        seen = views(count, rng)
        for number in range(60):
            asked, ours, theirs = request(seen, rng), random.Random(number), random.Random(number)
            found = policy.decide(asked, PoolSnapshot(tuple(seen), 0.0), ours)
            eligible, roomy, candidates = by_rows(policy, asked, seen, theirs)
            assert isinstance(found, NoCandidate) == (not eligible)
            assert isinstance(found, Hold) == (eligible > 0 and not roomy)
            if not isinstance(found, Hold | NoCandidate):
                placed += 1
                assert [(one.instance_id, one.score) for one in found.candidates] == candidates
                assert f"{len(roomy)} of {eligible} instances have room" in found.reason
            assert ours.getstate() == theirs.getstate()
            seen = moved(seen, rng)
    assert placed > 50


def test_the_rows_are_the_features() -> None:
    rng = random.Random(5)
    table, seen = Table(request_bound(20), per_profile(profile_features)), views(12, rng)
    for _ in range(40):
        asked = request(seen, rng)
        _, places = table.roomy(tuple(seen), asked)
        want = feature_rows(asked, [seen[place] for place in places], tail_of_view)
        rows_PF = np.frombuffer(table.rows(asked, places)).reshape(len(places), len(FEATURE_NAMES))
        assert rows_PF.tolist() == [list(row) for row in want]
        seen = moved(seen, rng) if rng.random() < 0.8 else rng.sample(seen, max(6, len(seen) - 1))


def test_where_a_view_cannot_be_read_nothing_is_believed_of_the_others() -> None:
    seen, asked = tuple(views(5, random.Random(5))), Request("r", "m", 10, 10.0, 0.0)
    other = tuple(replace(one, load=Load(30, 30)) for one in seen)
    broken: list[InstanceView] = []

    def room(view: InstanceView) -> Room:
        if view in broken:
            raise LookupError(view.instance.instance_id)
        return Room(max_requests=31)

    table, plain = Table(room, per_profile(profile_features)), Table(room, per_profile(profile_features))
    want = plain.roomy(seen, asked), plain.rows(asked, plain.roomy(seen, asked)[1])
    table.roomy(seen, asked)
    broken.append(other[3])
    with pytest.raises(LookupError, match="i3"):
        table.roomy(other, asked)
    found = table.roomy(seen, asked)
    assert (found, table.rows(asked, found[1])) == want


def test_places_that_are_none_are_refused() -> None:
    seen = tuple(views(3, random.Random(5)))
    table, asked = Table(request_bound(20), per_profile(profile_features)), Request("r", "m", 10, 10.0, 0.0)
    table.roomy(seen, asked)
    for places in ([3], [-1]):
        with pytest.raises(IndexError):
            table.rows(asked, places)
        with pytest.raises(IndexError):
            table.scores(asked, places, 5)
    with pytest.raises(ValueError, match="8 weights, not 9"):
        table.scores(asked, [0], 4, (1.0,) * 8)


@given(
    st.lists(st.floats(-3, 3).map(round).map(float) | st.floats(allow_nan=False, allow_infinity=False), max_size=90),
    st.integers(0, 2**30),
    st.integers(1, MOST_NAMED),
)
def test_the_best_are_the_first_of_all_in_order(scores: list[float], seed: int, most: int) -> None:
    rng = random.Random(seed)
    drawn = [round(rng.random(), 1) for _ in scores]
    in_order = sorted(zip(scores, drawn, range(len(scores)), strict=True))
    assert best(scores, iter(drawn).__next__, most) == [(one, place) for one, _, place in in_order[:most]]


def test_candidates_are_made_as_any() -> None:
    ranked = [(float(place), view) for place, view in enumerate(views(5, random.Random(2)))]
    made = tuple(Candidate(view.instance.instance_id, one, view.load) for one, view in ranked)
    for most in (0, 3, 9):
        assert named(Candidate, ranked, most) == made[:most]
    assert repr(named(Candidate, ranked, 1)[0]) == repr(made[0])


@pytest.mark.parametrize("most", [0, MOST_NAMED + 1])
def test_as_many_as_cannot_be_named_are_refused(most: int) -> None:
    with pytest.raises(ValueError, match="are to be named"):
        best([1.0], random.Random(1).random, most)


def test_scores_that_are_not_finite_are_refused_before_anything_is_drawn() -> None:
    rng = random.Random(1)
    seen = [one for one in views(60, rng) if "m" in one.instance.models]
    broken = replace(seen[7].instance, profile=replace(seen[7].instance.profile, prefill_s_per_token=float("nan")))
    seen[7] = InstanceView(broken, Load(1, 1))
    policy, before = WorkloadImpact(request_bound(99), ObjectiveWeights()), rng.getstate()
    with pytest.raises(NonFiniteScoreError, match="scores are not finite"):
        policy.decide(Request("r", "m", 10, 10.0, 0.0), PoolSnapshot(tuple(seen), 0.0), rng)
    assert rng.getstate() == before

"""Many instances at once are decided on as one after the other: the same candidates, the same scores to the bit."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from llmrouter.domain import (
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
from llmrouter.routing.columns import MANY
from llmrouter.routing.formulas import WorkloadImpact
from llmrouter.routing.marginal_cost import FormulaScorer
from llmrouter.routing.policies import NonFiniteScoreError, Scored
from llmrouter.routing.rooms import kv_gate, request_bound

if TYPE_CHECKING:
    from collections.abc import Callable

POLICIES: dict[str, Callable[[Callable[[InstanceView], Room]], WorkloadImpact | Scored]] = {
    "WorkloadImpact": lambda room: WorkloadImpact(room, ObjectiveWeights()),
    "Onnx": lambda room: Scored(room, FormulaScorer(), ObjectiveWeights()),
}
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
    for place in rng.sample(range(len(found)), 3):
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
        excluded_instance_ids=frozenset(rng.sample(ids, rng.choice([0, 0, 3]))),
        cached_tokens={one: rng.randrange(1, prompt + 1) for one in rng.sample(ids, rng.choice([0, 5]))},
    )


@pytest.mark.parametrize("room", list(ROOMS))
@pytest.mark.parametrize("policy", list(POLICIES))
def test_columns_decide_as_rows_do(policy: str, room: str) -> None:
    rng = random.Random(f"{policy} {room}")
    for count in (MANY, 77):
        by_columns, by_rows = (POLICIES[policy](ROOMS[room]()) for _ in range(2))
        by_rows._columns = None
        seen = views(count, rng)
        placed = 0
        for number in range(150):
            asked, snapshot = request(seen, rng), PoolSnapshot(tuple(seen), 0.0)
            found = by_columns.decide(asked, snapshot, random.Random(number))
            assert found == by_rows.decide(asked, snapshot, random.Random(number))
            placed += not isinstance(found, Hold | NoCandidate)
            seen = moved(seen, rng)
        assert placed > 50


def test_scores_that_are_not_finite_are_refused_by_both() -> None:
    rng = random.Random(1)
    seen = [one for one in views(4 * MANY, rng) if "m" in one.instance.models][:MANY]
    broken = replace(seen[7].instance, profile=replace(seen[7].instance.profile, prefill_s_per_token=float("nan")))
    seen[7] = InstanceView(broken, Load(1, 1))
    asked = Request("r", "m", 10, 10.0, 0.0)
    for by_columns in (True, False):
        policy = WorkloadImpact(request_bound(99), ObjectiveWeights())
        if not by_columns:
            policy._columns = None
        with pytest.raises(NonFiniteScoreError, match="scores are not finite"):
            policy.decide(asked, PoolSnapshot(tuple(seen), 0.0), rng)

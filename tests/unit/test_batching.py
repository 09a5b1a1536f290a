"""Batch-hold: who waits for a batch, until when, and who never does."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any

import pytest
from support.pools import request, view

from llmrouter.config import compile_policy
from llmrouter.domain import BatchHold, EngineMode, Hold, Load, ObjectiveWeights, Placement, PoolSnapshot
from llmrouter.profiles import PAPER_V100
from llmrouter.resources import RoutingPolicySpec
from llmrouter.routing.batching import at_the_latest_s, waits_for_batch
from llmrouter.routing.catalogue import make_policy
from llmrouter.routing.marginal_cost import FormulaScorer
from llmrouter.routing.policies import Scored, kv_gate

if TYPE_CHECKING:
    from llmrouter.domain import Decision, InstanceView
    from llmrouter.routing.policies import Policy

DECODING = Load(requests=20, context_tokens=4_000, remaining_decode_tokens=2_000.0)
PREFILLING = replace(DECODING, queued_prefill_tokens=200)
RULES = BatchHold(3, 0.5)


def first(name: str, load: Load = DECODING, **profile: Any) -> InstanceView:  # noqa: ANN401 - fields of a profile
    one = view(name, load.requests)
    instance = replace(one.instance, profile=replace(PAPER_V100, **profile))
    return replace(one, instance=instance, load=load)


def decided(*views: InstanceView, rules: BatchHold = RULES, **shown: Any) -> Decision:  # noqa: ANN401 - of a snapshot
    asked = replace(request(), arrived_at_s=shown.pop("arrived_at_s", 10.0))
    snapshot = PoolSnapshot(views, **{"taken_at_s": 10.0, **shown})
    decisions = [policy.decide(asked, snapshot, random.Random(1)) for policy in policies(rules)]
    assert {type(one) for one in decisions} in ({Hold}, {Placement})
    return decisions[0]


def policies(rules: BatchHold) -> list[Policy]:
    gate = kv_gate(1.0)
    return [
        make_policy("WorkloadImpact", gate, batch_hold=rules),
        Scored(gate, FormulaScorer(), ObjectiveWeights(), rules),
    ]


def test_a_head_waits_for_a_batch_or_its_time() -> None:
    hold = decided(first("a"), first("b"))
    assert isinstance(hold, Hold)
    assert (hold.until_s, hold.until_held) == (10.5, 3)
    assert isinstance(decided(first("a"), held=2, head_since_s=9.6), Hold)
    assert isinstance(decided(first("a"), held=3), Placement)
    assert isinstance(decided(first("a"), head_since_s=9.5), Placement)


def test_a_batch_must_fit() -> None:
    """Three like this one do not, so it waits for room and not for company."""
    nearly_full = replace(DECODING, context_tokens=PAPER_V100.kv_tokens - 300, remaining_decode_tokens=400.0)
    hold = decided(first("a", nearly_full), held=9)
    assert isinstance(hold, Hold)
    assert (hold.until_s, hold.until_held) == (10.5, None)


@pytest.mark.parametrize(
    "views",
    [
        (first("a", mode=EngineMode.CHUNKED),),
        (first("a", PREFILLING),),
        (first("a"), first("b", Load())),
        (first("a", replace(DECODING, requests=40, context_tokens=8_000)), first("b", PREFILLING)),
    ],
    ids=["chunked", "prompts queued", "idle", "an open one is cheaper"],
)
def test_nobody_waits_where_nothing_is_won(views: tuple[InstanceView, ...]) -> None:
    assert isinstance(decided(*views), Placement)


def test_a_dear_open_instance_is_no_reason_to_pile_up_there() -> None:
    """Prompts queued for seconds: the closed one is cheaper, and is given a batch."""
    assert isinstance(decided(first("a"), first("b", replace(PREFILLING, queued_prefill_tokens=30_000))), Hold)


@pytest.mark.parametrize(
    "shown",
    [
        {"load_age_s": 1.1},
        {"load_age_s": float("nan")},
        {"head_since_s": 10.1},
        {"arrived_at_s": 4.9},
        {"head_since_s": -inf},
    ],
    ids=["stale", "no age", "a clock that went back", "waits for long", "first for ever"],
)
def test_nobody_waits_at_will_where_that_cannot_be_justified(shown: dict[str, float]) -> None:
    assert isinstance(decided(first("a"), rules=replace(RULES, longest_wait_s=10.0), **shown), Placement)


@pytest.mark.parametrize("size", [-1, 0, 1])
def test_a_batch_of_one_is_none(size: int) -> None:
    row = (4.0, 800.0, 0.0, 400.0, 100.0, 100.0, *(1.0,) * 7, 1.0, 0.0)
    assert not waits_for_batch(row, 1, size, 0.5, -1.0, 0.3)
    assert waits_for_batch(row, 1, 2, 0.5, -1.0, 0.3)


def test_nobody_waits_where_too_few_would_be_spared() -> None:
    """Four that decode, a base of one second: a batch of two spares them four seconds, of three eight."""
    row = (4.0, 800.0, 0.0, 400.0, 100.0, 100.0, *(1.0,) * 7, 1.0, 0.0)
    assert waits_for_batch(row, 1, 2, 4.0, -1.0, 0.3)
    assert not waits_for_batch(row, 1, 2, 4.1, -1.0, 0.3)
    assert waits_for_batch(row, 1, 3, 8.0, -1.0, 0.3)


def test_the_latest_is_the_sooner_of_two() -> None:
    assert at_the_latest_s(1.0, 0.0, 0.5, inf) == 1.5


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, (2, 0.15, 1.0, 10.0)),
        ({"objective": {"preset": "E2E"}}, (4, 0.5, 1.0, 10.0)),
        ({"hold": {"batchSize": 4, "batchWaitSeconds": 2, "maxWaitSeconds": 3}}, (4, 2.0, 1.0, 3.0)),
        ({"hold": {"batchWaitSeconds": 0}}, (2, 0.0, 1.0, 10.0)),
        ({"guard": {"maxHoldSeconds": 0.1, "staleAfterSeconds": 2}}, (2, 0.1, 2.0, 10.0)),
        ({"hold": {"enabled": False}}, (1, 0.0, 1.0, inf)),
        ({"type": "LMetric"}, (1, 0.0, 1.0, inf)),
    ],
)
def test_a_policy_says_how_long_heads_wait(spec: dict[str, Any], expected: tuple[float, ...]) -> None:
    """The preset's numbers, within what the guard allows; only policies by cost batch."""
    compiled = compile_policy(
        "p", RoutingPolicySpec.model_validate({"type": "WorkloadImpact", **spec}), model_sha256=None
    )
    rules = compiled.batch_hold
    assert (rules.size, rules.wait_s, rules.stale_after_s, rules.longest_wait_s) == expected

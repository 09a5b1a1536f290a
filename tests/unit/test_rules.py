"""Every formula by hand, and the chain of the compiled simulator against the table of the router."""

from __future__ import annotations

import ast
import inspect

import pytest

from llmrouter.feature_set import FEATURE_NAMES
from llmrouter.routing import rules
from llmrouter.routing.catalogue import POLICIES
from llmrouter.routing.rules import (
    OWN_ALONE,
    Rule,
    bucket_bound,
    marginal_cost_row,
    mixing_penalty,
    queued_prefill_s,
    score,
)

WEIGHTS = (1.0, 1.0, 0.25, 0.25, 2.0, 1.0, 0.0, 0.5, 0.0)
ROW = {
    "requests": 4.0,
    "context_tokens": 1_000.0,
    "queued_prefill_tokens": 300.0,
    "remaining_decode_tokens": 200.0,
    "prompt_tokens": 100.0,
    "predicted_output_tokens": 50.0,
    "kv_tokens": 20_000.0,
    "max_sequences": 128.0,
    "base_s": 0.02,
    "prefill_s_per_token": 1e-4,
    "prefill_s_per_token_squared": 1e-8,
    "context_s_per_token": 1e-6,
    "sequence_s": 1e-3,
    "prefill_first": 1.0,
    "cached_prompt_tokens": 0.0,
}

BY_HAND = {
    Rule.LEAST_IN_FLIGHT: 4.0,
    Rule.LEAST_KV_TOKENS: 1_000.0,
    Rule.LMETRIC: (300 + 100) * 5,
    Rule.PREFILL_LOAD: 400 / 4_194_304,
    Rule.TOKEN_LOAD: 3.0 + 2 * 400 / 4_194_304 + 2 * 0.05,
    Rule.PAPER_JSQ: 500.0,
    Rule.DECODE_BALANCER: 200.0,
    Rule.MIN_MIN: 1e-4 * 400 + 1e-8 * 100**2 + 250 * (0.02 + 1e-3 * 5 + 1e-6 * 1_100),
    Rule.MIXING_PENALTY: 0.5 * 3.3e-5 * 4 * 150,  # T = 3.2e-4·100 + 3.3e-5·1200 = 0.072 s, below ε
    Rule.MIXING_PENALTY_SCALED: 0.5 * (1e-4 * 3.3 / 32) * 4 * 150,
    Rule.OWN_LATENCY: 1e-4 * 300 + 50 * (1e-3 * 4 + 1e-6 * 1_000 + 0.02 + 1e-3 + 1e-6 * 100) + 1e-4 * 100 + 1e-4,
}


def row(**changes: float) -> list[float]:
    return [float((ROW | changes)[name]) for name in FEATURE_NAMES]


def test_the_columns_are_those_of_the_features() -> None:
    named = (
        *("REQUESTS", "CONTEXT", "QUEUED", "REMAINING", "PROMPT", "PREDICTED", "KV", "SLOTS", "BASE", "PREFILL"),
        *("PREFILL_SQUARED", "CONTEXT_S", "SEQUENCE_S", "PREFILL_FIRST", "CACHED"),
    )
    assert [getattr(rules, name) for name in named] == list(range(len(FEATURE_NAMES)))
    assert FEATURE_NAMES[rules.KV : rules.BASE + 1] == ("kv_tokens", "max_sequences", "base_s")


def test_numbers_of_rules_stay_as_they_are() -> None:
    assert [rule.name for rule in Rule] == [
        *("ROUND_ROBIN", "RANDOM", "POWER_OF_TWO", "LEAST_IN_FLIGHT", "MARGINAL_COST", "LEAST_KV_TOKENS", "LMETRIC"),
        *("TOKEN_LOAD", "PAPER_JSQ", "MIN_MIN", "MIXING_PENALTY", "OWN_LATENCY", "DECODE_BALANCER", "PREFILL_LOAD"),
        "MIXING_PENALTY_SCALED",
    ]
    assert [int(rule) for rule in Rule] == list(range(len(Rule)))


def test_every_scoring_rule_is_checked_by_hand() -> None:
    assert set(BY_HAND) == set(Rule) - {
        Rule.ROUND_ROBIN,
        Rule.RANDOM,
        Rule.POWER_OF_TWO,
        Rule.MARGINAL_COST,
    }


@pytest.mark.parametrize("rule", BY_HAND)
def test_by_hand(rule: Rule) -> None:
    assert score(rule, row(), ()) == pytest.approx(BY_HAND[rule], rel=1e-12)


def test_the_marginal_cost_by_hand() -> None:
    imposed = 4 * (1e-4 * 100 + 1e-4) + 4 * 50 * (1e-3 + 1e-6 * (100 + 25))
    own = BY_HAND[Rule.OWN_LATENCY]
    assert marginal_cost_row(row(), WEIGHTS) == pytest.approx(own + 0.25 * imposed, rel=1e-12)
    coalesce = 4 * 0.02
    lacking_none = own - 1e-4 * 300 + 0.25 * imposed + 2 * coalesce
    assert marginal_cost_row(row(queued_prefill_tokens=0.0), WEIGHTS) == pytest.approx(lacking_none, rel=1e-12)


def test_a_backlog_makes_the_stall_weigh_more() -> None:
    calm, pressed = (marginal_cost_row(row(), WEIGHTS, backlog_s) for backlog_s in (0.0, 3.0))
    assert pressed - calm == pytest.approx(0.25 * 0.5 * 3.0 * 4 * (1e-4 * 100 + 1e-4), rel=1e-9)
    assert queued_prefill_s(row()) == pytest.approx(1e-4 * 300, rel=1e-12)


def test_what_is_cached_is_not_computed() -> None:
    spared = 1e-4 * 60 + 1e-8 * 60**2
    whole, part = (marginal_cost_row(row(cached_prompt_tokens=cached), WEIGHTS) for cached in (0.0, 60.0))
    assert whole - part == pytest.approx(spared + 0.25 * 4 * spared, rel=1e-9)


def test_the_spread_by_hand() -> None:
    crowded = 1e-3 * 5 + 1e-6 * 1_100
    alone = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0)
    assert marginal_cost_row(row(), alone) == pytest.approx(2 * 50 * crowded**2 / 0.02, rel=1e-12)


def test_the_wait_for_kv_by_hand() -> None:
    deficit = 1_000 + 100 + 0.3 * 250 - 1_000
    waits = (0.02 + 1e-3 * 4 + 1e-6 * 1_000) * 50 * (deficit / 1_000)
    full, free = (
        marginal_cost_row(row(kv_tokens=kv), (1.0, 1.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0))
        for kv in (1_000.0, 20_000.0)
    )
    assert full - free == pytest.approx(3.0 * waits, rel=1e-9)


def test_the_wait_for_a_batch_slot_by_hand() -> None:
    waits = (0.02 + 1e-3 * 4 + 1e-6 * 1_000) * 50 * (1 / 4)
    full, free = (marginal_cost_row(row(max_sequences=slots), OWN_ALONE) for slots in (4.0, 5.0))
    assert full - free == pytest.approx(waits, rel=1e-9)
    assert score(Rule.MARGINAL_COST, row(), WEIGHTS, 0.5) == marginal_cost_row(row(), WEIGHTS, 0.5)


def test_the_mixing_penalty_counts_the_stall_above_epsilon() -> None:
    stall = 3.2e-4 * 2_000 + 3.3e-5 * 1_200
    slowdown = 3.3e-5 * 4 * 2_050
    penalty = mixing_penalty(row(prompt_tokens=2_000.0))
    assert penalty == pytest.approx(0.5 * stall + 0.5 * slowdown, rel=1e-12)


@pytest.mark.parametrize(
    ("tokens", "bound"),
    [(0, 250), (250, 250), (250.1, 1_000), (1_000, 1_000), (1_001, 4_000), (4_000, 4_000), (9_000, 9_000)],
)
def test_buckets(tokens: float, bound: float) -> None:
    assert bucket_bound(tokens) == bound


def test_a_policy_of_a_rule_follows_its_formula() -> None:
    followed = {policy.__dict__["rule"] for policy in POLICIES.values() if "rule" in policy.__dict__}
    assert followed == set(Rule)


def test_formulas_are_what_a_compiler_takes() -> None:
    """Numbers, names, arithmetic, comparisons, calls of each other and of max and min: nothing that needs objects."""
    functions = dict(inspect.getmembers(rules, inspect.isfunction))
    allowed = {*functions, "max", "min"}
    for name, function in functions.items():
        (tree,) = ast.parse(inspect.getsource(function)).body
        assert isinstance(tree, ast.FunctionDef)
        for node in tree.body[1:]:
            for part in ast.walk(node):
                refused = (ast.Attribute, ast.Dict, ast.List, ast.Set, ast.Try, ast.Lambda, ast.comprehension)
                assert not isinstance(part, refused), f"{name}: {ast.unparse(part)}"
                if isinstance(part, ast.Call):
                    assert isinstance(part.func, ast.Name), name
                    assert part.func.id in allowed, f"{name} calls {part.func.id}"
                if isinstance(part, ast.Constant):
                    assert isinstance(part.value, (int, float)), f"{name}: {part.value!r}"

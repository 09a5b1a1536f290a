"""Both instances of a request picked at once: as routers pick them, counted once each, and in the times that follow."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.sim_worlds import SMALL, columns

from llmrouter.domain import ObjectiveWeights, Role
from llmrouter.errors import InvalidInputError
from llmrouter.profiles import H100_MIX
from llmrouter.routing.catalogue import make_policy
from llmrouter.routing.policies import kv_gate
from llmrouter.routing.rules import OWN_ALONE, Rule
from llmrouter.routing.stages import Staged, StageRules
from llmrouter.sim.model import EngineModel
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy, RouterSide, Setup
from llmrouter.sim.workload import Workload

if TYPE_CHECKING:
    from llmrouter.routing.policies import Policy
    from llmrouter.sim.outcomes import Outcomes

pytestmark = pytest.mark.timeout(600)  # the first simulation of a changed kernel compiles it
RULES = StageRules(256)
LARGE = replace(SMALL, kv_tokens=64_000)
ALL_AT_ONCE = CompiledPolicy(rule=Rule.LEAST_IN_FLIGHT)


def engine(role: Role, place: int, *, hands_first_token: bool = True) -> EngineModel:
    """Engines that are so unequal that nothing ties."""
    profile = replace(
        H100_MIX,
        base_decode_s=H100_MIX.base_decode_s * (1 + place / 91),
        prefill_s_per_token=H100_MIX.prefill_s_per_token * (1 + place / 53),
    )
    return EngineModel(profile, role=role, hands_first_token=hands_first_token)


def mixed(count: int, *, rate_rps: float) -> Workload:
    rng = np.random.default_rng(8)
    output = rng.lognormal(4.5, 0.8, count).astype(int).clip(1, 2_000)
    return Workload.of(
        np.cumsum(rng.exponential(1 / rate_rps, count)),
        rng.lognormal(6.5, 1.2, count).astype(int).clip(8, 16_000),
        output,
        predicted_output_tokens=output * rng.uniform(0.5, 1.5, count),
    )


SETTINGS = {
    "apart": (Role.PREFILL, Role.PREFILL, Role.DECODE, Role.DECODE, Role.DECODE),
    "with mixed": (Role.PREFILL, Role.MIXED, Role.MIXED, Role.DECODE),
    "none computes for others": (Role.MIXED, Role.MIXED),
}
SIDES = {
    "exact": RouterSide(stages=RULES),
    "stale, reserves": RouterSide(stages=RULES, routers=2, refresh_s=0.2),
    "private, stale": RouterSide(stages=RULES, routers=2, refresh_s=0.2, shared=False),
}


def served(name: str) -> Policy:
    """As a router makes it of its configuration."""
    policy, weights = make_policy(name, kv_gate(0.9)), ObjectiveWeights()
    if name == "WorkloadImpact":
        decode = make_policy(name, kv_gate(0.9), replace(weights, reuse=0.0))
        return Staged(policy, RULES, decode=decode, weights=weights)
    return Staged(policy, RULES, weights=ObjectiveWeights(*OWN_ALONE))


@pytest.mark.parametrize("side", sorted(SIDES))
@pytest.mark.parametrize("roles", sorted(SETTINGS))
@pytest.mark.parametrize(
    ("name", "rule"),
    [("WorkloadImpact", Rule.MARGINAL_COST), ("OwnLatency", Rule.OWN_LATENCY), ("MinMin", Rule.MIN_MIN)],
)
def test_a_compiled_rule_picks_both_stages_as_the_policy_that_serves(
    name: str, rule: Rule, roles: str, side: str
) -> None:
    """Machine code and ``Staged``, the router's own object, come to the same bytes."""
    engines = tuple(engine(role, place) for place, role in enumerate(SETTINGS[roles]))
    setup, workload = Setup(engines=engines, routers=SIDES[side]), mixed(500, rate_rps=25.0)
    fast = simulate(setup, workload, CompiledPolicy(rule=rule, max_requests=None, kv_fraction=0.9))
    assert columns(fast) == columns(simulate(setup, workload, served(name)))
    apart = fast.instance != fast.decode_instance
    assert apart.any() == (Role.PREFILL in SETTINGS[roles])
    if Role.MIXED not in SETTINGS[roles]:
        assert (apart == (workload.prompt_tokens >= RULES.min_prefill_tokens)).all()


def lone(prompt: int, output: int, *, hands_first_token: bool) -> Outcomes:
    prefill = EngineModel(
        LARGE,
        role=Role.PREFILL,
        kv_bytes_per_token=1e6,
        transfer_bytes_per_s=1e9,
        transfer_s=0.5,
        hands_first_token=hands_first_token,
    )
    setup = Setup(engines=(prefill, EngineModel(LARGE, role=Role.DECODE)), routers=RouterSide(stages=StageRules(0)))
    return simulate(setup, Workload.of([0.0], [prompt], [output]), ALL_AT_ONCE)


def test_the_first_token_comes_with_the_prompt_or_with_its_kv() -> None:
    """A lone prompt of 30 tokens, 0.03 s of KV: the first token where it is computed, or a step after the KV."""
    at_once, behind = lone(30, 3, hands_first_token=True), lone(30, 3, hands_first_token=False)
    computed_s = LARGE.base_prefill_s + LARGE.prefill_s_per_token * 30 + LARGE.prefill_s_per_token_squared * 900
    assert at_once.ttft_s[0] == pytest.approx(computed_s)
    last_s = LARGE.base_prefill_s + LARGE.prefill_s_per_token + LARGE.prefill_s_per_token_squared * (900 - 29 * 29)
    assert behind.ttft_s[0] == pytest.approx(computed_s + 0.5 + 0.03 + last_s)
    assert (
        (at_once.instance[0], at_once.decode_instance[0]) == (behind.instance[0], behind.decode_instance[0]) == (0, 1)
    )

    def step_s(context: int) -> float:
        return LARGE.base_decode_s + LARGE.sequence_s + LARGE.context_s_per_token * context

    two_more_s = step_s(30) + step_s(31)
    assert at_once.e2e_s[0] == pytest.approx(computed_s + 0.53 + two_more_s)
    assert behind.e2e_s[0] == pytest.approx(computed_s + 0.53 + last_s + two_more_s)


def test_an_answer_of_one_token_ends_where_its_first_token_is_made() -> None:
    assert lone(30, 1, hands_first_token=True).e2e_s[0] < 0.5
    assert lone(30, 1, hands_first_token=False).e2e_s[0] > 0.53


def test_a_run_in_two_stages_needs_somebody_who_answers() -> None:
    with pytest.raises(InvalidInputError, match="Decode or Mixed"):
        Setup(engines=(EngineModel(LARGE, role=Role.PREFILL),), routers=RouterSide(stages=RULES))

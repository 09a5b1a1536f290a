"""The parts of ``llmrouter tune``: scales, windows, the verdict, the search on a valley whose lowest point is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest

from llmrouter.errors import InvalidInputError
from llmrouter.objectives import PRESETS
from llmrouter.profiles import PROFILES
from llmrouter.resources import ObjectiveSpec, RoutingPolicySpec
from llmrouter.sim.model import EngineModel
from llmrouter.sim.workload import Workload
from llmrouter.study.seeds import SELECTION, TRAINING
from llmrouter.tuning.judgement import (
    AMOUNTS,
    GUARDS,
    OBJECTIVES,
    SHOWN,
    Objective,
    check_says_something,
    judge,
    kept,
    penalised,
)
from llmrouter.tuning.parameters import bounds_of, compiled_policy, named, numbers, parameters, policy_at, steps_of
from llmrouter.tuning.runs import Runs
from llmrouter.tuning.search import TRUST_RADIUS, Plan, search
from llmrouter.tuning.windows import held_out_seeds, own_rate_rps, split, training_seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmrouter.tuning.judgement import Figures
    from llmrouter.tuning.search import Found

CHUNKED, PREFILL_FIRST = EngineModel(PROFILES["h100-mix"]), EngineModel(PROFILES["paper-v100"])
POLICY = RoutingPolicySpec(type="WorkloadImpact")


def figures(**changes: float | None) -> Figures:
    same: Figures = dict.fromkeys(SHOWN, 1.0)
    return {**same, **dict.fromkeys(AMOUNTS, 0.0), **changes}


# scales


def test_a_policy_and_its_steps_are_the_same_thing() -> None:
    searched = parameters(POLICY, [PREFILL_FIRST])
    again = policy_at(POLICY, searched, steps_of(POLICY, searched))
    assert compiled_policy(again).weights == compiled_policy(POLICY).weights
    assert compiled_policy(again).batch_hold == compiled_policy(POLICY).batch_hold
    assert again.hold.decode_reserve_fraction == POLICY.hold.decode_reserve_fraction


def test_only_numbers_that_make_a_difference_are_searched() -> None:
    on_chunked = {one.path for one in parameters(POLICY, [CHUNKED])}
    on_both = {one.path for one in parameters(POLICY, [CHUNKED, PREFILL_FIRST])}
    only_prefill_first = {"objective.coalesceWeight", "hold.batchSize", "hold.batchWaitSeconds"}
    assert on_both - on_chunked == only_prefill_first
    caching = {one.path for one in parameters(POLICY, [replace(CHUNKED, prefix_caching=True)])}
    assert caching - on_chunked == {"objective.reuseWeight"}
    assert "objective.waitWeight" not in on_both  # a common factor of all weights changes nothing
    assert "hold.decodeReserveFraction" in on_chunked
    by_requests = RoutingPolicySpec.model_validate({"type": "WorkloadImpact", "hold": {"room": "Requests"}})
    assert "hold.decodeReserveFraction" not in {one.path for one in parameters(by_requests, [CHUNKED])}


def test_without_a_weight_of_the_wait_all_others_are_free() -> None:
    no_wait = RoutingPolicySpec(type="WorkloadImpact", objective=ObjectiveSpec(wait_weight=0))
    assert "objective.waitWeight" in {one.path for one in parameters(no_wait, [CHUNKED])}


def test_whatever_the_steps_the_policy_is_a_valid_resource() -> None:
    searched = parameters(POLICY, [PREFILL_FIRST])
    for steps in (-100.0, 0.0, 100.0):
        policy = policy_at(POLICY, searched, np.full(len(searched), steps))
        for one in searched:
            value = getattr(getattr(policy, one.section), one.field)
            assert one.lowest <= value <= one.highest
    lowest_P, highest_P = bounds_of(searched).T
    assert (lowest_P < steps_of(POLICY, searched)).all()
    assert (steps_of(POLICY, searched) < highest_P).all()


def test_numbers_are_rounded_before_they_are_tried() -> None:
    searched = parameters(POLICY, [CHUNKED])
    policy = policy_at(POLICY, searched, steps_of(POLICY, searched) + 0.123456)
    value = policy.objective.decode_weight
    assert value is not None
    assert value == float(f"{value:.3g}")
    searched = parameters(POLICY, [PREFILL_FIRST])
    size = policy_at(POLICY, searched, steps_of(POLICY, searched) + 0.5).hold.batch_size
    assert isinstance(size, int)


def test_a_preset_s_numbers_stay_in_force_under_another_name() -> None:
    e2e = RoutingPolicySpec(type="WorkloadImpact", objective=ObjectiveSpec(preset="E2E"))
    renamed = named(e2e, "SLO")
    assert renamed.objective.preset == "SLO"
    assert compiled_policy(renamed).weights == PRESETS["E2E"]
    assert compiled_policy(renamed).batch_hold == compiled_policy(e2e).batch_hold
    assert numbers(renamed) == numbers(e2e)


# windows


def test_seeds_of_training_and_verdict_are_of_their_blocks() -> None:
    for seed in (0, 1, 2**31 - 1):
        assert sorted(training_seeds(seed)) == list(range(TRAINING.first, TRAINING.last + 1))
        held_out = held_out_seeds(seed, 20)
        assert held_out[0] in SELECTION
        assert held_out[-1] in SELECTION
        assert len(held_out) == 20
    assert set(held_out_seeds(3, 20)).isdisjoint(held_out_seeds(4, 20))
    assert training_seeds(1) != training_seeds(2)


def test_the_later_part_of_a_recording_is_held_out() -> None:
    trace = Workload.of(np.linspace(0.0, 199.9, 2_000), np.arange(1, 2_001), np.ones(2_000, np.int64))
    earlier, later = split(trace, 0.25)
    assert earlier.prompt_tokens.max() < later.prompt_tokens.min()
    assert (len(earlier), len(later)) == (1_500, 500)
    assert later.arrived_at_s[0] == 0.0
    assert own_rate_rps(later) == pytest.approx(10.0, rel=0.01)


def test_sessions_are_not_cut() -> None:
    after = np.where(np.arange(1_200) % 4 == 0, -1, np.arange(1_200) - 1)
    arrived_at_s = np.repeat(np.linspace(0.0, 299.0, 300), 4)
    trace = Workload.of(arrived_at_s, np.full(1_200, 9), np.full(1_200, 9), after=after)
    earlier, later = split(trace, 0.3)
    assert len(earlier) % 4 == len(later) % 4 == 0
    assert len(earlier) + len(later) == 1_200


def test_too_little_is_no_trace() -> None:
    few = Workload.of(np.linspace(0.0, 99.0, 999), np.full(999, 9), np.full(999, 9))
    with pytest.raises(InvalidInputError, match="999 requests are too few to tune on: it takes 1,000"):
        split(few, 0.3)
    one_session = Workload.of(np.zeros(1_000), np.full(1_000, 9), np.full(1_000, 9), after=np.arange(1_000) - 1)
    with pytest.raises(InvalidInputError, match="1 sessions are too few"):
        split(one_session, 0.3)


def test_requests_without_a_clock_have_no_rate() -> None:
    assert own_rate_rps(Workload.of([0.0, 0.0], [1, 1], [1, 1])) is None


# the verdict


def shifted(shift: float, spread: float, **others: float) -> list[Figures]:
    """Twenty windows whose mean E2E is ``shift`` better or worse in the logarithm, with a deviation of ``spread``."""
    noise = np.random.default_rng(1).normal(size=20)
    noise = (noise - noise.mean()) / noise.std(ddof=1) * spread
    return [figures(e2e_mean_s=math.exp(shift + one), **others) for one in noise]


BASES = [figures() for _ in range(20)]


@pytest.mark.parametrize(("shift", "accepted"), [(-0.02, True), (-0.003, False), (0.0, False), (0.02, False)])
def test_only_what_is_better_beyond_its_interval_is_accepted(shift: float, accepted: bool) -> None:  # noqa: FBT001
    verdict = judge("E2E", shifted(shift, 0.01), BASES)
    assert verdict.accepted is accepted
    assert verdict.rows[0].half_width == pytest.approx(2.093 * 0.01 / math.sqrt(20), rel=1e-3)


@pytest.mark.parametrize("name", GUARDS)
def test_nothing_that_must_hold_may_get_worse(name: str) -> None:
    worse = judge("E2E", shifted(-0.05, 0.01, **{name: 1.02 if name not in AMOUNTS else 0.01}), BASES)
    assert not worse.accepted
    assert worse.reason == f"worse beyond its interval: {name}"
    within = [figures(**one | {name: one[name] + 0.01 * (-1) ** k}) for k, one in enumerate(shifted(-0.05, 0.01))]
    assert judge("E2E", within, BASES).accepted


def test_a_recording_of_a_window_s_length_is_one_observation() -> None:
    """Resampled again and again it says no more than once: t·s·√(1/n + 1)."""
    values = shifted(-0.02, 0.01)
    narrow, wide = judge("E2E", values, BASES), judge("E2E", values, BASES, window_share=1.0)
    assert narrow.accepted
    assert not wide.accepted
    assert wide.rows[0].half_width == pytest.approx(narrow.rows[0].half_width * math.sqrt(21))
    assert [row.half_width for row in wide.rows[1:]] == [row.half_width for row in narrow.rows[1:]]


def test_the_same_policy_is_never_accepted() -> None:
    verdict = judge("SLO", BASES, BASES)
    assert not verdict.accepted
    assert {row.verdict for row in verdict.rows} == {"same"}


def test_objectives_are_those_of_the_resource_and_of_figures_that_are_shown() -> None:
    assert set(OBJECTIVES) == set(PRESETS) == set(get_args(Objective))
    for parts in OBJECTIVES.values():
        assert math.fsum(parts.values()) == pytest.approx(1.0)
        assert set(parts) <= set(SHOWN)


def test_what_gets_worse_counts_against_the_search() -> None:
    better = [figures(e2e_mean_s=0.9)]
    assert penalised("E2E", better, BASES[:1]) == pytest.approx(math.log(0.9))
    shedding = [figures(e2e_mean_s=0.9, shed_rate=0.05)]
    assert penalised("E2E", shedding, BASES[:1]) > 0
    slower = [figures(e2e_mean_s=0.9, ttft_p99_s=1.2)]
    assert penalised("E2E", slower, BASES[:1]) == pytest.approx(math.log(0.9 * 1.2))


def test_a_policy_that_finishes_nothing_is_worse_than_any() -> None:
    nothing = figures(e2e_mean_s=None, ttft_p99_s=None, tpot_p95_s=None, shed_rate=1.0)
    assert penalised("Balanced", [nothing], BASES[:1]) > 10.0
    with pytest.raises(InvalidInputError, match=r"say nothing of e2e_mean_s, which --objective E2E is made of"):
        check_says_something("E2E", [nothing])


def test_preemptions_are_in_proportion_to_the_requests() -> None:
    assert kept({"preemptions": 5.0, "e2e_mean_s": 1.0}, 1_000)["preemptions_per_request"] == 0.005


# the search


class Valley(Runs):
    """Runs whose mean E2E is least at given weights; window and policy alone decide it, as in the simulator."""

    def __init__(self, lowest: dict[str, float], noise: float = 0.0) -> None:
        self.lowest = lowest
        self.noise = noise
        self.windows: list[int] = []

    def figures(
        self,
        policies: Sequence[RoutingPolicySpec],
        seeds: Sequence[int],
        *,
        held_out: bool = False,
        on_done: Callable[[int], None] = lambda _: None,
    ) -> list[list[Figures]]:
        assert not held_out
        self.windows += seeds
        on_done(len(policies) * len(seeds))
        return [[self._one(policy, seed) for seed in seeds] for policy in policies]

    def _one(self, policy: RoutingPolicySpec, seed: int) -> Figures:
        weights = compiled_policy(policy).weights.as_mapping()
        far = sum((math.asinh(weights[name] / 0.05) - math.asinh(at / 0.05)) ** 2 for name, at in self.lowest.items())
        chance = np.random.default_rng((seed, int(1e6 * sum(weights.values())))).normal() * self.noise
        return figures(e2e_mean_s=10.0 * math.exp(0.1 * far + chance))


def found_in(valley: Valley, *, is_update: bool = False, seed: int = 0, budget_s: float = 1e9) -> Found:
    ticks = iter(range(1_000_000))
    return search(
        valley,
        Plan(objective="E2E", generations=25, budget_s=budget_s, seed=seed, is_update=is_update),
        current=POLICY,
        start=POLICY,
        searched=parameters(POLICY, [CHUNKED]),
        others=(),
        seeds=training_seeds(seed),
        clock=lambda: float(next(ticks)),
        on_done=lambda _: None,
    )


LOWEST = {"decode": 3.0, "stall": 0.05, "spread": 0.3}


def test_the_search_finds_the_lowest_point() -> None:
    found = found_in(Valley(LOWEST))
    weights = compiled_policy(found.policy).weights.as_mapping()
    for name, at in LOWEST.items():
        assert weights[name] == pytest.approx(at, rel=0.25)
    assert found.value < -0.1
    assert found.curve[-1] < found.curve[0]
    assert not found.is_cut


def test_what_makes_no_difference_stays_where_it_was() -> None:
    found = found_in(Valley({"decode": 3.0}))
    was, now = numbers(POLICY), numbers(found.policy)
    assert {name for name in was if now[name] != was[name]} == {"objective.decodeWeight"}


def test_windows_of_the_choice_are_no_windows_of_the_search() -> None:
    valley = Valley(LOWEST)
    found_in(valley)
    generations, choice = valley.windows[: 25 * 4], valley.windows[25 * 4 :]
    assert len(set(generations)) == len(generations)
    assert set(choice).isdisjoint(generations)
    assert len(set(choice)) == 12


def test_the_same_seed_finds_the_same() -> None:
    once, again, other = (found_in(Valley(LOWEST, noise=0.02), seed=seed) for seed in (3, 3, 4))
    assert once == again
    assert once.policy != other.policy


def test_an_update_stays_near_its_beginning() -> None:
    found = found_in(Valley({"decode": 50.0}), is_update=True)
    searched = parameters(POLICY, [CHUNKED])
    moved_P = np.abs(steps_of(found.policy, searched) - steps_of(POLICY, searched))
    assert moved_P.max() <= TRUST_RADIUS + 0.01
    assert found.value < 0


def test_the_budget_ends_a_search_and_says_so() -> None:
    found = found_in(Valley(LOWEST), budget_s=20.0)
    assert found.is_cut
    assert 1 <= len(found.curve) < 25

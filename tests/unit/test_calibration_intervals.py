"""Observations made of reports and loads: each equation by hand, and what must not become an observation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from llmrouter.domain import EngineProfile, Instance, InstanceView, Load
from llmrouter.profiles import H100_MIX, PAPER_V100
from llmrouter.routing import calibration_intervals
from llmrouter.routing.calibration_intervals import FORGET_S, Intervals, prefill_terms, prompt_terms

if TYPE_CHECKING:
    from llmrouter.routing.calibration import Observation


@dataclass
class Seen:
    """Intervals of one instance whose load the test sets, under its own clock."""

    profile: EngineProfile = H100_MIX
    load: Load = field(default_factory=Load)
    foreign: Load = field(default_factory=Load)
    observations: list[Observation] = field(default_factory=list)
    now_s: float = 100.0

    def __post_init__(self) -> None:
        self.instance = Instance("i", "i:1", "pool", self.profile, frozenset({"m"}))
        self.intervals = Intervals(lambda _, observation: self.observations.append(observation))

    def wait(self, seconds: float) -> None:
        """Time passes, with a refresh every tenth of a second."""
        for _ in range(round(seconds * 10)):
            self.now_s += 0.1
            self.refresh()

    def refresh(self) -> None:
        self.intervals.refreshed(lambda one: InstanceView(one, self.load, self.foreign), now_s=self.now_s)

    def dispatch(self, name: str, prompt_tokens: int = 100, *, alone: bool = False) -> None:
        self.intervals.dispatched(name, self.instance, prompt_tokens=prompt_tokens, alone=alone, now_s=self.now_s)

    def tokens(self, name: str, tokens: int) -> None:
        self.intervals.advanced(name, tokens, now_s=self.now_s)

    def end(self, name: str, tokens: int | None) -> None:
        self.intervals.ended(name, tokens, now_s=self.now_s)


def test_a_gap_is_its_steps_with_the_mean_load() -> None:
    seen = Seen(load=Load(10, 20_000, 0))
    seen.dispatch("a")
    seen.refresh()
    seen.tokens("a", 1)
    seen.wait(1.0)
    seen.load = Load(20, 40_000, 0)
    seen.wait(1.0)
    seen.tokens("a", 101)
    (one,) = seen.observations
    assert one.seconds == pytest.approx(2.0)
    assert one.steps == pytest.approx(100)
    assert one.prefill_tokens == 0
    assert one.sequences == pytest.approx(100 * 15, rel=0.05)
    assert one.context_tokens == pytest.approx(100 * 30_000, rel=0.05)


@pytest.mark.parametrize("profile", [H100_MIX, PAPER_V100], ids=["chunked", "prefill first"])
def test_a_prompt_that_is_computed_elsewhere_is_none_of_the_instances_steps(profile: EngineProfile) -> None:
    seen = Seen(profile, load=Load(10, 20_000, 0))
    seen.dispatch("a", 0, alone=True)
    seen.wait(3.0)
    seen.tokens("a", 1)
    seen.dispatch("b", 0)
    seen.wait(0.5)
    seen.tokens("b", 1)
    seen.load = Load(11, 24_000, 300)  # a whole request of another router, whose prompt waits
    seen.wait(0.5)
    seen.load = Load(11, 24_000, 300)
    seen.wait(1.0)
    seen.tokens("a", 101)
    (one,) = seen.observations
    assert one.seconds == pytest.approx(2.0)
    assert one.steps == pytest.approx(100)
    assert one.prefill_tokens == 0
    assert 9.0 < one.sequences / 100 < 11.0
    seen.end("a", 101)
    seen.end("b", 5)
    assert len(seen.intervals) == 0


def test_prompts_of_others_count_and_the_requests_own_does_not() -> None:
    seen = Seen(load=Load(3, 10_000, 0))
    seen.dispatch("a", 4_000)
    seen.dispatch("b", 1_500)
    seen.load = Load(3, 10_000, 5_500)
    seen.wait(0.2)
    seen.tokens("a", 1)
    seen.load = Load(3, 10_000, 1_500)
    seen.wait(0.5)
    seen.tokens("b", 1)
    seen.load = Load(3, 10_000, 0)
    seen.wait(1.0)
    seen.tokens("a", 61)
    (one,) = seen.observations
    assert one.prefill_tokens == pytest.approx(1_500)
    assert one.steps == pytest.approx(60)


def test_prompts_of_one_step_cost_those_that_follow_nothing() -> None:
    seen = Seen(profile=PAPER_V100, load=Load(2, 400, 0))
    seen.dispatch("a", 200)
    seen.dispatch("b", 200)
    seen.wait(0.2)
    seen.tokens("a", 1)
    seen.now_s += 0.001
    seen.tokens("b", 1)
    seen.wait(1.2)
    seen.tokens("a", 41)
    (one,) = seen.observations
    assert (one.steps, one.prefill_tokens) == (40, 0)


def test_a_prefill_step_of_its_own_counts_its_base_once() -> None:
    profile = replace(PAPER_V100, base_prefill_s=2 * PAPER_V100.base_decode_s)
    seen = Seen(profile=profile, load=Load(3, 400, 0))
    for name in "abc":
        seen.dispatch(name, 200)
    seen.wait(0.2)
    seen.tokens("a", 1)
    seen.wait(0.5)
    seen.tokens("b", 1)
    seen.tokens("c", 1)
    seen.wait(0.8)
    seen.tokens("a", 41)
    (one,) = seen.observations
    assert one.steps == pytest.approx(40 + 2)
    assert one.prefill_tokens == pytest.approx(400)


def test_prompts_of_other_routers_are_the_fall_of_the_queued_tokens() -> None:
    seen = Seen(load=Load(5, 10_000, 3_000))
    seen.dispatch("a", 100)
    seen.refresh()
    seen.tokens("a", 1)
    seen.wait(0.5)
    seen.load = Load(5, 10_000, 500)
    seen.wait(0.8)
    seen.tokens("a", 51)
    (one,) = seen.observations
    assert one.prefill_tokens == pytest.approx(2_400, abs=101)


def test_a_lone_request_tells_of_its_prefill() -> None:
    seen = Seen()
    seen.dispatch("a", 4_000, alone=True)
    seen.now_s += 0.1
    seen.tokens("a", 1)
    (one,) = seen.observations
    assert one.seconds == pytest.approx(0.1)
    assert (one.steps, one.prefill_tokens) == (2, 4_000)
    assert one.sequences == one.context_tokens == 0


def test_a_short_or_crowded_first_token_tells_nothing() -> None:
    seen = Seen()
    seen.dispatch("short", 10, alone=True)
    seen.dispatch("crowded", 4_000, alone=False)
    seen.now_s += 0.1
    seen.tokens("short", 1)
    seen.tokens("crowded", 1)
    assert not seen.observations


@pytest.mark.parametrize("jump_s", [40.0, -40.0, 1.5])
def test_nothing_is_measured_across_a_jump_of_the_clock(jump_s: float) -> None:
    seen = Seen(load=Load(5, 10_000, 0))
    seen.dispatch("a")
    seen.wait(0.2)
    seen.tokens("a", 1)
    seen.wait(0.9)
    seen.now_s += jump_s
    seen.refresh()
    seen.tokens("a", 60)
    seen.wait(1.2)
    seen.tokens("a", 120)
    assert [one.steps for one in seen.observations] == [60]
    assert seen.observations[0].seconds == pytest.approx(1.2)


def test_nothing_is_measured_where_the_loads_are_not_known() -> None:
    seen = Seen(load=Load(5, 10_000, 0))
    seen.dispatch("a")
    seen.wait(0.2)
    seen.tokens("a", 1)
    seen.now_s += 3.0
    seen.tokens("a", 60)
    assert not seen.observations


def test_nothing_is_measured_beside_foreign_load() -> None:
    seen = Seen(load=Load(5, 10_000, 0))
    seen.dispatch("a")
    seen.tokens("a", 1)
    seen.wait(0.5)
    seen.foreign = Load(1, 100, 0)
    seen.wait(0.2)
    seen.foreign = Load()
    seen.wait(1.0)
    seen.tokens("a", 60)
    assert not seen.observations


@pytest.mark.parametrize("last", [60, 0, -5, 5, None])
def test_only_an_end_with_enough_tokens_is_an_observation(last: int | None) -> None:
    seen = Seen(load=Load(5, 10_000, 0))
    seen.dispatch("a")
    seen.tokens("a", 1)
    seen.wait(0.7)
    seen.end("a", last)
    assert len(seen.observations) == (last == 60)
    assert len(seen.intervals) == 0


def test_a_repeated_answer_changes_nothing() -> None:
    seen = Seen(load=Load(5, 10_000, 0))
    seen.dispatch("a")
    seen.tokens("a", 1)
    seen.wait(0.6)
    seen.dispatch("a")
    seen.wait(0.6)
    seen.tokens("a", 60)
    assert [one.steps for one in seen.observations] == [59]


def test_observations_of_one_instance_are_spaced() -> None:
    seen = Seen(load=Load(50, 10_000, 0))
    for number in range(50):
        seen.dispatch(str(number))
        seen.tokens(str(number), 1)
    for second in range(1, 5):
        seen.wait(1.1)
        for number in range(50):
            seen.tokens(str(number), 1 + 50 * second)
    assert len(seen.observations) == 4


def test_requests_nobody_reports_are_forgotten_and_their_number_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_intervals, "MAX_REQUESTS", 10)
    seen = Seen()
    for number in range(20):
        seen.dispatch(str(number))
    assert len(seen.intervals) == 10
    for _ in range(int(FORGET_S / 0.9 + FORGET_S / 9)):
        seen.now_s += 0.9
        seen.refresh()
    assert len(seen.intervals) == 0


def test_unknown_requests_are_nothing() -> None:
    seen = Seen()
    seen.tokens("never", 5)
    seen.end("never", 5)
    assert not seen.observations


def test_terms_of_a_prompt() -> None:
    profile = replace(
        H100_MIX,
        base_decode_s=0.010,
        base_prefill_s=0.005,
        prefill_s_per_token=1e-5,
        prefill_s_per_token_squared=1e-9,
        token_budget=2_048,
    )
    steps, tokens = prefill_terms(profile, 4_000)
    assert steps == pytest.approx(1.0)
    assert tokens == pytest.approx(4_000 + 1e-4 * 4_000**2)
    assert prompt_terms(profile, 4_000) == pytest.approx((-1.0, tokens))
    assert prompt_terms(profile, 300) == (0.0, 0.0), "it fits beneath a decode step's base"
    first = replace(profile, mode=PAPER_V100.mode)
    assert prompt_terms(first, 300) == prefill_terms(first, 300) == pytest.approx((0.5, 309))

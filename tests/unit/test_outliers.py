"""Instances that fail again and again: ejected, tried, taken back; and never too many at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrouter.routing.late_starts import LASTS_S, LEAST_INSTANCES, LEAST_SAMPLES, WINDOW, bound, lateness
from llmrouter.routing.outliers import LONGEST_EJECTION_S, PROBE_S, OutlierRules, Outliers, Why

RULES = OutlierRules(consecutive_failures=3, eject_s=10.0, max_ejected_fraction=0.5)
ALL = ("a", "b", "c", "d")


def failing(outliers: Outliers, name: str = "a", times: int = 3, *, now_s: float = 0.0) -> list[bool]:
    return [outliers.failed(name, now_s=now_s, instances=len(ALL)) for _ in range(times)]


def out(outliers: Outliers, now_s: float) -> set[str]:
    return set(outliers.left_out(now_s=now_s))


def test_failures_in_a_row_eject() -> None:
    outliers = Outliers(RULES)
    assert failing(outliers) == [False, False, True]
    assert out(outliers, 0.0) == out(outliers, 9.9) == {"a"}
    assert outliers.ejected == 1


def test_an_answer_between_them_does_not() -> None:
    outliers = Outliers(RULES)
    failing(outliers, times=2)
    outliers.answered("a")
    assert failing(outliers, times=2) == [False, False]
    assert out(outliers, 0.0) == set()


def test_after_its_time_one_request_is_the_trial() -> None:
    outliers = Outliers(RULES)
    failing(outliers)
    assert out(outliers, 10.0) == set()
    outliers.dispatched("a", now_s=10.0)
    assert out(outliers, 10.1) == {"a"}
    outliers.answered("a")
    assert out(outliers, 10.2) == set()
    assert outliers.ejected == 0


def test_a_failed_trial_lasts_twice_as_long() -> None:
    outliers = Outliers(RULES)
    failing(outliers)
    outliers.dispatched("a", now_s=10.0)
    assert failing(outliers, times=1, now_s=11.0) == [True]
    assert out(outliers, 30.9) == {"a"}
    assert out(outliers, 31.0) == set()


def test_it_never_lasts_for_ever() -> None:
    outliers, now_s = Outliers(RULES), 0.0
    failing(outliers)
    for _ in range(20):
        now_s += LONGEST_EJECTION_S
        assert out(outliers, now_s) == set()
        outliers.dispatched("a", now_s=now_s)
        failing(outliers, times=1, now_s=now_s)


def test_a_trial_that_keeps_silent_is_made_again() -> None:
    outliers = Outliers(RULES)
    failing(outliers)
    outliers.dispatched("a", now_s=10.0)
    assert out(outliers, 10.0 + PROBE_S) == set()


def test_requests_from_before_its_ejection_prolong_nothing() -> None:
    outliers = Outliers(RULES)
    failing(outliers)
    assert failing(outliers, times=5, now_s=9.0) == [False] * 5
    assert out(outliers, 10.0) == set()


def test_at_most_a_share_is_ejected() -> None:
    outliers = Outliers(RULES)
    for name in ALL:
        failing(outliers, name)
    assert out(outliers, 0.0) == {"a", "b"}
    alone = Outliers(RULES)
    assert not any(alone.failed("a", now_s=0.0, instances=1) for _ in range(9))


def test_none_is_ejected_where_the_rules_say_so() -> None:
    outliers = Outliers(OutlierRules(consecutive_failures=0))
    assert failing(outliers, times=50) == [False] * 50
    outliers = Outliers(RULES)
    failing(outliers)
    outliers.follow(OutlierRules(consecutive_failures=0))
    assert out(outliers, 0.0) == set()


def test_who_is_gone_is_forgotten() -> None:
    outliers = Outliers(RULES)
    failing(outliers)
    outliers.keep_only({"b"})
    assert out(outliers, 0.0) == set()


@pytest.mark.parametrize("jump_s", [-1e6, -1.0, 1e6])
def test_a_clock_that_jumps_ends_it(jump_s: float) -> None:
    outliers = Outliers(RULES)
    failing(outliers, now_s=100.0)
    assert out(outliers, 100.0 + jump_s) == set()


def starting(outliers: Outliers, times: float, name: str = "a", *, samples: int = WINDOW, now_s: float = 0.0) -> None:
    """First tokens so many times later than foretold."""
    for place in range(samples):
        late = lateness(took_s=times * 1.0, foretold_s=1.0)
        outliers.started(name, f"{name}{place}", late, now_s=now_s)
        outliers.answered(name, f"{name}{place}")


def judged(outliers: Outliers, now_s: float = 0.0) -> list[str]:
    return outliers.judge(now_s=now_s, instances=len(ALL))


def late_one(times: float = 10.0) -> Outliers:
    outliers = Outliers(RULES)
    for name in "bcd":
        starting(outliers, 1.0, name)
    starting(outliers, times, "a")
    return outliers


class TestLateFirstTokens:
    def test_far_later_than_the_others_ejects(self) -> None:
        outliers = late_one()
        assert judged(outliers) == ["a"]
        assert out(outliers, 9.9) == {"a"}
        assert outliers.why("a") is Why.LATE
        assert judged(outliers) == []

    def test_where_all_are_late_none_is(self) -> None:
        outliers = Outliers(RULES)
        for place, name in enumerate(ALL):
            starting(outliers, 50.0 + place, name)
        assert judged(outliers) == []

    @pytest.mark.parametrize("times", [0.01, 1.0, 3.0])
    def test_a_little_later_does_not(self, times: float) -> None:
        assert judged(late_one(times)) == []

    def test_too_few_samples_or_others_or_too_old_ones_say_nothing(self) -> None:
        outliers = Outliers(RULES)
        starting(outliers, 50.0, "a")
        for name in ALL[1 : LEAST_INSTANCES - 1]:
            starting(outliers, 1.0, name)
        assert judged(outliers) == []
        few = Outliers(RULES)
        for name in "bcd":
            starting(few, 1.0, name)
        starting(few, 50.0, "a", samples=LEAST_SAMPLES - 1)
        assert judged(few) == []
        assert judged(late_one(), LASTS_S + 1.0) == []

    def test_what_is_late_by_less_than_a_moment_is_not(self) -> None:
        assert lateness(took_s=0.02, foretold_s=0.001) < lateness(took_s=2.0, foretold_s=1.0)
        assert lateness(took_s=-5.0, foretold_s=-1.0) == 0.0

    def test_the_others_spread_counts(self) -> None:
        assert bound([0.0, 0.0, 0.1, -0.1], 4.0) == pytest.approx(1.386, abs=1e-3)
        spread = bound([-2.0, -1.0, 0.0, 1.0, 2.0], 4.0)
        assert spread is not None
        assert spread > 5.0
        assert bound([0.0, 9.0], 4.0) is None

    def test_one_that_answers_nothing_is_late_too(self) -> None:
        outliers = Outliers(RULES)
        for name in ALL:
            starting(outliers, 1.0, name)
        waits = {"a": [lateness(took_s=20.0, foretold_s=1.0)] * WINDOW}
        assert outliers.judge(waits, now_s=0.0, instances=len(ALL)) == [], "nothing is known to compare it with yet"
        little = {"a": [lateness(took_s=5.0, foretold_s=1.0)] * WINDOW}
        assert outliers.judge(little, now_s=1.0, instances=len(ALL)) == [], "it may come any moment"
        assert outliers.judge(waits, now_s=1.0, instances=len(ALL)) == ["a"]

    def test_where_all_wait_none_is(self) -> None:
        outliers = Outliers(RULES)
        for name in ALL:
            starting(outliers, 1.0, name)
        judged(outliers)
        waits = {name: [lateness(took_s=20.0 + place, foretold_s=1.0)] * WINDOW for place, name in enumerate(ALL)}
        assert outliers.judge(waits, now_s=1.0, instances=len(ALL)) == []

    def test_only_its_trial_takes_it_back(self) -> None:
        outliers = late_one()
        judged(outliers)
        assert not outliers.answered("a", "from before")
        outliers.dispatched("a", "trial", now_s=10.0)
        assert not outliers.answered("a", "from before")
        assert outliers.started("a", "from before", 9.0, now_s=10.1) is False
        assert out(outliers, 10.2) == {"a"}
        assert outliers.started("a", "trial", 0.0, now_s=10.3) is False
        assert outliers.answered("a", "trial")
        assert out(outliers, 10.4) == set()
        assert judged(outliers, 11.0) == [], "what was before is forgotten"

    def test_a_trial_that_is_late_again_lasts_twice_as_long(self) -> None:
        outliers = late_one()
        judged(outliers)
        outliers.dispatched("a", "trial", now_s=10.0)
        assert outliers.started("a", "trial", lateness(took_s=20.0, foretold_s=1.0), now_s=30.0)
        assert not outliers.answered("a", "trial"), "it is no trial any more"
        assert out(outliers, 49.9) == {"a"}
        assert out(outliers, 50.0) == set()

    def test_at_most_the_share_the_latest_first(self) -> None:
        outliers = Outliers(OutlierRules(max_ejected_fraction=0.25))
        for name in "defgh":
            starting(outliers, 1.0, name)
        starting(outliers, 10.0, "a")
        starting(outliers, 90.0, "b")
        assert outliers.judge(now_s=0.0, instances=7) == ["b"]

    def test_a_factor_of_0_ejects_none_and_takes_those_back(self) -> None:
        outliers = late_one()
        judged(outliers)
        outliers.follow(OutlierRules(ttft_factor=0.0))
        assert out(outliers, 1.0) == set()
        starting(outliers, 90.0)
        assert judged(outliers) == []


def test_it_doubles_for_as_long_as_one_likes() -> None:
    outliers = Outliers(RULES)
    failing(outliers)
    for turn in range(3000):
        outliers.dispatched("a", now_s=turn)
        failing(outliers, times=1, now_s=turn)
    assert out(outliers, 3000 + LONGEST_EJECTION_S) == set()


EVENTS = st.lists(
    st.tuples(st.sampled_from(["failed", "answered", "dispatched"]), st.sampled_from(ALL), st.floats(0.0, 30.0)),
    max_size=60,
)


@given(EVENTS, st.floats(0.0, 1.0))
def test_whatever_happens_the_share_holds_and_time_heals(events: list[tuple[str, str, float]], fraction: float) -> None:
    outliers, now_s = Outliers(OutlierRules(1, 5.0, fraction)), 0.0
    for kind, name, passed_s in events:
        now_s += passed_s
        if kind == "failed":
            outliers.failed(name, now_s=now_s, instances=len(ALL))
        elif kind == "answered":
            outliers.answered(name)
        else:
            outliers.dispatched(name, now_s=now_s)
        assert len(out(outliers, now_s)) <= fraction * len(ALL)
    assert out(outliers, now_s + LONGEST_EJECTION_S + PROBE_S) == set()

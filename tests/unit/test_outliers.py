"""Instances that fail again and again: ejected, tried, taken back; and never too many at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrouter.routing.outliers import LONGEST_EJECTION_S, PROBE_S, OutlierRules, Outliers

RULES = OutlierRules(consecutive_failures=3, eject_s=10.0, max_ejected_fraction=0.5)
ALL = ("a", "b", "c", "d")


def failing(outliers: Outliers, name: str = "a", times: int = 3, *, now_s: float = 0.0) -> list[bool]:
    return [outliers.failed(name, now_s=now_s, instances=len(ALL)) for _ in range(times)]


def out(outliers: Outliers, now_s: float) -> set[str]:
    return set(outliers.left_out(ALL, now_s=now_s))


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

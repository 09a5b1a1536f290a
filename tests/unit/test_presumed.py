"""Requests whose answers nobody sees: counted for about as long as they last, and never for ever."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrouter.routing.presumed import (
    LARGEST_RATIO,
    LONGEST_LIFE_S,
    MOST_LIVES,
    SLACK_S,
    WINDOW,
    Engine,
    Expectation,
    LifeRatio,
    Surplus,
    expectation,
    over,
)


def foretold(at_s: float = 0.0, life_s: float = 10.0) -> Expectation:
    return expectation(dispatched_at_s=at_s, first_token_s=1.0, life_s=life_s, expected_tokens=100)


def named(*lives_s: float) -> list[tuple[str, Expectation]]:
    return [(str(place), foretold(life_s=life_s)) for place, life_s in enumerate(lives_s)]


def engine(*, held: int, counted: int, surplus: int = 0) -> Engine:
    return Engine(held=held, surplus=surplus, counted=counted)


class TestAnExpectation:
    def test_tokens_come_evenly_between_first_and_last(self) -> None:
        one = foretold()
        assert not one.has_begun(0.9)
        assert one.has_begun(1.0)
        assert [one.generated_tokens(at_s) for at_s in (0.5, 1.0, 3.3, 5.6, 9.9, 50.0)] == [0, 0, 25, 50, 75, 75]

    def test_a_clock_that_went_back_counts_as_no_time(self) -> None:
        assert foretold(at_s=100.0).overdue(0.0) == 0.0

    @given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
    def test_whatever_was_foretold_it_ends(self, first_s: float, life_s: float, tokens: float) -> None:
        one = expectation(dispatched_at_s=0.0, first_token_s=first_s, life_s=life_s, expected_tokens=tokens)
        assert one.is_lost(MOST_LIVES * LONGEST_LIFE_S + SLACK_S + 1)
        assert 0 <= one.generated_tokens(5.0) <= max(0.0, tokens)


class TestOver:
    def test_by_its_time_where_the_engine_says_nothing(self) -> None:
        assert over(named(5, 20, 6), now_s=10.0, engine=None) == ["0", "2"]

    def test_a_late_one_is_kept_while_the_engine_still_has_it(self) -> None:
        assert over(named(5, 20, 6), now_s=10.0, engine=engine(held=3, counted=3)) == []
        assert over(named(5, 20, 6), now_s=10.0, engine=engine(held=2, counted=3)) == ["0"], "the most overdue first"
        assert over(named(5, 20, 6), now_s=10.0, engine=engine(held=0, counted=3)) == ["0", "2"]

    def test_an_early_one_ends_where_the_engine_lacks_it(self) -> None:
        assert over(named(20, 15, 30), now_s=10.0, engine=engine(held=1, counted=3, surplus=2)) == ["1", "0"]
        assert over(named(20, 15, 30), now_s=10.0, engine=engine(held=1, counted=3)) == []

    def test_each_router_ends_its_own_part(self) -> None:
        assert len(over(named(*[20] * 10), now_s=10.0, engine=engine(held=10, counted=40, surplus=20))) == 5

    def test_in_the_end_whatever_the_engine_says(self) -> None:
        late_s = MOST_LIVES * 5 + SLACK_S + 1
        assert over(named(5), now_s=late_s, engine=engine(held=99, counted=1)) == ["0"]

    @given(
        st.lists(st.floats(0.05, 100.0), max_size=20),
        st.integers(0, 50),
        st.integers(-5, 50),
        st.integers(0, 50),
    )
    def test_each_at_most_once_and_never_an_unknown_one(
        self, lives_s: list[float], held: int, surplus: int, counted: int
    ) -> None:
        found = over(named(*lives_s), now_s=30.0, engine=engine(held=held, surplus=surplus, counted=counted))
        assert len(found) == len(set(found)) <= len(lives_s)


def test_an_engine_lacks_what_it_has_lacked_for_some_reports() -> None:
    surplus = Surplus()
    for counted in (9, 8, 7)[: WINDOW - 1]:
        surplus.note(counted=counted, in_engine=5)
        assert surplus.requests == 0
    surplus.note(counted=8, in_engine=5)
    assert surplus.requests == 3
    surplus.ended(2)
    assert surplus.requests == 1


def test_the_ratio_of_lives_is_their_mean_within_bounds() -> None:
    ratio = LifeRatio()
    assert ratio.value == 1.0
    for one in (2.0, 4.0):
        ratio.note(one)
    assert ratio.value == pytest.approx(3.0)
    for _ in range(2000):
        ratio.note(1e9)
    assert ratio.value == pytest.approx(LARGEST_RATIO, rel=1e-3)


@pytest.mark.parametrize(
    ("foretold_for", "life_s", "scrapes", "least", "most"),
    [
        (1.0, 3.0, False, -0.1, 0.15),
        (1.0, 3.0, True, -0.1, 0.15),
        (1.0, 20.0, True, -0.1, 0.15),
        (0.5, 20.0, False, -0.55, -0.45),
        (0.5, 20.0, True, -0.05, 0.05),
        (0.5, 3.0, True, -0.05, 0.05),
        (2.0, 20.0, False, 0.7, 1.2),
        (2.0, 20.0, True, 0.0, 0.15),
        (2.0, 3.0, True, 0.0, 0.8),
    ],
)
@pytest.mark.parametrize("rate", [2.0, 10.0])
def test_as_many_are_counted_as_there_are(
    *, rate: float, foretold_for: float, life_s: float, scrapes: bool, least: float, most: float
) -> None:
    """Little's law: the number in flight is right where lives are on the mean, and where the engine says how many."""
    errors, counts = counted(rate=rate, life_s=life_s, foretold_for=foretold_for, scrapes=scrapes)
    assert least < sum(errors) / sum(counts) < most


def counted(*, rate: float, life_s: float, foretold_for: float, scrapes: bool) -> tuple[list[int], list[int]]:
    """How many more are counted than there are, and how many there are, each half second; lives are exponential.

    All are foretold to last ``foretold_for`` times their mean. The engine is asked each second.
    """
    rng, real, presumed, surplus = random.Random(4), {}, {}, Surplus()
    held, errors, counts = None, [], []
    for step in range(600):
        now_s = step * 0.5
        for place in range(round(rate * 0.5)):
            name = f"{step}/{place}"
            real[name] = now_s + rng.expovariate(1.0 / life_s)
            presumed[name] = foretold(now_s, foretold_for * life_s)
        real = {name: end_s for name, end_s in real.items() if end_s > now_s}
        if scrapes and now_s % 1.0 == 0.0:
            held = len(real)
            surplus.note(counted=len(presumed), in_engine=held)
        says = None if held is None else engine(held=held, surplus=surplus.requests, counted=len(presumed))
        gone = set(over(list(presumed.items()), now_s=now_s, engine=says))
        surplus.ended(len(gone))
        presumed = {name: one for name, one in presumed.items() if name not in gone}
        if now_s > 100.0:
            counts.append(len(real))
            errors.append(len(presumed) - len(real))
    return errors, counts

"""A request's own seconds, compiled, against the formula as it stands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrouter.routing.own_time import own_times
from llmrouter.routing.rules import CACHED, PREDICTED, own_latency

AMOUNTS = st.floats(0.0, 1e6) | st.integers(0, 1_000_000)


@given(row=st.lists(AMOUNTS, min_size=CACHED + 1, max_size=CACHED + 1))
def test_times_are_those_of_the_formula(row: list[float]) -> None:
    first = [*row[:PREDICTED], 1.0, *row[PREDICTED + 1 :]]
    assert own_times(tuple(row)) == (own_latency(row), own_latency(first))


def test_a_row_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="features"):
        own_times((1.0,) * CACHED)

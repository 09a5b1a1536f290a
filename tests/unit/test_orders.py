"""Order keys: the form of each, their bounds, and what nobody said."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrouter.routing.fairness import charged, lifted, may_join
from llmrouter.routing.orders import (
    LEAST_SIZE,
    MOST_SIZE,
    ORDERS,
    Order,
    bounded_size,
    due_at_s,
    is_timeless,
    latest_start_s,
    order_key,
)

TIMES = st.floats(0, 1e6)
SIZES = st.floats(LEAST_SIZE, MOST_SIZE)
AGINGS = st.floats(0.1, 3600)


def test_the_orders_have_the_names_of_the_resource() -> None:
    assert list(ORDERS) == [
        *("FirstComeFirstServed", "ShortestPredicted", "PredictedRank", "HighestResponseRatio", "LeastSlack"),
        *("EarliestDeadline", "ModifiedDueDate"),
    ]


@pytest.mark.parametrize(
    ("order", "key"),
    [
        (Order.FIRST_COME_FIRST_SERVED, 100.0),
        (Order.SHORTEST_PREDICTED, math.log(4.0) + 10.0),
        (Order.PREDICTED_RANK, math.log(4.0) + 10.0),
        (Order.HIGHEST_RESPONSE_RATIO, -5.0),
        (Order.LEAST_SLACK, 126.0),
        (Order.EARLIEST_DEADLINE, 130.0),
        (Order.MODIFIED_DUE_DATE, 130.0),
    ],
)
def test_the_key_of_each_order(order: Order, key: float) -> None:
    """A request of 4 s that came at 100 and is due at 130, seen at 120 with τ = 10 s."""
    assert order_key(order, 120.0, 100.0, 4.0, 130.0, 10.0) == pytest.approx(key)


def test_a_late_request_of_the_modified_due_date_goes_by_its_aged_work() -> None:
    """At 136, ten seconds after the latest start at 126, its four seconds count 4/e."""
    assert order_key(Order.MODIFIED_DUE_DATE, 136.0, 100.0, 4.0, 130.0, 10.0) == pytest.approx(136 + 4 / math.e)
    assert order_key(Order.MODIFIED_DUE_DATE, 126.0, 100.0, 4.0, 130.0, 10.0) == pytest.approx(130.0)


@given(arrived_s=TIMES, size=SIZES, aging_s=AGINGS, later_s=TIMES, due_after_s=st.floats(0, 1e4))
def test_a_key_of_a_timeless_order_stands_once_made(
    *, arrived_s: float, size: float, aging_s: float, later_s: float, due_after_s: float
) -> None:
    for order in Order:
        keys = {
            order_key(order, now_s, arrived_s, size, arrived_s + due_after_s, aging_s)
            for now_s in (arrived_s, arrived_s + later_s)
        }
        assert len(keys) == 1 or not is_timeless(order)


@given(arrived_s=TIMES, size=SIZES, aging_s=AGINGS, deadline_s=st.floats(allow_nan=True, allow_infinity=True))
def test_every_key_is_a_number_whatever_a_client_says(
    arrived_s: float, size: float, aging_s: float, deadline_s: float
) -> None:
    due_s = due_at_s(deadline_s, arrived_s, size, aging_s)
    assert due_s >= arrived_s
    for order in Order:
        for waited_s in (0.0, 1.0, 600.0):
            assert math.isfinite(order_key(order, arrived_s + waited_s, arrived_s, size, due_s, aging_s))


@pytest.mark.parametrize(
    ("deadline_s", "due_s"), [(90.0, 100.0), (-1e12, 100.0), (150.0, 150.0), (math.inf, 114.0), (math.nan, 114.0)]
)
def test_a_deadline_in_the_past_is_due_on_arrival_and_a_missing_one_an_aging_time_after_the_work(
    deadline_s: float, due_s: float
) -> None:
    assert due_at_s(deadline_s, 100.0, 4.0, 10.0) == due_s


def test_who_cannot_be_in_time_gains_nothing_by_it() -> None:
    """A tight deadline on long work starts at its arrival, not before: it passes nobody whose start was due earlier."""
    assert latest_start_s(100.0, 60.0, 101.0) == 100.0


@pytest.mark.parametrize(
    ("size", "bounded"),
    [
        *((0.0, LEAST_SIZE), (-5.0, LEAST_SIZE), (-math.inf, LEAST_SIZE), (3.5, 3.5), (1e12, MOST_SIZE)),
        *((math.inf, MOST_SIZE), (math.nan, MOST_SIZE)),
    ],
)
def test_sizes_are_bounded_and_what_is_no_number_passes_nobody(size: float, bounded: float) -> None:
    assert bounded_size(size) == bounded


def test_a_tenant_is_charged_prompt_once_and_output_twice_over_its_weight() -> None:
    assert charged(10.0, 100, 50.0, 2.0) == 110.0
    assert lifted(3.0, 8.0) == 8.0
    assert lifted(9.0, 8.0) == 9.0


def test_a_tenant_that_sends_everything_leaves_places() -> None:
    """Alone it holds half of the places; a second one is let in, and then each a third."""
    held = {"a": 0, "b": 0}

    def fill(tenant: str) -> None:
        while may_join(held[tenant], sum(held.values()), 90):
            held[tenant] += 1

    fill("a")
    assert held["a"] == 45
    held["a"] = 0
    for _ in range(90):
        for tenant, count in held.items():
            held[tenant] = count + may_join(count, sum(held.values()), 90)
    assert held == {"a": 30, "b": 30}

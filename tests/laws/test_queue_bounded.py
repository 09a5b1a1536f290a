"""A hundred thousand held requests: what one event costs and one place takes does not grow with how many there are."""

from __future__ import annotations

import sys
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from llmrouter.domain import Request
from llmrouter.routing.batch import BatchRules
from llmrouter.routing.lines import HeldLine, QueueRules
from llmrouter.routing.orders import Order

if TYPE_CHECKING:
    from collections.abc import Callable

FEW, MANY = 1_000, 100_000
MOST_BYTES = 4_096
"""Of a place in the line, its request included."""


def request(number: int) -> Request:
    """Every second one of the batch class, in families of 50 with beginnings of 16 blocks; a tenant for every ten."""
    family = number // 50
    return Request(
        request_id=f"r{number}",
        model="m",
        prompt_tokens=100 + number % 900,
        predicted_output_tokens=1.0 + number % 400,
        arrived_at_s=number * 1e-3,
        tenant=f"t{number // 10}",
        priority=number % 4,
        deadline_at_s=number * 1e-3 + number % 60,
        batch=number % 2 == 0,
        prefix_hashes=tuple(range(family * 16, family * 16 + 16)) if number % 2 == 0 else (),
    )


def line_of(count: int, rules: QueueRules) -> HeldLine:
    line = HeldLine(rules)
    for number in range(count):
        line.add(request(number), 0.01 + number % 50)
    return line


def calls_in(events: Callable[[], None]) -> int:
    """Calls of functions, those of the interpreter included: what is done, whatever the machine."""
    count = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        events()
    finally:
        sys.setprofile(None)
    return count


def events_on(line: HeldLine, first: int) -> Callable[[], None]:
    """Fifty times: who goes first is told, served and leaves, one more comes, an earlier answer ends."""

    def happen() -> None:
        for number in range(first, first + 50):
            now_s = number * 1e-3
            best = line.best(now_s)
            assert best is not None
            line.claim(best, now_s)
            line.fills_gap(best, now_s)
            line.charge(best.request)
            line.remove(best)
            line.settle(best.request.tenant, best.request.predicted_output_tokens, 7.0)
            line.add(request(number), 1.0)

    return happen


@pytest.mark.parametrize(("order", "fair"), [(Order.SHORTEST_PREDICTED, False), (Order.MODIFIED_DUE_DATE, True)])
def test_an_event_costs_no_more_with_a_hundred_thousand_held(order: Order, *, fair: bool) -> None:
    """The first events may clear out what has become late; after them every event's work is bounded."""
    costs = []
    for count in (FEW, MANY):
        line = line_of(count, QueueRules(order, fair=fair, batch=BatchRules(patience_s=10.0, least_share=0.1)))
        events_on(line, count)()
        costs.append(calls_in(events_on(line, count + 50)))
    assert costs[1] < 2 * costs[0]


def test_a_place_takes_a_bounded_memory() -> None:
    requests = [request(number) for number in range(4_000)]
    line = HeldLine(QueueRules(Order.SHORTEST_PREDICTED, fair=True))
    tracemalloc.start()
    try:
        for one in requests:
            line.add(one, 1.0)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < MOST_BYTES * len(requests)


def test_a_line_that_has_emptied_keeps_nothing_of_who_was_there() -> None:
    """Families, tenants' turns and standings come and go: what is left is the counters that fairness remembers."""
    line = line_of(2_000, QueueRules(fair=True))
    while (best := line.best(1e6)) is not None:
        line.charge(best.request)
        line.remove(best)
    assert len(line) == line.batch_held == 0
    assert not line._levels
    assert line._batch.first() is None

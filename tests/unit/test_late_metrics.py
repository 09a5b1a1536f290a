"""Metrics that count late say what those of the library do, whoever looks and however many threads there are."""

from __future__ import annotations

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from llmrouter.late_metrics import MOST_KEPT, LateCounter, LateHistogram

BUCKETS = (0.1, 0.5, 1.0, 2.5)


def said(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]


@given(st.lists(st.one_of(st.sampled_from([*BUCKETS, 0.0, 3.0, math.inf]), st.floats(0.0, 4.0)), max_size=40))
def test_they_say_what_the_library_s_say(values: list[float]) -> None:
    mine, theirs = CollectorRegistry(), CollectorRegistry()
    histograms = [
        kind("h", "H.", ["of"], buckets=BUCKETS, registry=registry)
        for kind, registry in ((LateHistogram, mine), (Histogram, theirs))
    ]
    counters = [kind("c", "C.", registry=registry) for kind, registry in ((LateCounter, mine), (Counter, theirs))]
    for value in values:
        for histogram in histograms:
            histogram.labels("x").observe(value)
        for counter in counters:
            counter.inc(value)
            counter.inc()
    for mine_line, their_line in zip(said(mine), said(theirs), strict=True):
        (name, said_here), (other, said_there) = mine_line.rsplit(" ", 1), their_line.rsplit(" ", 1)
        assert name == other
        if name[0] != "#":
            assert float(said_here) == pytest.approx(float(said_there))


def test_what_is_no_number_is_in_no_bucket() -> None:
    registry = CollectorRegistry()
    LateHistogram("h", "H.", buckets=BUCKETS, registry=registry).observe(math.nan)
    assert registry.get_sample_value("h_count") == 0.0


def test_a_counter_only_goes_up() -> None:
    with pytest.raises(ValueError, match="only goes up"):
        LateCounter("c", "C.", registry=CollectorRegistry()).inc(-1)


def test_nothing_is_lost_between_threads() -> None:
    registry = CollectorRegistry()
    counter = LateCounter("c", "C.", registry=registry)

    def count() -> None:
        for _ in range(5 * MOST_KEPT):
            counter.inc()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        registry.get_sample_value("c_total")
    assert registry.get_sample_value("c_total") == 4 * 5 * MOST_KEPT
    assert len(counter._late) == 0

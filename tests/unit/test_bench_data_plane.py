"""What the data plane's benchmark makes of its measurements."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from bench.data_plane.cells import CELLS, FIXED, PEER
from bench.data_plane.gateway import alone, with_picker
from bench.data_plane.results import Store, figures, ratio, size_of, wrong
from bench.data_plane.soak import faults, growth
from bench.data_plane.tables import summary

if TYPE_CHECKING:
    from pathlib import Path

KIB = 1024


def row(candidate: str, repeat: int = 0, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - of any column
    return {
        "cell": "a",
        "candidate": candidate,
        "repeat": repeat,
        "per_s": 500.0,
        "errors": {},
        "latency_ms": {"p50": 2.0, "p95": 4.0, "p99": 8.0},
        "cpu_s": {"picker": 0.5, "envoy": 1.0},
        "rss_bytes": {"picker": 100 * KIB * KIB, "envoy": 1},
        "engines": {"requests": 1_000},
        "is_asked": True,
        "reserved_after": 0,
        **changes,
    }


def test_a_ratio_is_the_geometric_mean_of_pairs_with_an_interval_around_it() -> None:
    found = ratio([2.0, 8.0], [1.0, 4.0])
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))
    found = ratio([1.0, 4.0, 2.0], [1.0, 1.0, 1.0])
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.mean == pytest.approx(2.0)
    assert found.low < 2.0 < found.high
    assert found.low * found.high == pytest.approx(4.0)


def test_one_pair_has_no_interval_and_nothing_has_no_ratio() -> None:
    found = ratio([3.0], [2.0])
    assert found is not None
    assert found.mean == pytest.approx(1.5)
    assert found.low is None
    assert ratio([], []) is None
    assert ratio([1.0, -0.2], [1.0, 1.0]) is None


def test_added_latency_is_over_the_fixed_route_of_the_same_repeat() -> None:
    fixed = row("fixed", cpu_s={"envoy": 0.5}, latency_ms={"p50": 0.5, "p95": 1.0, "p99": 2.0})
    found = figures(row("ours"), fixed)
    assert (found["added_p50"], found["added_p99"]) == (1.5, 6.0)
    assert found["cpu_ms"] == pytest.approx(0.5)
    assert figures(fixed, fixed)["added_p99"] is None
    assert figures(fixed, fixed)["cpu_ms"] is None


def test_a_summary_pairs_repeats_and_leaves_out_those_that_one_side_lacks() -> None:
    rows = [row("fixed route", at, cpu_s={"envoy": 0.5}) for at in range(3)]
    rows += [row("llm-d", at, per_s=100.0 * (at + 1)) for at in range(3)]
    rows += [row("ours, Fast", at, per_s=200.0 * (at + 1)) for at in (1, 2)]
    records = {record["candidate"]: record for record in summary(CELLS[0], rows, PEER.name)}
    assert set(records) == {FIXED.name, PEER.name, "ours, Fast"}
    assert records["ours, Fast"]["repeats"] == 2
    assert records["ours, Fast"]["ratios"]["per_s"].mean == pytest.approx(2.0)
    assert records["llm-d"]["figures"]["per_s"] == 200.0


def test_what_must_not_be_is_named() -> None:
    assert wrong(row("ours")) == []
    bad = row("ours", errors={"plain 503": 2}, reserved_after=1, engines={"requests": 0})
    assert wrong(row("llm-d", is_asked=False, reserved_after=None)) == []
    assert wrong(row("ours", reserved_after=None)) == ["None reservations left"]
    assert wrong(bad) == ["2 × plain 503", "1 reservations left", "no engine was reached"]


def test_a_run_goes_on_where_it_was_but_not_with_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Store(path, {"seconds": 4}).add(row("ours", 1))
    assert Store(path, {"seconds": 4}).has("a", "ours", 1)
    assert not Store(path, {"seconds": 4}).has("a", "ours", 0)
    assert not Store(path, {"seconds": 8}).has("a", "ours", 1)


def test_a_size_separates_what_requests_bytes_and_chunks_cost() -> None:
    rows = [
        row("ours", cell="a", cpu_s={"picker": 0.3}),
        row("ours", cell="c", cpu_s={"picker": 4.2}),
        row("ours", cell="d", cpu_s={"picker": 0.2}, chunks=10_000),
    ]
    size = size_of("ours", rows, short_kib=1.0, long_kib=391.0)
    assert size is not None
    assert size.prompt_kib_ms == pytest.approx(0.01)
    assert size.request_ms == pytest.approx(0.29)
    assert size.chunk_ms == pytest.approx(0.02)
    assert size.cores(requests_s=1_000, prompt_kib=1.0, chunks_s=5_000) == pytest.approx(0.4 / 0.7)
    assert size_of("ours", rows[:2], short_kib=1.0, long_kib=391.0) is None


def test_memory_that_stays_is_flat_and_memory_that_leaks_is_not() -> None:
    start = [(at, 90 * KIB * KIB) for at in range(100)]  # of the first quarter: it is left out
    steady = [(at, 100 * KIB * KIB + (at % 7) * KIB) for at in range(100, 400)]
    assert growth(start + steady).flat
    leaking = growth(start + [(at, 100 * KIB * KIB + at * 20 * KIB) for at in range(100, 400)])
    assert not leaking.flat
    assert leaking.per_hour == pytest.approx(20 * 3600 / KIB, rel=1e-6)
    assert leaking.low <= leaking.per_hour <= leaking.high


def test_a_soak_accounts_for_every_end() -> None:
    good = {
        "outcomes": {"plain 200": 8, "cancel 200": 1, "half left": 1},
        "offered": 10,
        "reserved_after": 0,
        "reservations": {"committed": 9, "finished": 8, "cancelled": 1},
        "memory": {"picker": {"flat": True}},
    }
    assert faults(good) == []
    bad = good | {
        "outcomes": {"plain 200": 8, "plain cut off": 1},
        "reserved_after": 2,
        "reservations": {"committed": 9, "finished": 8},
        "memory": {"picker": {"flat": False}},
    }
    assert len(faults(bad)) == 5


def test_the_fixed_route_is_the_same_gateway_without_a_picker() -> None:
    fixed = alone(port=1, admin_port=2, endpoints=["127.0.0.1:3", "127.0.0.1:4"])
    asking = with_picker(port=1, pickers=["127.0.0.1:5", "127.0.0.1:6"], admin_port=2, tls=False)
    managers = [
        one["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        for one in (fixed, asking)
    ]
    assert [[f["name"] for f in manager["http_filters"]] for manager in managers] == [
        ["envoy.filters.http.router"],
        ["envoy.filters.http.ext_proc", "envoy.filters.http.router"],
    ]
    assert managers[0]["request_timeout"] == managers[1]["request_timeout"]
    (instances,) = fixed["static_resources"]["clusters"]
    assert len(instances["load_assignment"]["endpoints"][0]["lb_endpoints"]) == 2
    pickers = asking["static_resources"]["clusters"][0]
    assert len(pickers["load_assignment"]["endpoints"][0]["lb_endpoints"]) == 2
    assert math.isfinite(instances["circuit_breakers"]["thresholds"][0]["max_requests"])

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest

from llmrouter.errors import InvalidInputError
from llmrouter.testbed.trace import Trace, TraceRequest, azure_2023, load, parse, workload

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "arrival_s,application,prompt_tokens,output_tokens"


def lengths(trace: Trace) -> list[tuple[str, int, int]]:
    return [(request.application, request.prompt_tokens, request.output_tokens) for request in trace.requests]


def test_the_packaged_excerpt_is_what_its_readme_says() -> None:
    trace = azure_2023()
    assert len(trace.requests) == 10_497
    assert trace.duration_s == 1_020
    assert trace.rate_rps == pytest.approx(10.29, abs=0.01)
    assert {request.application for request in trace.requests} == {"code", "conversation"}
    assert all(request.arrived_at_s < trace.duration_s for request in trace.requests)
    for minute in range(17):
        assert {request.application for request in trace.window(minute * 60, 60).requests} == {"code", "conversation"}


def test_scaling_reaches_the_rate_and_keeps_order_and_lengths() -> None:
    trace = azure_2023()
    scaled = trace.scaled_to(20.0)
    assert scaled.rate_rps == pytest.approx(20.0)
    assert lengths(scaled) == lengths(trace)
    arrivals = [request.arrived_at_s for request in scaled.requests]
    assert arrivals == sorted(arrivals)
    assert trace.scaled_to(20.0) == scaled


def test_windows_partition_the_trace() -> None:
    trace = azure_2023()
    parts = [trace.window(start, 255.0) for start in (0.0, 255.0, 510.0, 765.0)]
    assert [row for part in parts for row in lengths(part)] == lengths(trace)
    assert all(0 <= request.arrived_at_s < 255 for part in parts for request in part.requests)


@pytest.mark.parametrize(("start_s", "duration_s"), [(-1, 10), (0, 0), (1_000, 21), (0, -5)])
def test_a_window_outside_the_trace_is_refused(start_s: float, duration_s: float) -> None:
    with pytest.raises(InvalidInputError, match="not inside"):
        azure_2023().window(start_s, duration_s)


@pytest.mark.parametrize("rate_rps", [0, -1, float("nan"), float("inf")])
def test_an_impossible_rate_is_refused(rate_rps: float) -> None:
    with pytest.raises(InvalidInputError, match="rate_rps"):
        azure_2023().scaled_to(rate_rps)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["arrival_s,application,prompt_tokens", "0,code,5"], "lacks the columns output_tokens"),
        ([HEADER], "no rows"),
        ([HEADER, "0,code,5,0"], "line 2 .*output_tokens"),
        ([HEADER, "0,code,5,1", "1,code,-1,7"], "line 3 .*prompt_tokens"),
        ([HEADER, "nan,code,5,1"], "arrival_s"),
        ([HEADER, "0,code,five,1"], "line 2"),
        ([HEADER, "0,code"], "line 2"),
    ],
)
def test_a_bad_trace_names_its_line(lines: list[str], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        parse(lines)


def test_a_file_is_sorted_by_arrival(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(f"{HEADER}\n2,code,5,1\n0.5,conversation,6,2\n".encode()))
    assert load(path) == Trace((TraceRequest(0.5, "conversation", 6, 2), TraceRequest(2.0, "code", 5, 1)), 2.0)


def test_a_trace_becomes_a_workload() -> None:
    """The true output lengths are there for engines; nothing is predicted."""
    load = workload(Trace((TraceRequest(0.5, "code", 30, 7), TraceRequest(0.75, "chat", 20, 9)), 1.0), "m")
    assert load.arrived_at_s.tolist() == [0.5, 0.75]
    assert [load.applications[one] for one in load.application] == ["code", "chat"]
    assert load.prompt_tokens.tolist() == [30, 20]
    assert load.output_tokens.tolist() == [7, 9]
    assert load.predicted_output_tokens.tolist() == [0.0, 0.0]
    assert load.models == ("m",)

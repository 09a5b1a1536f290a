from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrouter.arrivals import transform
from llmrouter.arrivals.cells import CELL_NAMES, cell
from llmrouter.arrivals.readers import read
from llmrouter.errors import InvalidInputError
from llmrouter.sim.workload import MAX_TOKENS, Workload

words = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\x85\u2028\u2029"), max_size=12).map(
    str.strip
)
Row = dict[str, Any]


def in_order(found: list[Row]) -> list[Row]:
    return sorted(found, key=lambda row: float(row["arrival_s"]))


rows = st.lists(
    st.fixed_dictionaries(
        {
            "arrival_s": st.floats(0, 1e9),
            "prompt_tokens": st.integers(1, MAX_TOKENS),
            "output_tokens": st.integers(1, MAX_TOKENS),
            "application": words,
            "tenant": words,
            "cancelled_after_s": st.one_of(st.none(), st.floats(0, 1e6)),
        }
    ),
    min_size=1,
    max_size=30,
).map(in_order)


@settings(deadline=None)
@given(rows)
def test_what_is_written_as_csv_and_as_json_is_read_alike(found: list[Row]) -> None:
    """One recording, two formats, one workload: no column is lost and none is moved."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]))
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in found)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x.csv").write_text(text.getvalue(), encoding="utf-8", newline="")
        lines = "".join(json.dumps(row) + "\n" for row in found)
        (Path(folder) / "x.jsonl").write_text(lines, encoding="utf-8", newline="")
        both = [read(Path(folder) / name)[0] for name in ("x.csv", "x.jsonl")]
    for workload in both:
        assert workload.arrived_at_s.tolist() == [row["arrival_s"] for row in found]
        assert workload.prompt_tokens.tolist() == [row["prompt_tokens"] for row in found]
        assert workload.output_tokens.tolist() == [row["output_tokens"] for row in found]
        assert [workload.applications[one] for one in workload.application] == [row["application"] for row in found]
        assert [workload.tenants[one] for one in workload.tenant] == [row["tenant"] for row in found]
        said = [np.inf if row["cancelled_after_s"] is None else row["cancelled_after_s"] for row in found]
        assert workload.cancelled_after_s.tolist() == said


@settings(deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["refuse", "skip"]))
def test_no_bytes_break_a_reader(data: bytes, on_bad: str) -> None:
    """Whatever a file holds, the answer is a workload or one line that names the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(b"arrival_s,prompt_tokens,output_tokens\n0,5,1\n" + data)
        try:
            workload, skipped = read(path, on_bad=on_bad)  # type: ignore[arg-type]
        except InvalidInputError as error:
            told = str(error)
        else:
            told = ""
            assert len(workload) >= 1
            assert skipped.total == 0 or on_bad == "skip"
    assert not told or (str(path) in told and "\n" not in told)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Requests and sessions: each later turn follows the last row of one of the sessions so far."""
    count = draw(st.integers(1, 25))
    after: list[int] = []
    at_s: list[float] = []
    last: list[int] = []
    for row in range(count):
        session = draw(st.integers(-1, len(last) - 1))
        if session < 0:
            after.append(-1)
            at_s.append(max(at_s, default=0.0) + draw(st.floats(0, 10)))
            last.append(row)
        else:
            after.append(last[session])
            at_s.append(at_s[last[session]])
            last[session] = row
    return Workload.of(at_s, list(range(1, count + 1)), [1] * count, after=after)


@settings(deadline=None)
@given(workloads(), st.lists(st.floats(0.1, 200), min_size=1, max_size=4))
def test_windows_part_a_workload(workload: Workload, lengths: list[float]) -> None:
    """Windows side by side hold every request once, sessions whole."""
    begin_s, found = 0.0, []
    for length in [*lengths, 1e9]:
        try:
            part = transform.window(workload, begin_s, length)
        except InvalidInputError:
            part = None
        if part is not None:
            found += part.prompt_tokens.tolist()
            assert part.arrived_at_s.max() < length
            turns = part.prompt_tokens[part.after[part.after >= 0]]
            assert (workload.prompt_tokens[workload.after[part.prompt_tokens[part.after >= 0] - 1]] == turns).all()
        begin_s += length
    assert sorted(found) == workload.prompt_tokens.tolist()


@settings(deadline=None)
@given(workloads(), workloads())
def test_merging_loses_nothing_and_keeps_order(first: Workload, second: Workload) -> None:
    """Requests and output tokens are conserved; first turns are in order; every turn follows its own."""
    both = transform.merged([first, second])
    assert len(both) == len(first) + len(second)
    assert sorted(both.prompt_tokens.tolist()) == sorted(
        [*first.prompt_tokens.tolist(), *second.prompt_tokens.tolist()]
    )
    assert (np.diff(both.arrived_at_s[transform.first_turns(both)]) >= 0).all()
    later = both.after >= 0
    assert later.sum() == (first.after >= 0).sum() + (second.after >= 0).sum()
    assert (both.arrived_at_s[later] == both.arrived_at_s[both.after[later]]).all()


CELLS = {name: cell(name) for name in CELL_NAMES}


@settings(deadline=None)
@given(
    name=st.sampled_from(CELL_NAMES),
    rates=st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)),
    seed=st.integers(0, 2**40),
)
def test_a_rate_changes_the_gaps_and_nothing_else(name: str, rates: tuple[float, float], seed: int) -> None:
    """Two loads of one seed are the same requests on clocks that differ by one factor."""
    one, other = (CELLS[name].workload(rate, 50, seed) for rate in rates)
    assert one.arrived_at_s * rates[0] == pytest.approx(other.arrived_at_s * rates[1])
    for column in ("prompt_tokens", "output_tokens", "application"):
        assert (getattr(one, column) == getattr(other, column)).all()

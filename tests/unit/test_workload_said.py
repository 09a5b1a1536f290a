"""Columns of a workload that may say nothing: priorities, deadlines and ranks, checked and kept by transformations."""

from __future__ import annotations

import numpy as np
import pytest

from llmrouter.arrivals.transform import merged, take
from llmrouter.errors import InvalidInputError
from llmrouter.sim.workload import Workload


def three(**columns: object) -> Workload:
    return Workload.of([0.0, 1.0, 2.0], [5, 5, 5], [5, 5, 5], **columns)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("priority", [0, 0, 101], "row 2: priority must be -100 to 100, not 101"),
        ("deadline_s", [1.0, np.nan, 1.0], "row 1: deadline_s must be a number"),
        ("predicted_rank", [1.0, 1.0, 0.0], "row 2: predicted_rank must be above 0 or NaN"),
        ("priority", [0, 0], "column priority has 2 rows, not 3"),
    ],
)
def test_what_is_out_of_bounds_is_named(column: str, values: list[float], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        three(**{column: values})


def test_a_part_keeps_what_was_said() -> None:
    part = take(three(priority=[1, 2, 3], deadline_s=[1.0, -2.0, np.inf]), np.array([0, 2]))
    assert part.priority is not None
    assert part.deadline_s is not None
    assert (part.priority.tolist(), part.deadline_s.tolist()) == ([1, 3], [1.0, np.inf])
    assert part.predicted_rank is None


def test_merged_workloads_say_nothing_where_one_of_them_did_not() -> None:
    both = merged([three(priority=[1, 2, 3]), three(deadline_s=[1.0, 1.0, 1.0])])
    assert both.priority is not None
    assert both.deadline_s is not None
    assert both.priority.tolist() == [1, 0, 2, 0, 3, 0]
    assert both.deadline_s.tolist() == [np.inf, 1.0] * 3
    assert merged([three(), three()]).priority is None

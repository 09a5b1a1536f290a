from __future__ import annotations

from dataclasses import replace

import pytest

from llmrouter.testbed.measure import (
    Outcome,
    change_percent,
    lengths_foretold,
    percentile,
    side_by_side,
    summarise,
)

OUTCOME = Outcome(
    stretch="first",
    request_id="a",
    arrived_at_s=10.0,
    sent_at_s=10.25,
    first_token_at_s=11.0,
    finished_at_s=13.0,
    prompt_tokens=100,
    output_tokens=5,
    retries=0,
    policy="RoundRobin",
    instance_id="e1",
    error="",
)


def test_latencies_count_from_the_arrival_that_the_trace_says() -> None:
    assert OUTCOME.ttft_s == 1.0
    assert OUTCOME.e2e_s == 3.0
    assert OUTCOME.tpot_s == 0.5
    assert OUTCOME.lateness_s == 0.25


def test_tpot_of_one_token_is_unknown() -> None:
    assert replace(OUTCOME, output_tokens=1).tpot_s is None


def test_rows_carry_outcomes_whole() -> None:
    assert Outcome.from_row(OUTCOME.as_row()) == OUTCOME


@pytest.mark.parametrize(("percent", "expected"), [(0, 1.0), (50, 2.5), (100, 4.0), (25, 1.75)])
def test_percentiles_interpolate(percent: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == expected


def test_nothing_has_no_percentile() -> None:
    assert percentile([], 50) is None


def test_a_summary_counts_failures_and_measures_the_rest() -> None:
    broken = replace(OUTCOME, error="e1 did not answer", finished_at_s=99.0, retries=1)
    summary = summarise([OUTCOME, broken])
    assert (summary.requests, summary.failed, summary.retries) == (2, 1, 1)
    assert summary.e2e_mean_s == summary.e2e_p99_s == 3.0
    assert summary.output_tokens == 5


def test_a_summary_of_nothing_is_unknown() -> None:
    summary = summarise([])
    assert summary.requests == 0
    assert summary.ttft_p50_s is None


def test_a_change_against_nothing_is_unknown() -> None:
    assert change_percent(0, 1.0) is None
    assert change_percent(None, 1.0) is None
    assert change_percent(2.0, 1.0) == -50.0


def test_the_table_shows_both_phases_and_the_change() -> None:
    before = summarise([OUTCOME]).as_mapping()
    after = summarise([replace(OUTCOME, finished_at_s=12.0)]).as_mapping()
    rows = {row[0]: row[1:] for row in side_by_side(before, after)}
    assert rows["E2E mean"] == ("3.000 s", "2.000 s", "-33.3 %")
    assert rows["TPOT p50"] == ("500.0 ms", "250.0 ms", "-50.0 %")
    assert rows["failed"] == ("0", "0", "")


def test_how_true_lengths_were_counts_those_that_were_foretold() -> None:
    foretold = replace(OUTCOME, predictor="text", predicted_tokens=[1, 2, 3, 7, 9, 11, 20])
    outcomes = [
        OUTCOME,
        foretold,
        replace(foretold, output_tokens=12, predictor="constant"),
        replace(foretold, output_tokens=2),
        replace(foretold, output_tokens=1, error="broke"),
    ]
    found = lengths_foretold(outcomes)
    assert (found.answers, found.error_p50_tokens) == (3, 5)
    assert found.within_80_fraction == pytest.approx(2 / 3)
    assert found.predictors == pytest.approx({"constant": 1 / 3, "text": 2 / 3})
    assert lengths_foretold([OUTCOME]).within_80_fraction is None

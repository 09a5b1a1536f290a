"""Parts that put a comparison together: the best baseline, searches for a rate, timelines, what a table shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llmrouter.errors import InvalidInputError
from llmrouter.profiles import H100_MIX
from llmrouter.sim.capacity import highest_rate
from llmrouter.sim.model import EngineModel
from llmrouter.sim.outcomes import Timeline
from llmrouter.sim.setup import Setup
from llmrouter.sim.workload import Workload
from llmrouter.study.capacity import servable
from llmrouter.study.contenders import BASE, DEFAULT
from llmrouter.study.perform import timeline_values
from llmrouter.study.result import PerSeed, best_baseline, changes, load_key
from llmrouter.study.simulate_table import spark
from llmrouter.study.table import NOTHING, show, show_change


def per_seed(e2e_mean_s: list[float | None], shed_rate: float = 0.0) -> PerSeed:
    return {"e2e_mean_s": e2e_mean_s, "shed_rate": [shed_rate] * len(e2e_mean_s)}


def test_the_best_baseline_has_the_least_mean_e2e() -> None:
    found = {BASE: per_seed([3.0, 3.0]), "LMetric": per_seed([1.0, 4.0]), DEFAULT: per_seed([0.1, 0.1])}
    assert best_baseline(found) == "LMetric"


def test_a_baseline_that_turns_requests_away_does_not_win_by_it() -> None:
    assert best_baseline({BASE: per_seed([3.0]), "KvGate": per_seed([1.0], shed_rate=0.1)}) == BASE
    both = {BASE: per_seed([3.0], shed_rate=0.1), "KvGate": per_seed([1.0], shed_rate=0.1)}
    assert best_baseline(both) == "KvGate"


def test_there_may_be_no_best() -> None:
    assert best_baseline({BASE: per_seed([None])}) is None


def test_changes_carry_their_prefix_and_interval() -> None:
    found = changes({"e2e_mean_s": [1.1, 2.2]}, {"e2e_mean_s": [1.0, 2.0]}, prefix="vs_best_")
    assert found["vs_best_e2e_mean_pct"] == pytest.approx(10.0)
    assert found["vs_best_e2e_mean_pct_ci95"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("limit", [0.3, 9.7, 10.0, 10.1, 77.0])
def test_the_highest_rate_is_found_from_below_and_above(limit: float) -> None:
    found = highest_rate(lambda rate: rate <= limit, 10.0, lowest_rps=0.1)
    assert found is not None
    assert found <= limit < found * 1.0101


def test_a_search_without_a_limit_ends() -> None:
    found = highest_rate(lambda _rate: True, 10.0, lowest_rps=0.1, highest_rps=640.0)
    assert found is not None
    assert found > 640.0


def test_where_no_rate_will_do_there_is_none() -> None:
    assert highest_rate(lambda _rate: False, 10.0, lowest_rps=0.1) is None


def test_what_no_engine_can_hold_is_left_out_with_what_follows_it() -> None:
    engine = EngineModel(replace(H100_MIX, kv_tokens=1_600))
    workload = Workload.of(
        [0.0, 1.0, 1.0, 1.0, 2.0],
        [100, 100, 5_000, 100, 100],
        [10, 10, 10, 10, 1_501],
        after=[-1, -1, 1, 2, -1],
    )
    left = servable(Setup(engines=(engine,)), workload)
    assert left.arrived_at_s.tolist() == [0.0, 1.0]
    assert servable(Setup(engines=(engine,)), left) is left
    with pytest.raises(InvalidInputError, match="1600 tokens"):
        servable(Setup(engines=(engine,)), Workload.of([0.0], [5_000], [1]))


def test_a_timeline_is_thinned_and_turned_to_instances() -> None:
    count = 1_000
    timeline = Timeline(
        at_s=np.arange(count, dtype=np.float64),
        running=np.arange(2 * count).reshape(count, 2),
        waiting=np.zeros((count, 2), np.int64),
        kv_usage_fraction=np.zeros((count, 2)),
        held=np.zeros(count, np.int64),
    )
    values = timeline_values(timeline)
    assert len(values["at_s"]) == 300
    assert (values["at_s"][0], values["at_s"][-1]) == (0.0, 999.0)
    assert [line[-1] for line in values["running"]] == [1998, 1999]
    assert len(timeline_values(timeline, points=5_000)["at_s"]) == count


def test_only_what_its_interval_supports_has_a_colour() -> None:
    assert show_change("e2e_mean_s", -5.0, 1.0) == "[green]−5.0 ±1.0[/]"
    assert show_change("e2e_mean_s", 5.0, 1.0) == "[red]+5.0 ±1.0[/]"
    assert show_change("e2e_mean_s", -5.0, 6.0) == "−5.0 ±6.0"
    assert show_change("goodput_rps", 5.0, 1.0) == "[green]+5.0 ±1.0[/]"
    assert show_change("e2e_mean_s", -5.0, None) == "−5.0"
    assert show_change("e2e_mean_s", None, None) == NOTHING


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("tpot_p95_s", 0.0257, "25.7 ms"),
        ("e2e_mean_s", 5.993, "5.99 s"),
        ("makespan_s", 12_345.6, "12,346 s"),
        ("slo_attainment", 0.9984, "99.8%"),
        ("preemptions", 1234.0, "1,234"),
        ("goodput_rps", 35.25, "35.2/s"),
        ("slowdown_mean", 2.714, "2.71"),
        ("e2e_mean_s", None, NOTHING),
    ],
)
def test_a_figure_has_its_unit(metric: str, value: float | None, text: str) -> None:
    assert show(metric, value) == text


def test_a_load_is_a_key_as_it_is_written() -> None:
    assert [load_key(load) for load in (0.8, 0.95, 1.1, 1.0)] == ["0.8", "0.95", "1.1", "1"]


def test_a_line_of_blocks_goes_from_nothing_to_the_highest() -> None:
    assert spark([0.0, 1.0], 1.0) == " █"
    assert len(spark([1.0] * 300, 2.0)) == 60
    assert spark([0.0, 0.0], 0.0) == "  "

"""Figures on outcomes made by hand, and the closed form of a request alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmrouter.profiles import PROFILES
from llmrouter.routing.rules import Rule
from llmrouter.sim.model import EngineModel, Schedule
from llmrouter.sim.outcomes import Outcomes, Status
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy, Setup
from llmrouter.sim.workload import Workload
from llmrouter.study.alone import alone_on_best_s, alone_s
from llmrouter.study.cells import slowed
from llmrouter.study.figures import METRICS, Slo, change_name, counts, figures, samples

NAN = float("nan")


def outcomes(count: int, **columns: Any) -> Outcomes:  # noqa: ANN401 - columns of several types
    """Requests that arrive a second apart, wait 0.1 s, start after 0.5 s and end after 2 s, 11 tokens each."""
    at_s = np.arange(count, dtype=np.float64)
    workload = Workload.of(at_s, np.full(count, 100), columns.pop("output_tokens", np.full(count, 11)))
    given: dict[str, Any] = {
        "status": np.full(count, Status.FINISHED),
        "instance": np.zeros(count, np.int64),
        "arrived_at_s": at_s,
        "dispatched_at_s": at_s + 0.1,
        "first_token_at_s": at_s + 0.5,
        "finished_at_s": at_s + 2.0,
        "preemptions": np.zeros(count, np.int64),
        "recomputed_tokens": np.zeros(count, np.int64),
        "cached_tokens": np.zeros(count, np.int64),
        "engine_busy_s": np.zeros(2),
        **{name: np.asarray(values) for name, values in columns.items()},
    }
    return Outcomes(workload=workload, decode_instance=given["instance"], **given)


def figures_of(run: Outcomes, warm_up_fraction: float = 0.0, slo: Slo | None = None) -> dict[str, float | None]:
    return figures(
        run, lone_s=np.ones(len(run.workload)), warm_up_fraction=warm_up_fraction, slo=slo or Slo(tpot_s=0.2)
    )


def test_the_figures_of_a_run_that_one_can_reckon_by_hand() -> None:
    found = figures_of(outcomes(10))
    assert list(found) == list(METRICS)
    expected = {
        "e2e_mean_s": 2.0,
        "e2e_p50_s": 2.0,
        "e2e_p99_s": 2.0,
        "ttft_mean_s": 0.5,
        "tpot_mean_s": 0.15,
        "slowdown_mean": 2.0,
        "makespan_s": 11.0,
        "preemptions": 0.0,
        "router_wait_mean_s": 0.1,
        "largest_share": 1.0,
        "slo_attainment": 1.0,
        "goodput_rps": 10 / 9,
        "shed_rate": 0.0,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name


def test_the_first_by_arrival_are_left_out_but_for_the_makespan() -> None:
    run = outcomes(10, finished_at_s=np.arange(10) + np.where(np.arange(10) < 2, 100.0, 2.0))
    assert figures_of(run, 0.2)["e2e_mean_s"] == pytest.approx(2.0)
    assert figures_of(run, 0.0)["e2e_mean_s"] == pytest.approx(21.6)
    assert figures_of(run, 0.2)["makespan_s"] == pytest.approx(101.0)


def test_warm_up_goes_by_arrival_not_by_row() -> None:
    at_s = np.array([9.0, 0.0, 1.0, 2.0, 3.0])
    run = outcomes(5, arrived_at_s=at_s, dispatched_at_s=at_s, first_token_at_s=at_s + 1, finished_at_s=at_s + 2)
    late = replace(run, finished_at_s=at_s + np.array([2.0, 50.0, 2.0, 2.0, 2.0]))
    assert figures_of(late, 0.2)["e2e_mean_s"] == pytest.approx(2.0)


def test_what_was_shed_or_refused_misses_its_slo_and_has_no_latency() -> None:
    status = [Status.FINISHED] * 6 + [Status.SHED, Status.SHED, Status.REFUSED, Status.CANCELLED]
    gone = np.array([False] * 6 + [True] * 4)
    times = {
        name: np.where(gone, NAN, np.arange(10) + after)
        for name, after in (("dispatched_at_s", 0.1), ("first_token_at_s", 0.5), ("finished_at_s", 2.0))
    }
    run = outcomes(10, status=status, instance=np.where(gone, -1, 0), **times)
    found = figures_of(run)
    assert found["shed_rate"] == pytest.approx(3 / 9)
    assert found["slo_attainment"] == pytest.approx(6 / 9)
    assert found["e2e_mean_s"] == pytest.approx(2.0)
    assert counts(run) == {"unfinished": 0, "finished": 6, "shed": 2, "refused": 1, "cancelled": 1, "lost": 0}


def test_a_run_that_answered_nothing_knows_no_latency() -> None:
    nothing = np.full(4, NAN)
    run = outcomes(
        4,
        status=np.full(4, Status.SHED),
        instance=np.full(4, -1),
        dispatched_at_s=nothing,
        first_token_at_s=nothing,
        finished_at_s=nothing,
    )
    found = figures_of(run)
    assert found["e2e_mean_s"] is None
    assert found["makespan_s"] is None
    assert found["largest_share"] is None
    assert found["shed_rate"] == 1.0
    assert found["slo_attainment"] == 0.0
    assert samples(run, 0.0) == {"e2e_s": None, "ttft_s": None, "tpot_s": None}


def test_the_slo_needs_both_its_sides_and_one_token_has_no_tpot() -> None:
    run = outcomes(4, output_tokens=[11, 11, 11, 1], first_token_at_s=np.arange(4) + np.array([0.5, 1.5, 0.5, 0.5]))
    run = replace(run, finished_at_s=np.arange(4) + np.array([2.0, 2.0, 4.0, 0.5]))
    assert figures_of(run)["slo_attainment"] == pytest.approx(2 / 4)
    assert figures_of(run)["tpot_mean_s"] == pytest.approx((0.15 + 0.05 + 0.35) / 3)


def test_the_largest_share_is_of_tokens_not_of_requests() -> None:
    run = outcomes(4, output_tokens=[900, 100, 100, 100], instance=[0, 1, 1, 1])
    assert figures_of(run)["largest_share"] == pytest.approx(1000 / 1600)


def test_quantiles_go_from_the_least_to_the_most() -> None:
    run = outcomes(101, finished_at_s=np.arange(101) + np.linspace(1.0, 2.0, 101))
    e2e_s = samples(run, 0.0)["e2e_s"]
    assert e2e_s is not None
    assert e2e_s == pytest.approx(np.linspace(1.0, 2.0, 101).tolist())


def test_a_change_is_named_after_its_metric() -> None:
    assert change_name("e2e_mean_s") == "e2e_mean_pct"
    assert change_name("preemptions") == "preemptions_pct"
    assert change_name("slowdown_mean") == "slowdown_mean_pct"


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize(("prompt", "output"), [(1, 1), (17, 2), (2_048, 16), (5_001, 7)])
def test_a_request_alone_takes_its_closed_form(schedule: Schedule, prompt: int, output: int) -> None:
    engine = EngineModel(
        PROFILES["llama-3.1-8b-rtx-pro-6000"],
        schedule=schedule,
        front_s=0.01,
        front_s_per_token=1e-6,
        prefill_sequence_s=1e-3,
        decode_steps_between_prefills=3,
    )
    workload = Workload.of([0.0], [prompt], [output])
    run = simulate(Setup(engines=(engine,)), workload, CompiledPolicy(rule=Rule.ROUND_ROBIN))
    assert alone_s(engine, workload)[0] == pytest.approx(run.e2e_s[0], rel=1e-9)


def test_of_unequal_engines_the_faster_one_is_the_measure() -> None:
    fast = EngineModel(PROFILES["h100-mix"])
    slow = EngineModel(slowed(PROFILES["h100-mix"], 2.0))
    workload = Workload.of([0.0, 1.0], [100, 5_000], [50, 3])
    assert alone_on_best_s([slow, fast], workload) == pytest.approx(alone_s(fast, workload))
    assert alone_s(slow, workload) == pytest.approx(2 * alone_s(fast, workload))

from __future__ import annotations

import numpy as np
import pytest

from llmrouter.sim.workload import Workload
from llmrouter.study.resample import at_rate, depends_on_order, resampled


def trace(count: int = 3_000) -> Workload:
    """Bursts: every minute all requests come in its first ten seconds; prompts number the rows."""
    minute, place = np.divmod(np.arange(count), 100)
    return Workload.of(
        minute * 60.0 + place * 0.1,
        np.arange(1, count + 1),
        np.full(count, 5),
        application=np.arange(count) % 2,
        applications=("a", "b"),
    )


def test_the_rate_and_the_number_are_as_asked_for() -> None:
    run = resampled(trace(), 7.0, 1_234, seed=3)
    assert len(run) == 1_234
    assert run.rate_rps == pytest.approx(7.0)
    assert run.arrived_at_s[0] == 0.0
    assert (np.diff(run.arrived_at_s) >= 0).all()


def test_equal_seeds_give_equal_bytes_and_others_other_runs() -> None:
    first, again, other = (resampled(trace(), 7.0, 500, seed) for seed in (1, 1, 2))
    assert first.arrived_at_s.tobytes() == again.arrived_at_s.tobytes()
    assert first.prompt_tokens.tobytes() == again.prompt_tokens.tobytes()
    assert first.prompt_tokens.tobytes() != other.prompt_tokens.tobytes()


def test_rows_keep_their_columns_together() -> None:
    run = resampled(trace(), 7.0, 2_000, seed=5)
    assert (run.application == (run.prompt_tokens - 1) % 2).all()
    assert run.applications == ("a", "b")


def test_bursts_stay_bursts() -> None:
    recorded, run = trace(), resampled(trace(), 1.0, 3_000, seed=1)
    recorded_cv = np.diff(recorded.arrived_at_s).std() / np.diff(recorded.arrived_at_s).mean()
    cv = np.diff(run.arrived_at_s).std() / np.diff(run.arrived_at_s).mean()
    assert cv == pytest.approx(recorded_cv, rel=0.25)


def test_a_run_may_be_longer_than_the_trace() -> None:
    assert len(resampled(trace(150), 2.0, 1_000, seed=1)) == 1_000
    assert len(resampled(Workload.of([3.0], [1], [1]), 2.0, 4, seed=1)) == 4


def sessions() -> Workload:
    """Twenty sessions of three turns, their rows one after the other."""
    count = 60
    first = np.arange(count) % 3 == 0
    return Workload.of(
        np.where(first, np.arange(count) * 1.0, 0.0),
        np.arange(1, count + 1),
        np.full(count, 5),
        after=np.where(first, -1, np.arange(count) - 1),
        think_s=np.where(first, 0.0, 2.0),
    )


def test_sessions_stay_whole_and_in_order() -> None:
    assert depends_on_order(sessions())
    for seed in range(20):
        run = resampled(sessions(), 2.0, 10, seed)
        assert 10 <= len(run) <= 12
        assert (run.after >= 0).sum() == len(run) * 2 // 3
        assert (np.diff(run.prompt_tokens) == 1).all()
        assert ((run.prompt_tokens - 1) % 3 == 0).tolist() == (run.after < 0).tolist()


def test_all_of_a_trace_that_is_too_short_to_cut() -> None:
    run = resampled(sessions(), 2.0, 1_000, seed=1)
    assert run.prompt_tokens.tolist() == sessions().prompt_tokens.tolist()


def test_sessions_without_a_common_clock_start_one_after_the_other() -> None:
    rng = np.random.default_rng(1)
    timeless = Workload.of([0.0] * 4, [1] * 4, [1] * 4, after=[-1, 0, -1, 2])
    run = at_rate(timeless, 2.0, rng)
    starts = run.arrived_at_s[run.after < 0]
    assert len(np.unique(starts)) == 2


def test_shared_prefixes_keep_the_window_in_order() -> None:
    count = 40
    shared = Workload.of(
        np.arange(count, dtype=np.float64),
        np.full(count, 16),
        np.arange(1, count + 1),
        prefix_start=np.arange(count + 1),
        prefix_blocks=np.arange(count) // 2,
        prefix_block_tokens=16,
    )
    run = resampled(shared, 2.0, 10, seed=4)
    assert (np.diff(run.output_tokens) == 1).all()
    assert run.prefix_blocks.tolist() == ((run.output_tokens - 1) // 2).tolist()

"""``llmrouter bench`` and ``llmrouter simulate`` end to end, on few and short runs."""

from __future__ import annotations

import datetime as dt
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from llmrouter import cli
from llmrouter.study import bench_command, simulate_command
from llmrouter.study.bench_command import as_text, open_final
from llmrouter.study.bench_options import parse
from llmrouter.study.contenders import BASE, DEFAULT
from llmrouter.study.figures import METRICS, change_name
from llmrouter.study.perform import perform
from llmrouter.study.plan import capacity_task, points_of, run_task
from llmrouter.study.pool import do_tasks
from llmrouter.study.statistics import paired_change
from llmrouter.study.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from llmrouter.study.task import Task

LOADS = (0.8, 1.1)
POLICIES = (BASE, "LeastInFlight", "LMetric", DEFAULT, f"{DEFAULT}-oracle")


def words(out: Path) -> list[str]:
    named = ",".join(POLICIES)
    size = ["--seeds", "2", "--requests", "300", "--jobs", "1", "--slo-capacity"]
    return ["--cells", "paper-v100", "--loads", "0.8,1.1", "--policies", named, *size, "--out", str(out)]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished comparison."""
    out = tmp_path_factory.mktemp("bench")
    assert bench_command.main(words(out)) == 0
    return out


@pytest.fixture(scope="module")
def result(done: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done / "bench.json").read_text())
    return found


def test_there_is_a_row_for_every_load_and_policy_with_every_figure(result: dict[str, Any]) -> None:
    assert [(row["load"], row["policy"]) for row in result["rows"]] == [(x, p) for x in LOADS for p in POLICIES]
    for row in result["rows"]:
        assert row["seeds"] == 2
        for metric in (*METRICS, "slo_capacity_rps"):
            assert {metric, change_name(metric), f"{change_name(metric)}_ci95"} <= set(row), metric
        assert row["rate_rps"] == pytest.approx(row["load"] * result["cells"]["paper-v100"]["capacity_rps"])


def test_changes_are_those_of_the_seeds_side_by_side(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        at = result["samples"]["paper-v100"][f"{row['load']:g}"]
        base, own = at[BASE]["per_seed"]["e2e_mean_s"], at[row["policy"]]["per_seed"]["e2e_mean_s"]
        change = paired_change(own, base)
        assert row["e2e_mean_pct"] == change.percent
        assert row["e2e_mean_pct_ci95"] == change.half_width
        assert row["e2e_mean_s"] == pytest.approx(sum(own) / 2)
        assert len(at[row["policy"]]["e2e_s"]) == 101


def test_the_base_differs_from_itself_by_nothing(result: dict[str, Any]) -> None:
    base = result["rows"][0]
    assert (base["policy"], base["e2e_mean_pct"], base["e2e_mean_pct_ci95"]) == (BASE, 0.0, 0.0)


def test_the_best_baseline_is_no_bound_and_none_of_ours(result: dict[str, Any]) -> None:
    for entry in result["best"]:
        rows = {row["policy"]: row for row in result["rows"] if row["load"] == entry["load"]}
        baselines = [name for name in rows if result["policies"][name]["kind"] == "baseline"]
        assert entry["policy"] == min(baselines, key=lambda name: rows[name]["e2e_mean_s"])
        at = result["samples"]["paper-v100"][f"{entry['load']:g}"]
        against = [at[name]["per_seed"]["e2e_mean_s"] for name in (DEFAULT, entry["policy"])]
        assert entry["vs_best_e2e_mean_pct"] == paired_change(*against).percent


def test_timelines_are_of_the_highest_load_up_to_capacity(result: dict[str, Any]) -> None:
    shown = result["timelines"]["paper-v100"]
    assert shown["load"] == 0.8
    assert set(shown["policies"]) == {BASE, DEFAULT}
    for timeline in shown["policies"].values():
        assert 100 < len(timeline["at_s"]) <= 300
        assert np.array(timeline["running"]).shape == (4, len(timeline["at_s"]))
        assert max(max(line) for line in timeline["kv_usage_fraction"]) <= 1.0


def test_the_published_capacity_is_about_reproduced(result: dict[str, Any]) -> None:
    about = result["cells"]["paper-v100"]
    assert about["capacity_rps"] == pytest.approx(about["published_capacity_rps"], rel=0.05)


def test_the_file_is_plain_json_without_numbers_that_are_none(done: Path) -> None:
    def refuse(word: str) -> float:
        raise AssertionError(word)

    json.loads((done / "bench.json").read_text(), parse_constant=refuse)


def test_its_text_says_what_the_values_are(result: dict[str, Any]) -> None:
    assert json.loads(as_text(result)) == result


def test_a_stopped_comparison_goes_on_to_the_same_bytes(done: Path) -> None:
    whole = (done / "bench.json").read_bytes()
    results = done / "results.jsonl"
    lines = results.read_bytes().splitlines(keepends=True)
    results.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:40])
    (done / "bench.json").unlink()
    assert bench_command.main(words(done)) == 0
    assert (done / "bench.json").read_bytes() == whole
    assert sorted(results.read_bytes().splitlines()) == sorted(line.strip() for line in lines)


def test_what_is_there_is_not_run_again(done: Path) -> None:
    before = (done / "results.jsonl").read_bytes()
    assert bench_command.main(words(done)) == 0
    assert (done / "results.jsonl").read_bytes() == before


def test_several_processes_come_to_what_one_does(done: Path, tmp_path: Path) -> None:
    options = parse(words(done))
    plan = options.plan
    with Store(done, fresh=False) as store:
        full_rps = store.get(capacity_task(plan.cells[0]).key)["capacity_rps"]
    point = points_of(plan, {"paper-v100": full_rps})[0]
    tasks = [run_task(plan, point, policy, 1_000) for policy in plan.policies]
    told: list[Task] = []
    with Store(tmp_path, fresh=False) as store:
        do_tasks(tasks, store, jobs=2, on_done=told.append)
        assert [store.get(task.key) for task in tasks] == [json.loads(json.dumps(perform(task))) for task in tasks]
    assert {task.policy for task in told} == set(POLICIES)


def test_json_is_printed_when_asked_for(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_command.main([*words(done), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]


def test_a_table_names_every_policy(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_command.main(words(done)) == 0
    shown = capsys.readouterr().out
    assert all(policy in shown for policy in POLICIES)
    assert "best baseline" in shown


def test_a_wrong_line_has_status_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--cells", "moon"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["simulate", "--cell", "h100-mix", "--policy", "moon"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_final_seeds_stay_closed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--first-seed", "9000", "--out", str(tmp_path)]) == 2
    assert "--final" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_opening_says_who_was_tried_on_what(tmp_path: Path) -> None:
    options = parse(["--final", "--seeds", "3", "--cells", "azure", "--policies", "LMetric", "--loads", "0.8"])
    ledger = tmp_path / "openings.jsonl"
    now = dt.datetime(2030, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    assert [open_final(options.plan, "the command", ledger=ledger, now=now) for _ in range(2)] == [1, 2]
    assert json.loads(ledger.read_text().splitlines()[0]) == {
        "opened_at": "2030-01-02T03:04:05+00:00",
        "command": "the command",
        "cells": ["azure"],
        "loads": [0.8],
        "policies": [BASE, "LMetric"],
        "first_seed": 9_000,
        "seeds": 3,
    }


def test_simulate_says_everything_of_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    at_s, prompts = np.cumsum(rng.exponential(0.05, 400)), rng.integers(10, 4_000, 400)
    trace = tmp_path / "mine.csv"
    rows = [f"{at:.3f},a,{prompt},{prompt % 300 + 1}" for at, prompt in zip(at_s, prompts, strict=True)]
    trace.write_text("\n".join(["arrival_s,application,prompt_tokens,output_tokens", *rows]) + "\n")
    asked = ["--trace", str(trace), "--policy", "RoundRobin,LMetric", "--policy", f"{DEFAULT}-as-served", "--timeline"]
    assert simulate_command.main([*asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [run["policy"] for run in said["runs"]] == ["RoundRobin", "LMetric", f"{DEFAULT}-as-served"]
    for run in said["runs"]:
        assert set(run["figures"]) == set(METRICS)
        assert run["counts"]["finished"] == 400
        assert len(run["timeline"]["running"]) == 4
    assert simulate_command.main(asked) == 0
    shown = capsys.readouterr().out
    assert "E2E mean" in shown
    assert "finished" in shown


def test_the_served_policy_and_its_rule_simulate_alike(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--poisson", "25", "--requests", "600", "--policy", f"{DEFAULT},{DEFAULT}-as-served", "--json"]
    assert simulate_command.main(asked) == 0
    rule, served = json.loads(capsys.readouterr().out)["runs"]
    assert served["figures"]["e2e_mean_s"] == pytest.approx(rule["figures"]["e2e_mean_s"], rel=0.02)


def test_what_is_shed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    crowd = ["--poisson", "60", "--requests", "1500", "--instances", "1", "--max-wait-s", "1", "--policy", "KvGate"]
    assert simulate_command.main([*crowd, "--prompt-tokens", "4000"]) == 0
    assert "shed" in capsys.readouterr().out


def test_a_load_is_a_fraction_of_what_round_robin_sustains(capsys: pytest.CaptureFixture[str]) -> None:
    light = ["--cell", "paper-v100", "--requests", "300", "--load", "0.5", "--policy", "RoundRobin", "--json"]
    assert simulate_command.main(light) == 0
    said = json.loads(capsys.readouterr().out)
    assert math.isclose(said["rate_rps"], 0.5 * said["capacity_rps"])
    assert said["capacity_rps"] == pytest.approx(13.5, rel=0.05)

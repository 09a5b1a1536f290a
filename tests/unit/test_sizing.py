"""``llmrouter plan``: what it answers, and what it refuses."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
import pytest

from llmrouter import cli
from llmrouter.sim.workload import Workload
from llmrouter.study.sizing.traffic import asked_of

if TYPE_CHECKING:
    from pathlib import Path

TRACE = str(resources.files("llmrouter") / "testbed" / "data" / "azure_llm_2023_excerpt.csv.gz")
CONFIG = """
apiVersion: llmrouter.dev/v1alpha1
kind: LLMRouter
metadata: {name: fleet}
spec:
  models: [{name: small}]
  policyRef: {name: plain}
  router: {replicas: 1}
  pools:
    - {name: fast, selector: {matchLabels: {app: a}}, profile: {name: llama-3-8b-h100}, gpusPerReplica: 2,
       minReplicas: 1, maxReplicas: 3, scaleTargetRef: {kind: Deployment, name: a}}
    - {name: slow, selector: {matchLabels: {app: b}}, profile: {name: llama-3-8b-a100}, gpusPerReplica: 1,
       minReplicas: 0, maxReplicas: 4, scaleTargetRef: {kind: Deployment, name: b}}
  rebalance: {mode: Recommend, gpuBudget: 8, slo: {ttftSeconds: 2, tpotSeconds: 0.05}}
---
apiVersion: llmrouter.dev/v1alpha1
kind: RoutingPolicy
metadata: {name: plain}
spec: {type: LeastInFlight}
"""


def planned(capsys: pytest.CaptureFixture[str], *rest: str) -> dict[str, object]:
    assert cli.main(["plan", "--trace", TRACE, *rest, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_the_best_layout_is_the_one_with_the_fewest_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    result = planned(capsys, "--gpus", "8", "--rate", "60")
    best, curves = result["best"], result["curves"]
    assert isinstance(best, dict)
    assert isinstance(curves, dict)
    assert result["meets"] is True
    assert sorted(curves) == ["mixed", "prefill + decode"]
    for curve in curves.values():
        shares = [one["attainment"] for one in curve]
        assert shares == sorted(shares)
        assert [one["gpus"] for one in curve][-1] >= best["gpus"]
    assert best["carries_rps"] >= 60.0
    assert result["simulated"] == []


def test_a_files_pools_stay_within_its_bounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "llmrouter.yaml").write_text(CONFIG)
    result = planned(capsys, "--config", str(tmp_path / "llmrouter.yaml"), "--rate", "400")
    best = result["best"]
    assert isinstance(best, dict)
    assert result["meets"] is False
    assert result["slo"] == {"ttft_s": 2.0, "tpot_s": 0.05, "attainment": 0.9}
    assert 1 <= best["replicas"]["fast"] <= 3
    assert best["gpus"] <= 8


def test_the_answer_is_shown_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawing = tmp_path / "plan.svg"
    assert cli.main(["plan", "--trace", TRACE, "--gpus", "4", "--rate", "60", "--plot", str(drawing)]) == 0
    shown = capsys.readouterr().out
    assert "within the SLO expected" in shown
    assert "prefill + decode, by GPUs" in shown
    assert drawing.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (["--gpus", "0"], "--gpus must be 1 to 1024"),
        ([], "--gpus is needed"),
        (["--gpus", "4", "--slo", "ttft=1"], "tpot is missing"),
        (["--gpus", "4", "--slo", "ttft=1,tpot=x"], "tpot must be a number"),
        (["--gpus", "4", "--slo", "ttft=1,tpot=nan"], "numbers must be finite"),
        (["--gpus", "4", "--slo", "ttft=1,tpot=1,attainment=1"], "attainment between 0 and 1"),
        (["--gpus", "4", "--slo", "e2e=1"], "is none of ttft, tpot, attainment"),
        (["--gpus", "4", "--profile", "none"], "no profile 'none'"),
        (["--gpus", "4", "--profile", "h100-mix:5"], "must be a number from 1 to 4"),
        (["--gpus", "4", "--rate", "-1"], "--rate must be above 0"),
        (["--gpus", "4", "--cached", "1"], "--cached must be"),
        (["--config", "x.yaml", "--layout", "mixed"], "--layout is of --profile"),
        (["--gpus", "4", "--cached", "0.5", "--check"], "leave out --cached"),
        (["--gpus", "4", "--plot", "/nowhere/x.svg"], "there is no folder"),
        (["--gpus", "1", "--slo", "ttft=0.001,tpot=0.001"], "no split of 1 GPUs serves any request in time"),
    ],
)
def test_bad_input_ends_in_one_line(rest: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--trace", TRACE, *rest]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.strip().splitlines()) == 1


def test_the_busiest_minutes_are_planned_for() -> None:
    """Two requests a second for an hour, ten a second in its middle."""
    calm, busy = np.arange(0.0, 3_600.0, 0.5), np.arange(1_500.0, 1_800.0, 0.1)
    at_N = np.sort(np.concatenate((calm, busy)))
    requests = Workload.of(at_N, np.full(len(at_N), 500), np.full(len(at_N), 50))
    asked = asked_of(requests, rate_rps=None, cached_fraction=0.5, longest_tokens=10_000)
    assert asked.rate_rps == pytest.approx(12.0, rel=0.02)
    assert asked.demands[0].mean_prefill_tokens == 250.0
    assert asked_of(requests, rate_rps=3.0, cached_fraction=0.0, longest_tokens=10_000).rate_rps == pytest.approx(3.0)

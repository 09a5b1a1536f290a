"""The plan's queueing model is the simulator's answer, up to the rate that a split is said to carry."""

from __future__ import annotations

import json
from importlib import resources

import numpy as np
import pytest
from support.plan_cases import H100, SLO, demand, lengths, staged

from llmrouter import cli
from llmrouter.planning.inputs import PoolOption
from llmrouter.planning.outlook import outlook
from llmrouter.sim.workload import Workload
from llmrouter.study.sizing.check import simulated

TRACE = str(resources.files("llmrouter") / "testbed" / "data" / "azure_llm_2023_excerpt.csv.gz")
SHORT = "ttft=1,tpot=0.03"
MIXED = (PoolOption(name="x", profile=H100, current=4),)


@pytest.mark.timeout(600)  # the first simulation of a changed kernel compiles it
@pytest.mark.parametrize(
    ("pools", "rate_rps"),
    [
        (MIXED, 60.0),
        (MIXED, 75.0),
        (staged(2, 2), 60.0),
    ],
    ids=["mixed", "mixed, at its limit", "two stages"],
)
def test_what_is_foretold_is_what_is_simulated(pools: tuple[PoolOption, ...], rate_rps: float) -> None:
    """Means within 10 %, the share within the SLO within 8 points, up to the rate that is said to be carried."""
    rng, count = np.random.default_rng(1), 4_000
    prompt_N, output_N = lengths(1_200.0, 200.0, count)
    order_N = rng.permutation(count)
    at_N = np.cumsum(rng.exponential(1.0 / rate_rps, count))
    requests = Workload.of(at_N, prompt_N[order_N].astype(np.int64), output_N.astype(np.int64))
    replicas = {pool.name: pool.current for pool in pools}

    found = simulated(requests, pools, replicas, SLO)

    seen = outlook((demand(rate_rps),), pools, replicas, SLO)
    assert seen.models[0].tpot_s == pytest.approx(found.tpot_s, rel=0.1)
    assert seen.attainment == pytest.approx(found.attainment, abs=0.08)


@pytest.mark.timeout(600)
def test_an_answer_that_bursts_refute_is_followed_by_larger_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(
            [
                "plan",
                "--trace",
                TRACE,
                "--gpus",
                "6",
                "--rate",
                "60",
                "--slo",
                SHORT,
                "--layout",
                "staged",
                "--check",
                "--json",
            ]
        )
        == 0
    )
    runs = json.loads(capsys.readouterr().out)["simulated"]
    assert all(one["simulated_attainment"] < 0.95 for one in runs[:-1])
    assert [one["gpus"] for one in runs] == sorted(one["gpus"] for one in runs)
    assert runs[-1]["simulated_attainment"] >= 0.95

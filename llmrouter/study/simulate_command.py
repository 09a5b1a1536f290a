"""``llmrouter simulate``: what a policy would do on these requests, from a command line to a table or JSON."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from llmrouter.sim.run import simulate
from llmrouter.study.alone import alone_on_best_s
from llmrouter.study.bench_options import name_of
from llmrouter.study.capacity import CAPACITY_REQUESTS, capacity_of
from llmrouter.study.figures import Slo, counts, figures
from llmrouter.study.perform import TIMELINE_POINTS, timeline_values
from llmrouter.study.predictors import Predictor, predicted, unknown_applications
from llmrouter.study.progress import make_ready, progress
from llmrouter.study.simulate_options import parse
from llmrouter.study.simulate_table import print_runs
from llmrouter.study.traffic import as_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.sim.workload import Workload
    from llmrouter.study.contenders import Contender
    from llmrouter.study.simulate_options import Scenario


def main(rest: Sequence[str]) -> int:
    """Runs every policy of a command line on the same requests; returns the exit status.

    Raises:
        InvalidInputError: the command line, or a file that it names, is wrong.
    """
    scenario = parse(rest)
    result = simulated(scenario, command=shlex.join(["llmrouter", "simulate", *rest]))
    if scenario.as_json:
        sys.stdout.write(json.dumps(result, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
    else:
        print_runs(result, Console())
    return 0


def simulated(scenario: Scenario, *, command: str) -> dict[str, Any]:
    """The runs of a scenario as plain values."""
    make_ready()
    full_rps = _capacity(scenario) if scenario.load is not None else None
    rate_rps = scenario.rate_rps if scenario.load is None or full_rps is None else scenario.load * full_rps
    assert rate_rps is not None  # noqa: S101 - a scenario has a load or a rate
    requests = scenario.traffic.at(rate_rps)
    if scenario.model is not None:
        requests = as_model(requests, scenario.model)
    engines = [engine.profile.name for engine in scenario.setup.engines]
    return {
        "command": command,
        "requests": len(requests),
        "traffic": scenario.traffic.name,
        "rate_rps": rate_rps,
        "load": scenario.load,
        "capacity_rps": full_rps,
        "seed": scenario.seed,
        "engines": {name: engines.count(name) for name in dict.fromkeys(engines)},
        "routers": scenario.setup.routers.routers,
        "order": name_of(scenario.setup.routers.order),
        "slo": {"ttft_s": Slo().ttft_s, "tpot_s": Slo().tpot_s},
        "notes": _notes(scenario, requests),
        "runs": [_run(scenario, requests, contender) for contender in scenario.contenders],
    }


def _capacity(scenario: Scenario) -> float:
    def at(rate_rps: float) -> Workload:
        requests = scenario.traffic.long_at(rate_rps, CAPACITY_REQUESTS)
        return as_model(requests, scenario.model) if scenario.model is not None else requests

    with progress("capacity", 1, unit="search") as advance:
        found_rps = capacity_of(scenario.setup, at)
        advance(1)
    return found_rps


def _run(scenario: Scenario, requests: Workload, contender: Contender) -> dict[str, Any]:
    workload = _with_predictions(scenario, requests, contender)
    every_s = max(workload.duration_s, 1e-3) / TIMELINE_POINTS if scenario.with_timeline else None
    done = 0
    with progress(contender.name, len(workload), unit="requests") as advance:

        def on_progress(ended: int) -> None:
            nonlocal done
            advance(ended - done)
            done = ended

        outcomes = simulate(
            scenario.setup,
            workload,
            contender.make(),
            seed=scenario.seed,
            sample_every_s=every_s,
            on_progress=on_progress,
        )
        on_progress(len(workload))
    busy_I = outcomes.engine_busy_s / outcomes.makespan_s if outcomes.finished.any() else np.zeros(0)
    run: dict[str, Any] = {
        "policy": contender.name,
        "description": contender.description,
        "figures": figures(
            outcomes,
            lone_s=alone_on_best_s(scenario.setup.engines, workload),
            warm_up_fraction=scenario.warm_up_fraction,
            slo=Slo(),
        ),
        "counts": counts(outcomes),
        "engine_busy_fraction": busy_I.tolist(),
    }
    if outcomes.timeline is not None:
        run["timeline"] = timeline_values(outcomes.timeline)
    return run


def _with_predictions(scenario: Scenario, requests: Workload, contender: Contender) -> Workload:
    if contender.predictor is None and scenario.constant_tokens is not None:
        return requests.with_predictions(np.full(len(requests), float(scenario.constant_tokens)))
    return predicted(
        requests,
        contender.predictor or scenario.predictor,
        scenario.traffic.history,
        seed=scenario.seed,
        bucket_accuracy=scenario.traffic.bucket_accuracy,
    )


def _notes(scenario: Scenario, requests: Workload) -> list[str]:
    notes = list(scenario.traffic.notes)
    if scenario.constant_tokens is not None:
        notes.append(f"Every answer is expected to have {scenario.constant_tokens:g} tokens, as the file says.")
    elif scenario.predictor is Predictor.FOREST and (unknown := unknown_applications(requests)):
        names = ", ".join(name or "(none)" for name in unknown)
        notes.append(f"The forest does not know the applications {names} and reads their prompt length alone.")
    elif scenario.predictor in (Predictor.TASK_MEAN, Predictor.NONE) and scenario.traffic.own_rate_rps is not None:
        notes.append("Predicted lengths are means of the trace itself.")
    notes.append("One run has no interval: llmrouter bench compares over seeds.")
    return notes

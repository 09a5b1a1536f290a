"""What placement would gain if it decided with learned step times: the marginal cost on the profile a router believes.

Each row is one belief; the figures are mean and 99th percentile of E2E against the same policy that knows the truth,
in %, means and 95 % intervals over paired seeds. What is learned comes from one run of ``bench/calibration.py``, of a
seed of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import t

from bench.calibration import Case, listen
from llmrouter.arrivals.cells import cell
from llmrouter.domain import InstanceView, PoolSnapshot
from llmrouter.routing.calibration import COEFFICIENTS, ClassCalibration
from llmrouter.routing.formulas import WorkloadImpact
from llmrouter.routing.policies import kv_gate
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import Setup

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence

    from llmrouter.domain import Decision, EngineProfile, Request, Room
    from llmrouter.sim.workload import Workload

FIRST_SEED = 7_001
WARM = 0.2


class Believing:
    """The marginal cost behind a KV gate, on profiles of the believer's own."""

    name = "Believing"

    def __init__(self, profiles: Sequence[EngineProfile]) -> None:
        self._policy = WorkloadImpact(kv_gate(1.0))
        self._profiles = profiles
        self._instances: dict[str, InstanceView] = {}

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        views = tuple(self._believed(view) for view in snapshot.views)
        return self._policy.decide(request, PoolSnapshot(views, snapshot.taken_at_s, snapshot.load_age_s), rng)

    def room_of(self, view: InstanceView) -> Room:
        return self._policy.room_of(view)

    def _believed(self, view: InstanceView) -> InstanceView:
        name = view.instance.instance_id
        known = self._instances.get(name)
        if known is None:
            profile = self._profiles[int(name)]
            known = self._instances[name] = replace(view, instance=replace(view.instance, profile=profile))
        return replace(view, instance=known.instance)


def learned(case: Case) -> list[EngineProfile]:
    """The profiles of a case's instances as a router has learned them."""
    calibration = ClassCalibration(case.believed)
    listen(case, calibration, lambda _: None)
    known, prior = calibration.calibration, case.believed
    base, prefill = (known.ratios[name] for name in COEFFICIENTS[:2])
    profile = replace(
        prior,
        name="learned",
        base_decode_s=known.coefficients["base_decode_s"],
        prefill_s_per_token=known.coefficients["prefill_s_per_token"],
        context_s_per_token=known.coefficients["context_s_per_token"],
        sequence_s=known.coefficients["sequence_s"],
        base_prefill_s=prior.base_prefill_s * base,
        prefill_s_per_token_squared=prior.prefill_s_per_token_squared * prefill,
    )
    return [profile.slower(known.slowness.get(f"{at:03d}", 1.0)) for at in range(len(case.engines))]


def task_means(name: str) -> Mapping[int, float]:
    """Mean output of each application, as a router knows it."""
    history = cell(name).history()
    return {
        int(one): float(history.output_tokens[history.application == one].mean())
        for one in np.unique(history.application)
    }


def workload(case: Case, seed: int, means: Mapping[int, float]) -> Workload:
    made = replace(case, seed=seed).workload
    return made.with_predictions(np.array([means[int(one)] for one in made.application]))


def beliefs(case: Case) -> dict[str, list[EngineProfile]]:
    """What a router may believe of a case's engines."""
    count = len(case.engines)
    wrong = "b g2 x3, g1 g3 /3"
    return {
        "the truth": [engine.profile for engine in case.engines],
        "the class's profile": [cell(case.cell).engine.profile] * count,
        "learned from it": learned(replace(case, prior="right", seed=5, requests=1_600)),
        "all x3": [replace(case, prior="all x3").believed] * count,
        "learned from all x3": learned(replace(case, prior="all x3", seed=5, requests=1_600)),
        wrong: [replace(case, prior=wrong).believed] * count,
        f"learned from {wrong}": learned(replace(case, prior=wrong, seed=5, requests=1_600)),
    }


def figures(case: Case, profiles: Sequence[EngineProfile], seeds: int, means: Mapping[int, float]) -> np.ndarray:
    """Mean and p99 E2E in seconds: shape (S, 2)."""
    setup = Setup(engines=tuple(case.engines))
    rows = []
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        outcomes = simulate(setup, workload(case, seed, means), Believing(profiles), seed=seed)
        e2e_s = outcomes.e2e_s[int(WARM * case.requests) :]
        rows.append((np.nanmean(e2e_s), np.nanquantile(e2e_s, 0.99)))
    return np.array(rows)


def interval(values_S: np.ndarray) -> tuple[float, float]:
    """Mean and half width of its 95 % interval."""
    count = len(values_S)
    return float(values_S.mean()), float(t.ppf(0.975, count - 1) * values_S.std(ddof=1) / math.sqrt(count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/calibration_worth.json"))
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    print("| traffic | the router believes | mean E2E, % | p99 E2E, % |\n|---|---|---|---|")
    rows = []
    for name, requests in (("h100-mix", 4_000), ("paper-v100", 3_000)):
        means = task_means(name)
        for slow in (False, True):
            case = Case(cell=name, load=0.9, requests=requests, slow_instance=slow)
            told = beliefs(case)
            truth = figures(case, told.pop("the truth"), options.seeds, means)
            what = f"{name} 0.9 C" + (", one engine 2x slower" if slow else "")
            for belief, profiles in told.items():
                if belief == "the class's profile" and not slow:
                    continue  # is the truth
                change = 100.0 * (figures(case, profiles, options.seeds, means) / truth - 1.0)
                cells = [interval(change[:, column]) for column in (0, 1)]
                rows.append({"traffic": what, "believes": belief, "mean_and_p99_percent": cells})
                shown = " | ".join(f"{mean:+.1f} ± {half:.1f}" for mean, half in cells)
                print(f"| {what} | {belief} | {shown} |", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "bench.calibration_worth", *sys.argv[1:]])
    options.out.write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

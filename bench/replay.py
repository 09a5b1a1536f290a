"""Replay against the truth: what a log says of another policy, and what that policy does. ``python -m bench.replay``.

A simulated router of policy A, which explores, writes a decision log. From it SNIPS and the doubly robust estimator say
what policy B would have brought. Two truths are known here:

- *one decision*: the run again, the same in everything but that one request goes where B sends it. Its own time then,
  minus its time in the log's run, is what B's choice changes; the mean over ``--truths`` requests is the truth that the
  estimators are after;
- *every decision*: the run again under B alone, which also changes the loads that decisions meet. This is what the
  simulation of ``llmrouter replay`` is after.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import track

from llmrouter.config import compile_policy
from llmrouter.decisions.estimators import estimates
from llmrouter.decisions.record import PolicyInForce
from llmrouter.domain import Placement
from llmrouter.profiles import H100_MIX
from llmrouter.replay.choosing import Chooser, room_rule_of
from llmrouter.replay.evaluating import choices_of, usable
from llmrouter.replay.recording import Recording, outcome_of
from llmrouter.replay.simulating import scene_of, simulated
from llmrouter.resources import RoutingPolicySpec
from llmrouter.routing.catalogue import make_policy
from llmrouter.routing.exploring import Exploring
from llmrouter.sim.model import EngineModel
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import Setup
from llmrouter.sim.workload import Workload

if TYPE_CHECKING:
    from llmrouter.config import PolicyConfig
    from llmrouter.domain import Decision, PoolSnapshot, Request
    from llmrouter.routing.policies import Policy
    from llmrouter.sim.outcomes import Outcomes

ENGINES = 4
MAX_REQUESTS = 512
METRICS = ("ttft_s", "e2e_s")


class Keyed:
    """A policy whose chance is each request's own: a run that differs in one decision draws the same in all others.

    ``elsewhere`` names a request and the policy that decides for it.
    """

    def __init__(self, policy: Policy, seed: int, elsewhere: tuple[str, Policy] | None = None) -> None:
        self.name, self.room_of = policy.name, policy.room_of
        self._policy, self._seed, self._elsewhere = policy, seed, elsewhere

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        """The decision of whoever is to make it."""
        del rng
        own = random.Random(f"{self._seed} {request.request_id}")
        if self._elsewhere is not None and self._elsewhere[0] == request.request_id:
            other = self._elsewhere[1].decide(request, snapshot, own)
            return other if isinstance(other, Placement) else self._policy.decide(request, snapshot, own)
        return self._policy.decide(request, snapshot, own)


def named(kind: str) -> PolicyConfig:
    """A RoutingPolicy of a type, with requests as its room, so that only the choice differs."""
    hold = {"room": "Requests", "batch_size": 1}
    spec = RoutingPolicySpec.model_validate({"type": kind, "hold": hold})
    return compile_policy(kind, spec, model_sha256=None)


def workload(requests: int, rate_rps: float, seed: int) -> Workload:
    """Poisson arrivals; lognormal prompts and answers, the latter known to a factor of about 1.6."""
    rng = np.random.default_rng(seed)
    output = np.clip(rng.lognormal(5.0, 1.0, requests), 2, 1500).astype(np.int64)
    return Workload.of(
        np.cumsum(rng.exponential(1.0 / rate_rps, requests)),
        np.clip(rng.lognormal(6.5, 1.2, requests), 16, 8000).astype(np.int64),
        output,
        predicted_output_tokens=np.clip(output * rng.lognormal(0.0, 0.5, requests), 1, 3000),
    )


def cell(options: argparse.Namespace, fraction: float, seed: int) -> dict[str, Any]:
    """One log, both estimates of it, and both truths."""
    setup = Setup(engines=(EngineModel(H100_MIX),) * ENGINES)
    load = workload(options.requests, options.rate, seed)
    a, b = named(options.logged), named(options.policy)
    own = make_policy(a.type, room_rule_of(a, MAX_REQUESTS), a.weights)
    other = make_policy(b.type, room_rule_of(b, MAX_REQUESTS), b.weights)
    logs = Exploring(own, fraction) if fraction > 0.0 else own
    section = PolicyInForce(name="a", type=a.type, digest=a.digest, exploration_fraction=fraction, decided_by=a.type)
    recording = Recording(Keyed(logs, seed), section)
    base = simulate(setup, load, recording, seed=seed)
    records = recording.records(base)
    rows = usable(records, Chooser(b, max_requests=MAX_REQUESTS)).rows
    scene = scene_of(records)
    if isinstance(scene, str):
        raise SystemExit(scene)
    asked = np.linspace(0, options.requests - 1, options.truths).astype(int).tolist()
    changed = [
        simulate(setup, load, Keyed(logs, seed, (f"r{row}", other)), seed=seed)
        for row in track(asked, description=f"seed {seed}, ε {fraction:g}", console=Console(stderr=True))
    ]
    before, after = (simulated(scene, one, max_requests=MAX_REQUESTS, seed=seed) for one in (a, b))
    said: dict[str, Any] = {"exploration": fraction, "seed": seed}
    for place, metric in enumerate(METRICS):
        choices = choices_of(rows, metric)
        found = None if choices is None else asdict(estimates(choices, np.random.default_rng([seed, place])))
        differences = [
            _cost(run, row, metric) - _cost(base, row, metric) for row, run in zip(asked, changed, strict=True)
        ]
        said[metric] = {
            "estimates": found,
            "one_decision": float(np.mean(differences)),
            "one_decision_error": float(np.std(differences) / np.sqrt(len(differences))),
            "every_decision": (after[metric] or 0.0) - (before[metric] or 0.0),
        }
    return said


def _cost(outcomes: Outcomes, row: int, metric: str) -> float:
    return float(getattr(outcome_of(outcomes, row), metric))


def table(cells: list[dict[str, Any]]) -> str:
    """The cells as Markdown: changes in milliseconds."""
    titles = ["exploration", "seed", "metric", "worth", "not shown", "SNIPS (ms)", "doubly robust (ms)"]
    titles += ["one decision (ms)", "every decision (ms)"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for one in cells:
        for metric in METRICS:
            found = one[metric]["estimates"]
            truth, error = 1e3 * one[metric]["one_decision"], 1e3 * one[metric]["one_decision_error"]
            lines.append(
                f"| {one['exploration']:g} | {one['seed']} | {metric.removesuffix('_s').upper()} "
                f"| {found['effective']:.0f} | {found['unsupported_fraction']:.0%} "
                f"| {_interval(found['snips_change'])} | {_interval(found['doubly_robust_change'])} "
                f"| {truth:.1f} ± {2.0 * error:.1f} | {1e3 * one[metric]['every_decision']:.1f} |"
            )
    return "\n".join(lines)


def _interval(one: dict[str, float]) -> str:
    return f"{1e3 * one['value']:.1f} [{1e3 * one['low']:.1f}, {1e3 * one['high']:.1f}]"


def main() -> int:
    """Prints the table; writes the figures where asked."""
    top = argparse.ArgumentParser(prog="python -m bench.replay", description=(__doc__ or "").splitlines()[0])
    top.add_argument("--logged", default="LeastInFlight", help="policy A (default: %(default)s)")
    top.add_argument("--policy", default="WorkloadImpact", help="policy B (default: %(default)s)")
    top.add_argument("--requests", type=int, default=1500, help="of each log (default: %(default)s)")
    top.add_argument("--rate", type=float, default=36.0, help="requests per second (default: %(default)s)")
    top.add_argument("--truths", type=int, default=100, help="single decisions that are changed (default: %(default)s)")
    top.add_argument("--seeds", type=int, default=2, help="logs of each exploration (default: %(default)s)")
    top.add_argument("--json", type=Path, help="file to write the figures to")
    options = top.parse_args()
    cells = [cell(options, fraction, seed) for fraction in (0.2, 0.05, 0.0) for seed in range(options.seeds)]
    sys.stdout.write(table(cells) + "\n")
    if options.json is not None:
        options.json.write_text(json.dumps({"command": " ".join(sys.argv), "cells": cells}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

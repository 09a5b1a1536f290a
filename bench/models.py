"""How long one decision and one prediction take with the shipped models, on one core.

A decision is everything from a snapshot to ordered candidates: eligibility, room, features, the model, the ranking. A
prediction is everything from lengths and labels to predicted tokens. Latencies in microseconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.artefacts import builtin_model
from llmrouter.domain import Instance, InstanceView, Load, ObjectiveWeights, PoolSnapshot, Preferences, Request
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.profiles import PROFILES
from llmrouter.routing.features import features_of, weights_of
from llmrouter.routing.learned import Learned, SharedAgent
from llmrouter.routing.marginal_cost import FormulaScorer
from llmrouter.routing.policies import PowerOfTwo, Scored, kv_gate
from router_grpc.adapters.length_models import load_lengths
from router_grpc.adapters.onnx_model import OnnxSharedNetwork, load_network, load_scorer

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.routing.policies import Policy

INSTANCES = (8, 16, 64, 256)
BATCHES = (1, 64)
SEED = 1
WARM_UP = 50

Row = dict[str, str | int | float]


def pool(instances: int, rng: random.Random) -> PoolSnapshot:
    profiles = list(PROFILES.values())
    views = []
    for number in range(instances):
        requests = rng.randrange(0, 40)
        load = Load(
            requests=requests,
            context_tokens=300 * requests,
            queued_prefill_tokens=300 * (requests // 8),
            remaining_decode_tokens=150.0 * requests,
        )
        instance = Instance(f"i{number}", f"10.0.0.1:{number}", "pool", rng.choice(profiles), frozenset({"m"}))
        views.append(InstanceView(instance, load))
    return PoolSnapshot(tuple(views), taken_at_s=0.0)


def measured(what: str, size: int, runs: int, call: Callable[[], object]) -> Row:
    for _ in range(WARM_UP):
        call()
    took_us = np.empty(runs)
    for run in range(runs):
        started_ns = time.perf_counter_ns()
        call()
        took_us[run] = (time.perf_counter_ns() - started_ns) / 1_000
    p50, p95, p99 = np.percentile(took_us, (50, 95, 99))
    return {
        "what": what,
        "size": size,
        "runs": runs,
        "p50_us": round(p50, 1),
        "p95_us": round(p95, 1),
        "p99_us": round(p99, 1),
    }


def decisions(runs: int) -> list[Row]:
    rng = random.Random(SEED)
    weights, gate = ObjectiveWeights(), kv_gate(1.0)
    scorer = load_scorer(*builtin_model("policy", "marginal-cost"), expected_sha256=None)
    network, _ = load_network(*builtin_model("policy", "learned"), expected_sha256=None)
    if not isinstance(network, OnnxSharedNetwork):
        raise TypeError("the shipped learned policy is for any number of instances")
    policies: dict[str, Policy] = {
        f"decision, ONNX on {scorer.provider}": Scored(gate, scorer, weights),
        f"decision, Learned on {scorer.provider}": Learned(gate, SharedAgent(network, Preferences())),
        "decision, formula": Scored(gate, FormulaScorer(), weights),
        "decision, PowerOfTwo": PowerOfTwo(gate),
    }
    asked = Request("r", "m", prompt_tokens=800, predicted_output_tokens=200.0, arrived_at_s=0.0)
    rows = []
    for instances in INSTANCES:
        snapshot = pool(instances, rng)
        features_IF, weights_W = features_of(asked, snapshot.views), weights_of(weights)
        rows.append(
            measured(
                f"model alone on {scorer.provider}",
                instances,
                runs,
                partial(scorer.score, features_IF, weights_W),
            )
        )
        for what, policy in policies.items():
            rows.append(measured(what, instances, runs, partial(policy.decide, asked, snapshot, rng)))
    return rows


def predictions(runs: int) -> list[Row]:
    rng = random.Random(SEED)
    predictor = load_lengths(*builtin_model("output_length", "random-forest"), expected_sha256=None)
    rows = []
    for batch in BATCHES:
        requests = [
            LengthRequest(prompt_tokens=rng.randrange(1, 8_000), application=rng.choice(["code", "conversation", ""]))
            for _ in range(batch)
        ]
        what = "prediction, forest"
        rows.append(measured(what, batch, runs, partial(predictor.laws, requests)))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2_000, help="timed calls per row (default: 2000)")
    parser.add_argument("--json", type=Path, default=Path("build/bench/models.json"), help="file to write")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs must be at least 1")
    rows = [*decisions(arguments.runs), *predictions(arguments.runs)]
    command = shlex.join(["python", *sys.argv])
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    report = {"command": command, "machine": platform.machine(), "python": platform.python_version(), "rows": rows}
    arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"$ {command}")
    print(f"{'':34}{'size':>6}{'p50 µs':>10}{'p95 µs':>10}{'p99 µs':>10}")
    for row in rows:
        print(f"{row['what']:34}{row['size']:>6}{row['p50_us']:>10}{row['p95_us']:>10}{row['p99_us']:>10}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

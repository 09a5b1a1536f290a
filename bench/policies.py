"""Policies side by side on the packaged trace, in simulation, with exact loads: what placement alone can win.

Every policy gets the same windows of the trace (paired); figures are means over windows of the change against
RoundRobin, with Student-t 95 % intervals. Writes build/bench/policies.json.

    .venv/bin/python bench/policies.py [--windows 8] [--seconds 120] [--load 0.85]
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json
import random
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from llmrouter.artefacts import builtin_model
from llmrouter.domain import (
    Instance,
    InstanceView,
    Load,
    ObjectiveWeights,
    Placement,
    PoolSnapshot,
    Request,
    Reservation,
)
from llmrouter.profiles import PROFILES
from llmrouter.routing.inflight import contribution
from llmrouter.routing.marginal_cost import FormulaScorer
from llmrouter.routing.policies import LeastInFlight, PowerOfTwo, Random, RoundRobin, Scored, kv_gate, request_bound
from llmrouter.sim.capacity import capacity_rps
from llmrouter.sim.engine import Engine, EngineRequest
from llmrouter.testbed.trace import arrivals, azure_2023
from router_grpc.adapters.predictors import load_predictor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmrouter.domain import EngineProfile
    from llmrouter.routing.policies import Policy
    from llmrouter.testbed.trace import TraceRequest

POOLS = {
    "4 x RTX 4090 + 4 x RTX PRO 6000": ["llama-3.1-8b-rtx4090"] * 4 + ["llama-3.1-8b-rtx-pro-6000"] * 4,
    "8 x RTX 4090": ["llama-3.1-8b-rtx4090"] * 8,
    "8 x RTX PRO 6000": ["llama-3.1-8b-rtx-pro-6000"] * 8,
}
POLICIES: dict[str, Callable[[], Policy]] = {
    "RoundRobin": lambda: RoundRobin(request_bound(512)),
    "Random": lambda: Random(request_bound(512)),
    "PowerOfTwo": lambda: PowerOfTwo(request_bound(512)),
    "LeastInFlight": lambda: LeastInFlight(request_bound(512)),
    "Onnx marginal-cost": lambda: Scored(kv_gate(1.0), FormulaScorer(), ObjectiveWeights()),
}
FIGURES = ("ttft_mean_s", "ttft_p99_s", "tpot_p95_s", "e2e_mean_s", "e2e_p99_s")
STUDENT_T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26, 12: 2.20, 16: 2.13}
MODEL = "m"


class Ledger:
    """The loads of all instances as the routers would count them, with every token reported at once."""

    def __init__(self, profiles: Sequence[EngineProfile]) -> None:
        self.instances = [Instance(f"{i:03d}", f"{i}:1", p.name, p, frozenset([MODEL])) for i, p in enumerate(profiles)]
        self.loads = [Load() for _ in profiles]
        self.open: list[dict[str, Reservation]] = [{} for _ in profiles]

    def snapshot(self, now_s: float) -> PoolSnapshot:
        views = zip(self.instances, self.loads, strict=True)
        return PoolSnapshot(tuple(InstanceView(instance, load) for instance, load in views), now_s)

    def put(self, at: int, request_id: str, new: Reservation | None) -> None:
        old = self.open[at].pop(request_id, None)
        if old is not None:
            self.loads[at] = self.loads[at].minus(contribution(old))
        if new is not None:
            self.open[at][request_id] = new
            self.loads[at] = self.loads[at].plus(contribution(new))

    def step(self, at: int, first: frozenset[str], finished: frozenset[str]) -> None:
        for request_id, known in list(self.open[at].items()):
            if request_id in finished:
                self.put(at, request_id, None)
            elif known.prefilled or request_id in first:
                tokens = known.generated_tokens + 1
                self.put(at, request_id, dataclasses.replace(known, prefilled=True, generated_tokens=tokens))


class Run:
    """One window under one policy: head-of-line holding, first come, first served, as the router does."""

    def __init__(self, policy: Policy, profiles: Sequence[EngineProfile], seed: int) -> None:
        self.policy, self.rng = policy, random.Random(seed)
        self.engines = [Engine(profile) for profile in profiles]
        self.ledger = Ledger(profiles)
        self.ends: list[tuple[float, int]] = []
        self.idle = set(range(len(profiles)))
        self.arrived: dict[str, float] = {}
        self.first: dict[str, float] = {}
        self.rows: list[tuple[float, float, float | None]] = []

    def play(self, requests: Sequence[TraceRequest], predicted: Sequence[float]) -> dict[str, float]:
        held: list[int] = []
        position, now_s = 0, 0.0
        while self.ends or held or position < len(requests):
            arrival_s = requests[position].arrived_at_s if position < len(requests) else float("inf")
            now_s = min(arrival_s, self.ends[0][0]) if self.ends else arrival_s
            while self.ends and self.ends[0][0] == now_s:
                self._end_step(heapq.heappop(self.ends)[1], now_s)
            while position < len(requests) and requests[position].arrived_at_s == now_s:
                held.append(position)
                position += 1
            while held and self._place(held[0], requests[held[0]], predicted[held[0]], now_s):
                held.pop(0)
            for at in sorted(at for at in self.idle if self.engines[at].has_work):
                self.idle.discard(at)
                heapq.heappush(self.ends, (now_s + self.engines[at].begin_step().duration_s, at))
        return self._figures()

    def _place(self, number: int, row: TraceRequest, predicted: float, now_s: float) -> bool:
        request = Request(str(number), MODEL, row.prompt_tokens, predicted, row.arrived_at_s, row.application)
        decision = self.policy.decide(request, self.ledger.snapshot(now_s), self.rng)
        if not isinstance(decision, Placement):
            return False
        chosen = decision.candidates[0].instance_id
        self.engines[int(chosen)].add(EngineRequest(str(number), row.prompt_tokens, row.output_tokens))
        self.ledger.put(int(chosen), str(number), Reservation(str(number), "r", chosen, row.prompt_tokens, predicted))
        self.arrived[str(number)] = row.arrived_at_s
        return True

    def _end_step(self, at: int, now_s: float) -> None:
        result = self.engines[at].finish_step()
        for request_id in result.first_tokens:
            self.first[request_id] = now_s
        self.ledger.step(at, frozenset(result.first_tokens), frozenset(result.finished))
        for request_id, tokens in result.finished.items():
            arrived_s, first_s = self.arrived[request_id], self.first[request_id]
            tpot_s = (now_s - first_s) / (tokens - 1) if tokens > 1 else None
            self.rows.append((first_s - arrived_s, now_s - arrived_s, tpot_s))
        self.idle.add(at)

    def _figures(self) -> dict[str, float]:
        ttft, e2e = np.array([row[0] for row in self.rows]), np.array([row[1] for row in self.rows])
        tpot = np.array([row[2] for row in self.rows if row[2] is not None])
        values = (ttft.mean(), np.percentile(ttft, 99), np.percentile(tpot, 95), e2e.mean(), np.percentile(e2e, 99))
        return dict(zip(FIGURES, map(float, values), strict=True))


def interval(changes: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval."""
    spread = statistics.stdev(changes) / len(changes) ** 0.5
    return statistics.mean(changes), STUDENT_T_95.get(len(changes), 2.13) * spread


def compare(names: Sequence[str], *, load: float, windows: int, seconds: float, console: Console) -> dict[str, object]:
    profiles = [PROFILES[name] for name in names]
    trace = azure_2023()
    capacity = capacity_rps(profiles, lambda rate: arrivals(trace.scaled_to(rate), MODEL), tolerance=0.02)
    scaled = trace.scaled_to(load * capacity)
    span_s = scaled.requests[-1].arrived_at_s - seconds
    predictor = load_predictor(*builtin_model("output_length", "random-forest"), expected_sha256=None)
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in POLICIES}
    for window in range(windows):
        requests = scaled.window(span_s * window / max(1, windows - 1), seconds).requests
        said = predictor.predict([r.prompt_tokens for r in requests], [r.application for r in requests])
        for name, make in POLICIES.items():
            console.log(f"window {window + 1}/{windows}: {name}, {len(requests)} requests")
            figures[name].append(Run(make(), profiles, window).play(requests, [one.expected_tokens for one in said]))
    changes = {
        name: {
            key: interval(
                [100 * (row[key] / base[key] - 1) for row, base in zip(rows, figures["RoundRobin"], strict=True)]
            )
            for key in FIGURES
        }
        for name, rows in figures.items()
    }
    return {"capacity_rps": capacity, "rate_rps": load * capacity, "changes_percent": changes, "figures": figures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=8, help="windows of the trace (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120, help="length of a window (default: %(default)s)")
    parser.add_argument("--load", type=float, default=0.85, help="of the round-robin capacity (default: %(default)s)")
    options = parser.parse_args()
    if options.windows < 2:  # noqa: PLR2004 - as the message says
        parser.error("--windows must be at least 2: an interval needs two")
    console = Console(stderr=True)
    results = {}
    for title, names in POOLS.items():
        result = compare(names, load=options.load, windows=options.windows, seconds=options.seconds, console=console)
        results[title] = result
        table = Table(title=f"{title}, {result['rate_rps']:.1f} req/s: change against RoundRobin, %")
        for heading in ("policy", *(figure.removesuffix("_s") for figure in FIGURES)):
            table.add_column(heading, justify="left" if heading == "policy" else "right")
        for name, row in result["changes_percent"].items():
            table.add_row(name, *(f"{mean:+.0f} ±{half:.0f}" for mean, half in row.values()))
        Console().print(table)
    path = Path("build/bench/policies.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"command": " ".join(sys.argv), "results": results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

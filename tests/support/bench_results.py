"""Results of ``llmrouter bench`` as they might come: shaped like real ones, made of chance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

POLICIES = {
    "RoundRobin": ("baseline", "one instance after the other", 0.0),
    "Random": ("baseline", "any instance", 0.06),
    "PowerOfTwo": ("baseline", "the emptier of two drawn at random", -0.03),
    "LeastInFlight": ("baseline", "fewest requests in flight (JSQ)", -0.045),
    "LeastKvTokens": ("baseline", "fewest context tokens in flight", -0.06),
    "LMetric": ("baseline", "prefill tokens with its own × batch size", -0.085),
    "TokenLoad": ("baseline", "tokens in flight, approximate prefix", -0.055),
    "PaperJsq": ("baseline", "prompt and decode tokens left", -0.02),
    "MaxCapacity": ("baseline", "most free KV, once a second", 0.02),
    "MinMin": ("baseline", "least upper bound of completion", 0.01),
    "GreedyMixing": ("baseline", "least mixing penalty", -0.07),
    "LookAhead": ("baseline", "least own latency", -0.05),
    "KvGate": ("baseline", "LeastInFlight; waits where KV is full", -0.05),
    "KvGateRandom": ("baseline", "Random; waits where KV is full", 0.03),
    "MarginalCost": ("ours", "marginal cost behind the KV gate: the default", -0.105),
    "MarginalCost-oracle": ("bound", "the default with true lengths", -0.13),
}
CELLS = {
    "paper-v100": (13.5, "4 × paper-v100", 4000, 6.0),
    "h100-mix": (43.5, "4 × h100-mix", 8000, 4.2),
    "h100-prod": (22.5, "4 × h100-mix", 4000, 2.4),
    "azure-2023": (31.2, "4 × h100-mix", 6000, 3.1),
}
LOADS = (0.5, 0.8, 0.95, 1.1)
LOWER = ("e2e_mean_s", "e2e_p50_s", "e2e_p95_s", "e2e_p99_s", "ttft_mean_s", "ttft_p50_s", "ttft_p99_s")
METRICS = (
    *LOWER,
    *("tpot_mean_s", "tpot_p95_s", "slowdown_mean", "makespan_s", "preemptions", "recomputed_tokens"),
    *("router_wait_mean_s", "largest_share", "slo_attainment", "goodput_rps", "shed_rate"),
)
T_975 = 2.093
"""Student's t for 20 seeds."""


def bench_result(
    *,
    cells: tuple[str, ...] = tuple(CELLS),
    loads: tuple[float, ...] = LOADS,
    policies: tuple[str, ...] = tuple(POLICIES),
    seeds: int = 20,
) -> dict[str, Any]:
    """A whole result: every part of the contract is there."""
    rng = np.random.default_rng(7)
    rows: list[dict[str, Any]] = []
    samples: dict[str, Any] = {}
    timelines: dict[str, Any] = {}
    best: dict[str, Any] = {}
    for cell in cells:
        for load in loads:
            per_seed = {name: _per_seed(rng, cell, load, name, seeds=seeds) for name in policies}
            rows += [_row(cell, load, name, per_seed) for name in policies]
            for tree in (samples, timelines, best):
                tree.setdefault(cell, {})
            samples[cell][f"{load:g}"] = {name: _samples(per_seed[name]) for name in policies}
            timelines[cell][f"{load:g}"] = {name: _timeline(rng, load) for name in policies}
            best[cell][f"{load:g}"] = _best(rows[-len(policies) :])
    return {
        "command": "llmrouter bench --cells all --loads 0.5,0.8,0.95,1.1 --policies all --seeds 20 --first-seed 1000",
        "version": "0.1.0",
        "base": "RoundRobin",
        "default": "MarginalCost" if "MarginalCost" in policies else None,
        "seeds": {"block": "selection", "first": 1000, "count": seeds},
        "policies": {name: {"kind": POLICIES[name][0], "description": POLICIES[name][1]} for name in policies},
        "notes": ["Every policy ran on the same arrivals, lengths and predictions.", "Made of chance: no claim."],
        "cells": {cell: _about(cell) for cell in cells},
        "rows": rows,
        "best": best,
        "samples": samples,
        "timelines": timelines,
    }


def _about(cell: str) -> dict[str, Any]:
    capacity, engine, requests, _ = CELLS[cell]
    return {"capacity_rps": capacity, "engine": engine, "instances": 4, "requests": requests}


def _per_seed(rng: np.random.Generator, cell: str, load: float, name: str, *, seeds: int) -> dict[str, list[float]]:
    """Figures seed by seed: the seed moves all policies alike, the policy adds its gain and some noise."""
    weather = np.random.default_rng([seeds, round(100 * load)]).normal(0, 0.05, seeds)
    gain = POLICIES[name][2] * (0.4 + 1.2 * load) + 0.03 * math.sin(len(cell) + 3 * load + 7 * len(name))
    gain = 0.0 if name == "RoundRobin" else gain
    queueing = 1 + 0.35 * load**6 + max(0.0, load - 1) * 25
    e2e = CELLS[cell][3] * queueing * np.exp(weather + gain + rng.normal(0, 0.025, seeds) * (name != "RoundRobin"))
    tail = 4.0 * (1 + rng.normal(0, 0.02, seeds))
    ttft = (
        0.08 * (1 + 0.5 * load**4 + 40 * max(0.0, load - 1)) * np.exp(weather + 2.5 * gain + rng.normal(0, 0.02, seeds))
    )
    tpot = 0.021 * (1 + 0.6 * load) * np.exp(0.3 * weather - 0.4 * gain + rng.normal(0, 0.004, seeds))
    preemptions = np.maximum(0, (load - 0.9) * 2000 * np.exp(6 * gain) + rng.normal(0, 3, seeds)).round()
    share = np.clip(0.25 * np.exp(-gain + 0.01), 0.25, 1) * np.ones(seeds)
    slo = np.clip(1.02 - 0.1 * load**4 - max(0, load - 1) * 3 - gain, 0, 1) * np.ones(seeds)
    columns = {
        "e2e_mean_s": e2e,
        "e2e_p50_s": 0.6 * e2e,
        "e2e_p95_s": 2.7 * e2e,
        "e2e_p99_s": tail * e2e,
        "ttft_mean_s": ttft,
        "ttft_p50_s": 0.5 * ttft,
        "ttft_p99_s": 9 * ttft,
        "tpot_mean_s": tpot,
        "tpot_p95_s": 1.8 * tpot,
        "slowdown_mean": e2e / CELLS[cell][3] * 1.4,
        "makespan_s": 180 * (1 + 0.1 * gain + weather),
        "preemptions": preemptions,
        "recomputed_tokens": 800 * preemptions,
        "router_wait_mean_s": np.full(seeds, 0.4 * ("Gate" in name)),
        "largest_share": share,
        "slo_attainment": slo,
        "goodput_rps": slo * load * CELLS[cell][0],
        "shed_rate": np.zeros(seeds),
    }
    return {metric: columns[metric].tolist() for metric in METRICS}


def _row(cell: str, load: float, name: str, per_seed: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    mine, base = per_seed[name], per_seed["RoundRobin"]
    row: dict[str, Any] = {"cell": cell, "load": load, "rate_rps": load * CELLS[cell][0], "policy": name}
    row["seeds"] = len(mine["e2e_mean_s"])
    for metric in METRICS:
        row[metric] = float(np.mean(mine[metric]))
        change = f"{metric.removesuffix('_s')}_pct"
        row[change], row[f"{change}_ci95"] = None, None
        if all(base[metric]):
            percents = 100 * (np.array(mine[metric]) / np.array(base[metric]) - 1)
            row[change] = float(percents.mean())
            row[f"{change}_ci95"] = float(T_975 * percents.std(ddof=1) / math.sqrt(len(percents)))
    return row


def _samples(per_seed: dict[str, list[float]]) -> dict[str, Any]:
    shares = np.linspace(0.001, 0.999, 101)
    normal = np.log(shares / (1 - shares)) / 1.7
    medians = {"e2e_s": "e2e_p50_s", "ttft_s": "ttft_p50_s", "tpot_s": "tpot_mean_s"}
    widths = {"e2e_s": 0.8, "ttft_s": 1.1, "tpot_s": 0.25}
    found: dict[str, Any] = {
        key: (np.mean(per_seed[metric]) * np.exp(widths[key] * normal)).tolist() for key, metric in medians.items()
    }
    return found | {"per_seed": per_seed}


def _timeline(rng: np.random.Generator, load: float, instances: int = 4, times: int = 300) -> dict[str, Any]:
    walk = np.cumsum(rng.normal(0, 0.02, (instances, times)), axis=1)
    usage = np.clip(0.6 * load + 0.15 * np.sin(np.arange(times) / 25 + rng.random((instances, 1)) * 6) + walk, 0, 1)
    return {
        "at_s": np.arange(times).astype(float).tolist(),
        "running": (usage * 60).round().tolist(),
        "waiting": np.maximum(0, (usage - 0.8) * 40).round().tolist(),
        "kv_usage_fraction": usage.round(4).tolist(),
        "held": np.maximum(0, (usage.mean(axis=0) - 0.7) * 30).round().tolist(),
    }


def _best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def least(kinds: tuple[str, ...]) -> dict[str, Any]:
        return min((row for row in rows if POLICIES[row["policy"]][0] in kinds), key=lambda row: row["e2e_mean_s"])

    best = least(("baseline", "ours"))
    return {
        "baseline": least(("baseline",))["policy"],
        "policy": best["policy"],
        "e2e_mean_pct": best["e2e_mean_pct"],
        "e2e_mean_pct_ci95": best["e2e_mean_pct_ci95"],
    }

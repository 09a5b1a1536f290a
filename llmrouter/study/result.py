"""Puts the results of a comparison together: the content of ``bench.json``.

Everything in it follows from the plan and the results, nothing from when or how often it was run.
"""

from __future__ import annotations

import math
from importlib import metadata
from typing import TYPE_CHECKING, Any

from llmrouter.study.bench_options import name_of
from llmrouter.study.capacity import CAPACITY_REQUESTS
from llmrouter.study.cells import build_cell
from llmrouter.study.contenders import BASE, CONTENDERS, DEFAULT, Kind
from llmrouter.study.figures import METRICS, SAMPLED, Slo, change_name
from llmrouter.study.notes import notes_of
from llmrouter.study.plan import (
    capacity_task,
    points_of,
    predictor_of,
    run_task,
    slo_cells,
    slo_seeds,
    slo_task,
    timeline_points,
    timeline_policies,
)
from llmrouter.study.statistics import mean_of, paired_change
from llmrouter.study.task import TaskKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmrouter.study.plan import Plan, Point
    from llmrouter.study.store import Store

PerSeed = dict[str, list[float | None]]
"""For each metric its values, seed by seed."""

_BEST_BY = "e2e_mean_s"
_FEWER_THAN_ALL = 1e-9


def load_key(load: float) -> str:
    """A load as a key of JSON: ``0.8``."""
    return f"{load:g}"


def result_of(plan: Plan, store: Store, *, command: str) -> dict[str, Any]:
    """The whole comparison as plain values; every task's result must be in the store."""
    capacity_rps = capacities(plan, store)
    points = points_of(plan, capacity_rps)
    slo = _slo_capacities(plan, store, capacity_rps)
    found = {
        (point, policy): _per_seed(plan, store, point, policy) | slo.get((point.cell.name, policy), {})
        for point in points
        for policy in plan.policies
    }
    return {
        "command": command,
        "version": metadata.version("llmrouter"),
        "base": BASE,
        "default": DEFAULT if DEFAULT in plan.policies else None,
        "seeds": {"block": plan.block.name, "first": plan.first_seed, "count": plan.seeds},
        "slo": {"ttft_s": Slo().ttft_s, "tpot_s": Slo().tpot_s},
        "policies": {name: _about_policy(plan, name) for name in plan.policies},
        "notes": notes_of(plan),
        "cells": {cell.name: _about_cell(plan, capacity_rps, cell.name) for cell in plan.cells},
        "rows": [
            _row(point, policy, found[point, policy], found[point, BASE])
            for point in points
            for policy in plan.policies
        ],
        "best": [_best(plan, point, found) for point in points],
        "samples": _samples(plan, store, points, found),
        "timelines": _timelines(plan, store, points),
    }


def capacities(plan: Plan, store: Store) -> dict[str, float]:
    """C of every cell by its name."""
    return {cell.name: float(store.get(capacity_task(cell).key)["capacity_rps"]) for cell in plan.cells}


def best_baseline(per_seed: Mapping[str, PerSeed]) -> str | None:
    """The baseline with the smallest mean E2E; a baseline that shed or refused requests counts only if all did.

    Latencies are of requests that finished, so a policy that turns some away would win by that.
    """
    baselines = [name for name in per_seed if CONTENDERS[name].kind is Kind.BASELINE]
    shed = {name: mean_of(per_seed[name]["shed_rate"]) or 0.0 for name in baselines}
    least = min(shed.values(), default=0.0)
    fair = [name for name in baselines if shed[name] <= least + _FEWER_THAN_ALL]
    known = {name: mean for name in fair if (mean := mean_of(per_seed[name][_BEST_BY])) is not None}
    return min(known, key=known.__getitem__) if known else None


def changes(values: PerSeed, base: PerSeed, prefix: str = "") -> dict[str, float | None]:
    """For every metric its paired change in percent and the half-width of that, by ``change_name``."""
    found: dict[str, float | None] = {}
    for metric, per_seed in values.items():
        change = paired_change(per_seed, base[metric])
        found[f"{prefix}{change_name(metric)}"] = change.percent
        found[f"{prefix}{change_name(metric)}_ci95"] = change.half_width
    return found


def _row(point: Point, policy: str, values: PerSeed, base: PerSeed) -> dict[str, Any]:
    return {
        "cell": point.cell.name,
        "load": point.load,
        "rate_rps": point.rate_rps,
        "policy": policy,
        "seeds": len(values[METRICS[0]]),
        **{metric: mean_of(per_seed) for metric, per_seed in values.items()},
        **changes(values, base),
    }


def _best(plan: Plan, point: Point, found: Mapping[tuple[Point, str], PerSeed]) -> dict[str, Any]:
    per_policy = {policy: found[point, policy] for policy in plan.policies}
    best = best_baseline(per_policy)
    entry: dict[str, Any] = {"cell": point.cell.name, "load": point.load, "policy": best, "default": None}
    if best is not None and DEFAULT in per_policy:
        entry |= {"default": DEFAULT, **changes(per_policy[DEFAULT], per_policy[best], prefix="vs_best_")}
    return entry


def _per_seed(plan: Plan, store: Store, point: Point, policy: str) -> PerSeed:
    runs = [store.get(run_task(plan, point, policy, seed).key)["figures"] for seed in plan.seed_range]
    return {metric: [run[metric] for run in runs] for metric in METRICS}


def _slo_capacities(plan: Plan, store: Store, capacity_rps: Mapping[str, float]) -> dict[tuple[str, str], PerSeed]:
    if not plan.slo_capacity:
        return {}
    found = {}
    for cell in slo_cells(plan):
        for policy in plan.policies:
            tasks = [slo_task(plan, cell, capacity_rps[cell.name], policy, seed) for seed in slo_seeds(plan)]
            values = [store.get(task.key)["slo_capacity_rps"] for task in tasks]
            found[cell.name, policy] = {"slo_capacity_rps": values}
    return found


def _samples(
    plan: Plan, store: Store, points: Sequence[Point], found: Mapping[tuple[Point, str], PerSeed]
) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for point in points:
        by_policy = tree.setdefault(point.cell.name, {}).setdefault(load_key(point.load), {})
        for policy in plan.policies:
            runs = [store.get(run_task(plan, point, policy, seed).key)["samples"] for seed in plan.seed_range]
            by_policy[policy] = {
                **{name: _mean_quantiles([run[name] for run in runs]) for name in SAMPLED},
                "per_seed": found[point, policy],
            }
    return tree


def _mean_quantiles(per_seed: Sequence[list[float] | None]) -> list[float] | None:
    """Quantile by quantile the mean over the seeds that have any."""
    known = [quantiles for quantiles in per_seed if quantiles is not None]
    return [math.fsum(values) / len(known) for values in zip(*known, strict=True)] if known else None


def _timelines(plan: Plan, store: Store, points: Sequence[Point]) -> dict[str, Any]:
    return {
        point.cell.name: {
            "load": point.load,
            "seed": plan.first_seed,
            "policies": {
                policy: store.get(run_task(plan, point, policy, plan.first_seed, kind=TaskKind.TIMELINE).key)
                for policy in timeline_policies(plan)
            },
        }
        for point in timeline_points(plan, points)
    }


def _about_policy(plan: Plan, name: str) -> dict[str, str]:
    contender = CONTENDERS[name]
    predictor = contender.predictor or plan.predictor
    said = predictor.value if predictor else "the cell's"
    return {"kind": contender.kind.value, "description": contender.description, "predictor": said}


def _about_cell(plan: Plan, capacity_rps: Mapping[str, float], name: str) -> dict[str, Any]:
    cell = build_cell(next(spec for spec in plan.cells if spec.name == name))
    engines = [engine.profile.name for engine in cell.setup.engines]
    routers = cell.setup.routers
    return {
        "description": cell.description,
        "capacity_rps": capacity_rps[name],
        "capacity_requests": CAPACITY_REQUESTS,
        "published_capacity_rps": cell.published_capacity_rps,
        "engine": ", ".join(f"{engines.count(one)} × {one}" for one in dict.fromkeys(engines)),
        "instances": len(engines),
        "requests": cell.requests,
        "rate_rps": cell.rate_rps,
        "cv": cell.spec.cv,
        "predictor": predictor_of(plan, cell.spec).value,
        "routers": {
            "routers": routers.routers,
            "shared": routers.shared,
            "refresh_s": routers.refresh_s,
            "dispatch_s": routers.dispatch_s,
            "decision_every_s": routers.decision_every_s,
            "order": name_of(routers.order),
            "aging_s": routers.aging_s,
            "fair": routers.fair,
        },
    }

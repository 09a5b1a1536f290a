"""The command line of ``llmrouter tune``, checked and turned into a scene and a plan."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from llmrouter.config import POLICIES_BY_COST
from llmrouter.config_file import parse_policy, read_text
from llmrouter.errors import InvalidConfigError, InvalidInputError
from llmrouter.objectives import DEFAULT_PRESET, PRESETS
from llmrouter.resources import ObjectiveSpec, RoutingPolicySpec
from llmrouter.study.bench_options import MAX_JOBS
from llmrouter.study.cells import KINDS
from llmrouter.study.configured import read_configured
from llmrouter.study.predictors import Predictor
from llmrouter.study.simulate_options import engine_counts
from llmrouter.study.traces import add_trace_options
from llmrouter.tuning.judgement import Objective
from llmrouter.tuning.parameters import named
from llmrouter.tuning.scenes import scene_of
from llmrouter.tuning.search import Plan
from llmrouter.tuning.windows import HELD_OUT_FRACTION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.study.configured import Configured
    from llmrouter.tuning.windows import Scene

DEFAULT_GENERATIONS = 40
MAX_GENERATIONS = 200
DEFAULT_BUDGET_MIN = 8.0
MAX_BUDGET_MIN = 600.0
DEFAULT_HELD_OUT_WINDOWS = 20
MAX_SEED = 2**31 - 1
_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A checked command line.

    Attributes:
        scene, plan: what is run, and how the search goes about it.
        name: of the policy that is written.
        current: the policy to be improved on …
        current_name: … and its name.
        start: where the search begins.
        others: policies that are candidates besides.
        held_out_windows: on how many the verdict rests.
        jobs: processes.
        out: the file to write.
        as_json: whether JSON is printed instead of a table.
    """

    scene: Scene
    plan: Plan
    name: str
    current: RoutingPolicySpec
    current_name: str
    start: RoutingPolicySpec
    others: tuple[tuple[str, RoutingPolicySpec], ...]
    held_out_windows: int
    jobs: int
    out: Path
    as_json: bool


def parser() -> argparse.ArgumentParser:
    """The options of ``llmrouter tune``."""
    top = argparse.ArgumentParser(
        prog="llmrouter tune",
        description="Finds better numbers for the default policy on your traffic, simulated, and writes them as a "
        "RoutingPolicy: only if they are better on a part of the traffic that the search has not seen. Exit status 1 "
        "where they are not: the current policy is kept and nothing is written.",
        epilog=f"cells: {', '.join(KINDS)}. docs/tuning.md says how to record a trace and how to read the table.",
    )
    traffic = top.add_argument_group("requests (one of the first two)")
    source = traffic.add_mutually_exclusive_group(required=True)
    source.add_argument("--trace", type=Path, metavar="FILE", help="recorded requests; the last part is held out")
    source.add_argument("--cell", metavar="NAME", help="requests, and engines, of a cell of the benchmark")
    add_trace_options(traffic)
    traffic.add_argument(
        "--held-out",
        type=float,
        default=HELD_OUT_FRACTION,
        metavar="F",
        help="share of a recording, the last, on which the verdict rests (default: %(default)s)",
    )
    traffic.add_argument("--requests", type=int, metavar="N", help="of a window (default: at most 4000)")
    rate = traffic.add_mutually_exclusive_group()
    rate.add_argument("--load", type=float, metavar="F", help="arrive at this fraction of the capacity C of the pool")
    rate.add_argument("--rate", type=float, metavar="RPS", help="arrive at so many requests a second")
    _add_pool(top.add_argument_group("engines and policy"))
    _add_search(top.add_argument_group("search"))
    return top


def _add_pool(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--config", type=Path, metavar="FILE", help="pools, policy and routers of a router's own file")
    group.add_argument(
        "--update", type=Path, metavar="FILE", help="begin with the RoutingPolicy of this file, by small steps"
    )
    group.add_argument(
        "--profile", action="append", default=[], metavar="NAME[:COUNT]", help="engines of this profile; repeatable"
    )
    group.add_argument(
        "--instances", action="append", default=[], metavar="N|POOL=N", help="how many engines; of a pool of --config"
    )
    group.add_argument("--predictor", choices=[one.value for one in Predictor], help="who predicts output lengths")
    group.add_argument("--prefix-caching", action="store_true", help="engines keep the KV of prompts for later ones")
    group.add_argument("--model", metavar="NAME", help="what requests ask for, where the pools of --config differ")


def _add_search(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--objective", choices=get_args(Objective), help="what is to improve (default: the current policy's preset)"
    )
    group.add_argument("--seed", type=int, default=0, metavar="K", help="of search and windows (default: %(default)s)")
    group.add_argument(
        "--generations", type=int, default=DEFAULT_GENERATIONS, metavar="N", help="at most (default: %(default)s)"
    )
    group.add_argument(
        "--budget",
        type=float,
        default=DEFAULT_BUDGET_MIN,
        metavar="MIN",
        help="minutes; a search that they end early depends on the machine (default: %(default)s)",
    )
    group.add_argument(
        "--windows",
        type=int,
        default=DEFAULT_HELD_OUT_WINDOWS,
        metavar="N",
        help="held-out windows of the verdict (default: %(default)s)",
    )
    group.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: cores)")
    group.add_argument("--name", metavar="NAME", help="of the policy that is written (default: the current one's)")
    group.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the RoutingPolicy is written")
    group.add_argument("--json", action="store_true", dest="as_json", help="print JSON instead of a table")


def parse(rest: Sequence[str]) -> Options:
    """The options of a command line; the recording is read.

    Raises:
        InvalidInputError: a value is out of its bounds, names nothing, or contradicts another; the message says which.
    """
    given = parser().parse_args(rest)
    _check_numbers(given)
    _check_out(given.out)
    counts, count = engine_counts(given.instances)
    configured = read_configured(given.config, counts) if given.config is not None else None
    name, current = _current(given, configured)
    objective: Objective = given.objective or current.objective.preset
    form = _form(current)
    is_update = given.update is not None
    return Options(
        scene=scene_of(given, configured, count),
        plan=Plan(
            objective=objective,
            generations=given.generations,
            budget_s=given.budget * _MINUTE_S,
            seed=given.seed,
            is_update=is_update,
        ),
        name=given.name or name,
        current=current,
        current_name=name,
        start=named(form, objective) if is_update else _with_preset(form, objective),
        others=() if is_update else tuple((one, _with_preset(form, one)) for one in PRESETS),
        held_out_windows=given.windows,
        jobs=given.jobs,
        out=given.out,
        as_json=given.as_json,
    )


def _check_numbers(given: argparse.Namespace) -> None:
    for name, lowest, highest in (
        ("generations", 1, MAX_GENERATIONS),
        ("windows", 2, 100),
        ("jobs", 1, MAX_JOBS),
        ("seed", 0, MAX_SEED),
    ):
        if not lowest <= (value := getattr(given, name)) <= highest:
            raise InvalidInputError(f"--{name} must be {lowest} to {highest}, not {value}")
    if not 0 < given.budget <= MAX_BUDGET_MIN:
        raise InvalidInputError(f"--budget must be above 0 and at most {MAX_BUDGET_MIN:g} minutes, not {given.budget}")
    if not 0.1 <= given.held_out <= 0.9:  # noqa: PLR2004 - said here
        raise InvalidInputError(f"--held-out must be 0.1 to 0.9, not {given.held_out}")
    for name in ("load", "rate"):
        value = getattr(given, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InvalidInputError(f"--{name} must be positive and finite, not {value}")


def _check_out(out: Path) -> None:
    """Before minutes are spent: whether the file can be written."""
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise InvalidInputError(f"--out {out}: no file of an existing folder")
    if not os.access(out if out.exists() else out.absolute().parent, os.W_OK):
        raise InvalidInputError(f"--out {out}: may not be written")


def _current(given: argparse.Namespace, configured: Configured | None) -> tuple[str, RoutingPolicySpec]:
    """Name and spec of the policy to be improved on."""
    if given.update is not None:
        try:
            name, policy = parse_policy(read_text(given.update))
        except InvalidConfigError as error:
            raise InvalidInputError(f"--update {given.update}: {error}") from error
        if policy.type not in POLICIES_BY_COST or (policy.model is not None and policy.model.builtin is None):
            raise InvalidInputError(
                f"--update {given.update}: type {policy.type} has no numbers to tune; "
                f"it takes {' or '.join(sorted(POLICIES_BY_COST))}, with the builtin model"
            )
        return name, policy
    if configured is not None:
        return configured.config.policy.name, configured.policy
    preset = given.objective or DEFAULT_PRESET
    return "tuned", RoutingPolicySpec(type="WorkloadImpact", objective=ObjectiveSpec(preset=preset))


def _form(policy: RoutingPolicySpec) -> RoutingPolicySpec:
    """The policy, or, where it is not one by cost, the default with its hold, queue and guard."""
    if policy.type in POLICIES_BY_COST:
        return policy
    return policy.model_copy(update={"type": "WorkloadImpact", "model": None})


def _with_preset(policy: RoutingPolicySpec, preset: str) -> RoutingPolicySpec:
    """The policy with the weights of a preset, each of them named."""
    return named(policy.model_copy(update={"objective": ObjectiveSpec.model_validate({"preset": preset})}), preset)

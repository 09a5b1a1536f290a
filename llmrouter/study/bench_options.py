"""The command line of ``llmrouter bench``, checked."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidInputError
from llmrouter.routing.orders import DEFAULT_AGING_S, ORDERS, Order
from llmrouter.sim.setup import RouterSide
from llmrouter.study.cells import DEFAULT_CELLS, KINDS, QUICK_CELLS, CellSpec, build_cell, named_profile
from llmrouter.study.contenders import CONTENDERS, chosen_contenders
from llmrouter.study.plan import Plan
from llmrouter.study.predictors import Predictor
from llmrouter.study.seeds import FINAL, SELECTION, block_of
from llmrouter.study.traces import add_trace_options, trace_name

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_LOADS = 32
MAX_LOAD = 10.0
MAX_JOBS = 256


@dataclass(frozen=True, slots=True)
class _Extent:
    """How much is run where the command line does not say."""

    loads: str
    seeds: int
    policies: str
    requests: int | None
    cells: tuple[str, ...]


_FULL = _Extent("0.5,0.8,0.95,1.1", 20, "all", None, DEFAULT_CELLS)
_QUICK = _Extent("0.8,0.95", 5, "quick", 4_000, QUICK_CELLS)
_MS = 1_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A checked command line: what to compare, and how to go about it."""

    plan: Plan
    final: bool
    jobs: int
    fresh: bool
    out: Path
    as_json: bool


def parser() -> argparse.ArgumentParser:
    """The options of ``llmrouter bench``."""
    top = argparse.ArgumentParser(
        prog="llmrouter bench",
        description="Compares routing policies in simulation: the same requests for all, seed by seed, changes "
        "against RoundRobin with 95 % intervals. Stopped, it goes on where it was when the same command is run again.",
        epilog=f"cells: {', '.join(KINDS)}. policies: {', '.join(CONTENDERS)}. docs/benchmark.md has the protocol.",
    )
    what = top.add_argument_group("what is compared")
    what.add_argument("--cells", metavar="A,B", help=f"cells, or all (default: {','.join(DEFAULT_CELLS)})")
    what.add_argument("--loads", metavar="X,Y", help=f"fractions of the capacity C (default: {_FULL.loads})")
    what.add_argument("--policies", metavar="A,B", help="names, quick or all; RoundRobin is always run (default: all)")
    what.add_argument("--seeds", type=int, metavar="N", help=f"runs of each policy (default: {_FULL.seeds})")
    what.add_argument("--first-seed", type=int, metavar="K", help=f"their first seed (default: {SELECTION.first})")
    what.add_argument("--requests", type=int, metavar="N", help="requests of a run (default: the cell's)")
    what.add_argument(
        "--predictor",
        choices=[one.value for one in Predictor],
        help="who predicts output lengths (default: bucket in the paper's cells, else task-mean)",
    )
    what.add_argument("--slo-capacity", action="store_true", help="also find the highest rate within the SLO")
    what.add_argument("--quick", action="store_true", help="few seeds, requests, cells, policies: under 2 minutes")
    what.add_argument(
        "--final",
        action="store_true",
        help=f"open the final seeds, {FINAL.first} to {FINAL.last}, for claims; every opening is recorded",
    )
    _add_setting(top.add_argument_group("what is changed about every cell"))
    how = top.add_argument_group("how it runs")
    how.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: cores)")
    again = how.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="use the results that are there (the default)")
    again.add_argument("--fresh", action="store_true", help="forget the results that are there")
    how.add_argument(
        "--out", type=Path, default=Path("build/bench"), metavar="DIR", help="folder (default: %(default)s)"
    )
    how.add_argument("--json", action="store_true", dest="as_json", help="print the JSON instead of tables")
    return top


def parse(rest: Sequence[str]) -> Options:
    """A checked command line.

    Raises:
        InvalidInputError: a value is out of its bounds or names nothing; the message says which.
    """
    given = parser().parse_args(rest)
    defaults = _QUICK if given.quick else _FULL
    first_seed = given.first_seed if given.first_seed is not None else (FINAL if given.final else SELECTION).first
    seeds = given.seeds if given.seeds is not None else defaults.seeds
    block = block_of(first_seed, seeds, final=given.final)
    if not 1 <= given.jobs <= MAX_JOBS:
        raise InvalidInputError(f"--jobs must be 1 to {MAX_JOBS}, not {given.jobs}")
    contenders = chosen_contenders(given.policies or defaults.policies)
    plan = Plan(
        cells=_cells(given, defaults),
        loads=parse_loads(given.loads or defaults.loads),
        policies=tuple(one.name for one in contenders),
        first_seed=first_seed,
        seeds=seeds,
        block=block,
        predictor=Predictor(given.predictor) if given.predictor else None,
        slo_capacity=given.slo_capacity,
    )
    return Options(
        plan=plan, final=given.final, jobs=given.jobs, fresh=given.fresh, out=given.out, as_json=given.as_json
    )


def parse_loads(text: str) -> tuple[float, ...]:
    """Fractions of capacity from a comma-separated list, in order and once each; raises InvalidInputError."""
    loads = []
    for word in text.split(","):
        try:
            load = float(word)
        except ValueError:
            load = math.nan
        if not 0 < load <= MAX_LOAD:
            raise InvalidInputError(f"--loads must be above 0 and at most {MAX_LOAD:g} each, not {word.strip()!r}")
        loads.append(load)
    if len(loads) > MAX_LOADS:
        raise InvalidInputError(f"--loads names {len(loads)} loads, more than {MAX_LOADS}")
    return tuple(dict.fromkeys(loads))


def add_router_side(group: argparse._ArgumentGroup) -> None:
    """The options that make a ``RouterSide``."""
    group.add_argument("--routers", type=int, default=1, metavar="R", help="how many routers (default: %(default)s)")
    group.add_argument(
        "--refresh-ms", type=float, default=0.0, metavar="MS", help="how old a router's view gets (default: always new)"
    )
    group.add_argument("--dispatch-ms", type=float, default=0.0, metavar="MS", help="from decision to engine")
    group.add_argument("--private", action="store_true", help="each router sees its own dispatches alone")
    group.add_argument("--order", choices=list(ORDERS), help="of held requests (default: FirstComeFirstServed)")
    group.add_argument("--aging-s", type=float, metavar="S", help=f"of that order (default: {DEFAULT_AGING_S:g})")
    group.add_argument("--fair", action="store_true", help="the tenant that was served least goes next")
    group.add_argument(
        "--tenant-weight", action="append", default=[], metavar="NAME=W", help="with --fair, its weight (default: 1)"
    )


def router_side(given: argparse.Namespace) -> RouterSide:
    """The router side of ``add_router_side``'s options; raises InvalidInputError."""
    return RouterSide(
        routers=given.routers,
        shared=not given.private,
        refresh_s=given.refresh_ms / _MS,
        dispatch_s=given.dispatch_ms / _MS,
        reserves=not given.private,
        order=ORDERS[given.order] if given.order is not None else Order.FIRST_COME_FIRST_SERVED,
        aging_s=given.aging_s if given.aging_s is not None else DEFAULT_AGING_S,
        fair=given.fair,
        tenant_weights=_tenant_weights(given),
    )


def name_of(order: Order) -> str:
    """The name that a RoutingPolicy and ``--order`` give an order."""
    return next(name for name, one in ORDERS.items() if one is order)


def _tenant_weights(given: argparse.Namespace) -> tuple[tuple[str, float], ...]:
    if given.tenant_weight and not given.fair:
        raise InvalidInputError("--tenant-weight is a weight of --fair, which is not given")
    weights: dict[str, float] = {}
    for word in given.tenant_weight:
        name, equals, number = word.rpartition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            equals = ""
        if not equals:
            raise InvalidInputError(f"--tenant-weight must be NAME=W, not {word!r}")
    return tuple(weights.items())


def _add_setting(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--instances", type=int, metavar="N", help="engines (default: the cell's)")
    group.add_argument("--profile", metavar="NAME", help="profile of every engine (default: the cell's)")
    group.add_argument(
        "--slow-instance", type=float, default=1.0, metavar="F", help="the last engine's steps take F times as long"
    )
    group.add_argument("--cv", type=float, default=1.0, metavar="X", help="burstiness of generated gaps (1: Poisson)")
    group.add_argument("--prefix-caching", action="store_true", help="engines keep the KV of prompts for later ones")
    add_router_side(group)
    group.add_argument("--trace", type=Path, metavar="FILE", help="compare on the requests of this file")
    add_trace_options(group)


def _cells(given: argparse.Namespace, defaults: _Extent) -> tuple[CellSpec, ...]:
    if given.profile is not None:
        named_profile(given.profile)
    common = {
        "instances": given.instances,
        "profiles": (given.profile,) if given.profile else (),
        "slow_factor": given.slow_instance,
        "cv": given.cv,
        "requests": given.requests if given.requests is not None else defaults.requests,
        "routers": router_side(given),
        "prefix_caching": given.prefix_caching,
    }
    specs = [CellSpec(name=name, **common) for name in _cell_names(given, defaults)]
    if given.trace is not None:
        specs.append(
            CellSpec(
                name=trace_name(given.trace),
                trace=str(given.trace),
                trace_format=given.format or "",
                skip_bad=given.skip_bad_lines,
                **common,
            )
        )
    elif given.format is not None or given.skip_bad_lines:
        raise InvalidInputError("--format and --skip-bad-lines say how to read --trace, which is not given")
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise InvalidInputError(f"two cells are named {max(names, key=names.count)!r}: rename the trace's file")
    for spec in specs:
        build_cell(spec)
    return tuple(specs)


def _cell_names(given: argparse.Namespace, defaults: _Extent) -> tuple[str, ...]:
    if given.cells == "all":
        return tuple(KINDS)
    if given.cells is not None:
        return tuple(dict.fromkeys(word.strip() for word in given.cells.split(",")))
    if given.trace is not None:
        return ()
    return defaults.cells

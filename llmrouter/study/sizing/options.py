"""The command line of ``llmrouter plan``, checked."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidInputError
from llmrouter.planning.inputs import Slo
from llmrouter.study.sizing.layouts import LAYOUTS, Layout, declared, layouts_of
from llmrouter.study.sizing.traffic import BUSIEST_S, Asked, asked_of
from llmrouter.study.traces import add_trace_options, load_trace, trace_name

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_PROFILE = "llama-3-8b-h100"
DEFAULT_SLO = "ttft=2,tpot=0.05"
MAX_GPUS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked: requests, pools to choose among, times to meet, GPUs at most; and how the answer is shown."""

    trace: str
    asked: Asked
    layouts: tuple[Layout, ...]
    slo: Slo
    gpus: int
    checks: bool
    plot: Path | None
    as_json: bool


def parser() -> argparse.ArgumentParser:
    """The options of ``llmrouter plan``."""
    top = argparse.ArgumentParser(
        prog="llmrouter plan",
        description="Says how many instances recorded traffic needs, and of which kind: mixed ones, or prefill and "
        f"decode apart. Planned for are the {BUSIEST_S / 60:g} minutes of the trace with the most tokens.",
        epilog="docs/plan.md shows examples, the formulas, and how far they are from the simulator.",
    )
    top.add_argument("--trace", type=Path, required=True, metavar="FILE", help="recorded requests")
    add_trace_options(top)
    top.add_argument("--rate", type=float, metavar="RPS", help="as many requests a second (default: as recorded)")
    top.add_argument(
        "--cached", type=float, default=0.0, metavar="F", help="share of prompt tokens that prefix caches have (0)"
    )
    top.add_argument(
        "--slo",
        metavar="K=V,…",
        help=f"ttft and tpot in seconds, attainment as a share (default: {DEFAULT_SLO},attainment=0.95, or the file's)",
    )
    top.add_argument("--gpus", type=int, metavar="N", help="GPUs there are at most (needed without --config)")
    engines = top.add_mutually_exclusive_group()
    engines.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="NAME[:GPUS]",
        help=f"engines of this profile, GPUs of one instance (default: {DEFAULT_PROFILE}:1); repeatable",
    )
    engines.add_argument("--config", type=Path, metavar="FILE", help="the pools of a router's own file, in its bounds")
    top.add_argument("--layout", choices=list(LAYOUTS), help="of --profile, this one alone (default: the better one)")
    top.add_argument(
        "--check",
        action="store_true",
        help="simulate the answer with the same requests, and larger ones until one meets the SLO",
    )
    top.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw attainment over GPUs")
    top.add_argument("--json", action="store_true", dest="as_json", help="print JSON instead of tables")
    return top


def parse(rest: Sequence[str]) -> Question:
    """The question of a command line.

    Raises:
        InvalidInputError: a value is out of its bounds or names nothing; the message says which.
    """
    given = parser().parse_args(rest)
    _check(given)
    models: tuple[str, ...] = ()
    layouts: tuple[Layout, ...]
    slo = slo_of(given.slo or DEFAULT_SLO)
    if given.config is not None:
        said = declared(given.config, given.gpus)
        layouts, models, gpus = (said.layout,), said.models, said.gpu_budget
        slo = said.slo if given.slo is None and said.slo is not None else slo
    else:
        gpus = given.gpus
        wanted = LAYOUTS.get(given.layout)
        layouts = tuple(
            one for one in layouts_of(given.profile or [DEFAULT_PROFILE], gpus) if wanted in {None, one.name}
        )
    assert gpus is not None  # noqa: S101 - checked above and by declared()
    longest = max(pool.profile.kv_tokens for layout in layouts for pool in layout.pools)
    trace, _ = load_trace(str(given.trace), given.format or "", skip_bad=given.skip_bad_lines)
    if len(models) == 1:
        trace = replace(trace, model=trace.model * 0, models=models)
    elif models and (unknown := sorted(set(trace.models) - set(models))):
        raise InvalidInputError(f"--trace asks for model {unknown[0]!r}, which {given.config} does not have")
    asked = asked_of(trace, rate_rps=given.rate, cached_fraction=given.cached, longest_tokens=longest)
    return Question(
        trace=trace_name(given.trace),
        asked=asked,
        layouts=layouts,
        slo=slo,
        gpus=gpus,
        checks=given.check,
        plot=given.plot,
        as_json=given.as_json,
    )


def slo_of(text: str) -> Slo:
    """``ttft=2,tpot=0.05[,attainment=0.9]``; raises InvalidInputError naming what is wrong of it."""
    names = {"ttft": "ttft_s", "tpot": "tpot_s", "attainment": "attainment"}
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if name.strip() not in names:
            raise InvalidInputError(f"--slo {text}: {name.strip()!r} is none of {', '.join(names)}")
        try:
            values[names[name.strip()]] = float(number)
        except ValueError:
            raise InvalidInputError(f"--slo {text}: {name.strip()} must be a number, not {number!r}") from None
    if missing := [name for name in ("ttft", "tpot") if names[name] not in values]:
        raise InvalidInputError(f"--slo {text}: {missing[0]} is missing")
    if not all(math.isfinite(value) for value in values.values()):
        raise InvalidInputError(f"--slo {text}: numbers must be finite")
    return Slo(**values)


def _check(given: argparse.Namespace) -> None:
    if given.gpus is None and given.config is None:
        raise InvalidInputError("--gpus is needed where no --config says how many there are")
    if given.gpus is not None and not 1 <= given.gpus <= MAX_GPUS:
        raise InvalidInputError(f"--gpus must be 1 to {MAX_GPUS}, not {given.gpus}")
    if given.rate is not None and not (math.isfinite(given.rate) and given.rate > 0.0):
        raise InvalidInputError(f"--rate must be above 0, not {given.rate}")
    if not 0.0 <= given.cached < 1.0:
        raise InvalidInputError(f"--cached must be at least 0 and below 1, not {given.cached}")
    if given.layout is not None and given.config is not None:
        raise InvalidInputError("--layout is of --profile: the pools of --config are what they are")
    if given.check and given.cached > 0.0:
        raise InvalidInputError("--check simulates engines without prefix caches: leave out --cached")
    if given.plot is not None and not given.plot.parent.is_dir():
        raise InvalidInputError(f"--plot {given.plot}: there is no folder {given.plot.parent}")

"""The command line of ``llmrouter simulate``, checked and turned into a scenario."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmrouter.arrivals.cells import CELL_NAMES
from llmrouter.errors import InvalidInputError
from llmrouter.sim.model import EngineModel
from llmrouter.sim.setup import RouterSide, Setup
from llmrouter.study import traffic
from llmrouter.study.bench_options import MAX_LOAD, add_router_side, router_side
from llmrouter.study.cells import MAX_INSTANCES, CellSpec, build_cell, named_profile
from llmrouter.study.configured import Configured, read_configured
from llmrouter.study.contenders import BASE, CONTENDERS, DEFAULT, contender
from llmrouter.study.predictors import Predictor
from llmrouter.study.seeds import SELECTION, check_seed
from llmrouter.study.traces import add_trace_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmrouter.study.contenders import Contender
    from llmrouter.study.traffic import Traffic

DEFAULT_LOAD = 0.8
DEFAULT_PROFILE = "h100-mix"
DEFAULT_INSTANCES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is run.

    Attributes:
        traffic: the requests.
        load: fraction of capacity at which they arrive, if that was asked for …
        rate_rps: … or requests per second; one of the two is set.
        setup: engines and routers.
        contenders: the policies, one run each.
        predictor: who predicts output lengths …
        constant_tokens: … or what every answer is expected to have.
        model: what every request asks for, where engines differ in what they serve.
        seed: of arrivals, predictions and the routers' chance.
        warm_up_fraction: share of the requests that is not measured.
        with_timeline: whether engines are sampled.
        as_json: whether JSON is printed instead of a table.
    """

    traffic: Traffic
    load: float | None
    rate_rps: float | None
    setup: Setup
    contenders: tuple[Contender, ...]
    predictor: Predictor
    constant_tokens: float | None
    model: str | None
    seed: int
    warm_up_fraction: float
    with_timeline: bool
    as_json: bool


def parser() -> argparse.ArgumentParser:
    """The options of ``llmrouter simulate``."""
    top = argparse.ArgumentParser(
        prog="llmrouter simulate",
        description="Says what policies would do on your traffic: one simulated run of each on the same requests, all "
        "figures side by side. Engines are those of --config, a cell or --profile.",
        epilog=f"policies: {', '.join(CONTENDERS)}. docs/benchmark.md shows examples.",
    )
    _add_traffic(top.add_argument_group("requests (one of the first three)"))
    _add_pool(top.add_argument_group("engines and policies"))
    side = top.add_argument_group("routers")
    add_router_side(side)
    side.add_argument("--max-wait-s", type=float, metavar="S", help="longest hold; then a request is shed")
    side.add_argument(
        "--max-held", type=int, metavar="N", help="longest queue of a router; beyond it requests are shed"
    )
    shown = top.add_argument_group("what is shown")
    shown.add_argument("--warm-up", type=float, default=0.0, metavar="F", help="share of requests that is not measured")
    shown.add_argument("--timeline", action="store_true", help="engines over time: lines, with --json the samples")
    shown.add_argument("--json", action="store_true", dest="as_json", help="print JSON instead of a table")
    return top


def parse(rest: Sequence[str]) -> Scenario:
    """The scenario of a command line.

    Raises:
        InvalidInputError: a value is out of its bounds, names nothing, or contradicts another; the message says which.
    """
    given = parser().parse_args(rest)
    check_seed(given.seed)
    if not 0 <= given.warm_up < 1:
        raise InvalidInputError(f"--warm-up must be at least 0 and below 1, not {given.warm_up}")
    requests = _traffic(given)
    counts, count = engine_counts(given.instances)
    configured = read_configured(given.config, counts) if given.config is not None else None
    setup = _setup(given, configured, count)
    load, rate_rps = _rate(given, requests)
    contenders = _contenders(given, configured)
    return Scenario(
        traffic=requests,
        load=load,
        rate_rps=rate_rps,
        setup=setup,
        contenders=contenders,
        predictor=_predictor(given, configured, requests),
        constant_tokens=configured.constant_tokens if configured is not None and given.predictor is None else None,
        model=_model(given, configured, requests),
        seed=given.seed,
        warm_up_fraction=given.warm_up,
        with_timeline=given.timeline,
        as_json=given.as_json,
    )


def _add_traffic(group: argparse._ArgumentGroup) -> None:
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--trace", type=Path, metavar="FILE", help="recorded requests, as they came")
    source.add_argument("--cell", choices=CELL_NAMES, help="requests, and engines, of a cell of the benchmark")
    source.add_argument("--poisson", type=float, metavar="RATE", help="generated requests, so many a second")
    add_trace_options(group)
    group.add_argument("--prompt-tokens", default="1000:1", metavar="MEAN[:SIGMA]", help="of --poisson (%(default)s)")
    group.add_argument("--output-tokens", default="200:1", metavar="MEAN[:SIGMA]", help="of --poisson (%(default)s)")
    group.add_argument("--cv", type=float, default=1.0, metavar="X", help="burstiness of generated gaps (1: Poisson)")
    group.add_argument("--requests", type=int, metavar="N", help="how many; of a trace the first N")
    group.add_argument("--seed", type=int, default=SELECTION.first, metavar="K", help="default: %(default)s")
    rate = group.add_mutually_exclusive_group()
    rate.add_argument(
        "--load", "--scale-load", type=float, metavar="F", help="arrive at this fraction of the capacity C of the pool"
    )
    rate.add_argument("--rate", type=float, metavar="RPS", help="arrive at so many requests a second")
    rate.add_argument("--speed-up", type=float, metavar="F", help="F times as fast as recorded")


def _add_pool(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--config", type=Path, metavar="FILE", help="pools, policy and routers of a router's own file")
    group.add_argument(
        "--profile", action="append", default=[], metavar="NAME[:COUNT]", help="engines of this profile; repeatable"
    )
    group.add_argument(
        "--instances", action="append", default=[], metavar="N|POOL=N", help="how many engines; of a pool of --config"
    )
    group.add_argument(
        "--policy", action="append", default=[], metavar="NAME", help="repeatable: policies are compared side by side"
    )
    group.add_argument("--predictor", choices=[one.value for one in Predictor], help="who predicts output lengths")
    group.add_argument("--prefix-caching", action="store_true", help="engines keep the KV of prompts for later ones")
    group.add_argument("--model", metavar="NAME", help="what requests ask for, where the pools of --config differ")


def _traffic(given: argparse.Namespace) -> Traffic:
    if given.trace is None and (given.format is not None or given.skip_bad_lines):
        raise InvalidInputError("--format and --skip-bad-lines say how to read --trace, which is not given")
    if given.trace is not None:
        if given.cv != 1.0:
            raise InvalidInputError("--cv changes generated arrivals; those of --trace are recorded")
        return traffic.of_trace(
            str(given.trace),
            given.format or "",
            skip_bad=given.skip_bad_lines,
            requests=given.requests,
            seed=given.seed,
        )
    if given.cell is not None:
        return traffic.of_cell(given.cell, requests=given.requests, seed=given.seed, cv=given.cv)
    return traffic.of_poisson(
        given.prompt_tokens, given.output_tokens, requests=given.requests, seed=given.seed, cv=given.cv
    )


def _rate(given: argparse.Namespace, requests: Traffic) -> tuple[float | None, float | None]:
    """The load or the rate, whichever was asked for."""
    for name in ("load", "rate", "speed_up", "poisson"):
        value = getattr(given, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InvalidInputError(f"--{name.replace('_', '-')} must be positive and finite, not {value}")
    if given.load is not None:
        if given.load > MAX_LOAD:
            raise InvalidInputError(f"--load must be at most {MAX_LOAD:g}, not {given.load}")
        return given.load, None
    if given.rate is not None:
        return None, given.rate
    own_rps = given.poisson if given.poisson is not None else requests.own_rate_rps
    if given.speed_up is not None:
        if own_rps is None:
            raise InvalidInputError("--speed-up needs requests with a rate of their own: say --rate or --load")
        return None, own_rps * given.speed_up
    if own_rps is None and given.trace is not None:
        raise InvalidInputError(f"{given.trace} has no rate of its own: say --rate or --load")
    return (None, own_rps) if own_rps is not None else (DEFAULT_LOAD, None)


def engine_counts(words: Sequence[str]) -> tuple[Mapping[str, int], int | None]:
    """What ``--instances`` says: engines of pools by name, and of everything; raises InvalidInputError."""
    counts: dict[str, int] = {}
    count: int | None = None
    for word in words:
        pool, equals, number = word.rpartition("=")
        if not (number.isdecimal() and 1 <= int(number) <= MAX_INSTANCES) or (equals and not pool):
            raise InvalidInputError(f"--instances must be N or POOL=N, 1 to {MAX_INSTANCES}, not {word!r}")
        if equals:
            counts[pool] = int(number)
        else:
            count = int(number)
    return counts, count


def _setup(given: argparse.Namespace, configured: Configured | None, count: int | None) -> Setup:
    side = _side(given, configured)
    if configured is not None:
        if given.profile or count is not None:
            raise InvalidInputError("--config names the engines: change them with --instances POOL=N")
        same = len(set(configured.serves)) == 1
        serves = () if same else configured.serves
        return Setup(engines=_caching(configured.engines, given), routers=side, serves=serves)
    engines = profiled(given.profile)
    if not engines and given.cell is not None:
        engines = list(build_cell(CellSpec(name=given.cell)).setup.engines)
    if not engines:
        engines = [EngineModel(named_profile(DEFAULT_PROFILE))] * DEFAULT_INSTANCES
    if count is not None:
        engines = [engines[i % len(engines)] for i in range(count)]
    return Setup(engines=_caching(engines, given), routers=side)


def _caching(engines: Sequence[EngineModel], given: argparse.Namespace) -> tuple[EngineModel, ...]:
    return tuple(replace(engine, prefix_caching=given.prefix_caching) for engine in engines)


def profiled(words: Sequence[str]) -> list[EngineModel]:
    """The engines that ``--profile`` names; raises InvalidInputError."""
    engines: list[EngineModel] = []
    for word in words:
        name, colon, number = word.rpartition(":") if ":" in word else (word, "", "1")
        if colon and not (number.isdecimal() and 1 <= int(number) <= MAX_INSTANCES):
            raise InvalidInputError(f"--profile must be NAME or NAME:COUNT, 1 to {MAX_INSTANCES}, not {word!r}")
        engines += [EngineModel(named_profile(name))] * int(number)
    return engines


def _side(given: argparse.Namespace, configured: Configured | None) -> RouterSide:
    side = router_side(given)
    if configured is not None:
        declared = configured.routers
        side = replace(side, max_wait_s=declared.max_wait_s, max_held=declared.max_held)
        if given.routers == 1:
            side = replace(side, routers=declared.routers)
        if given.order is None:
            side = replace(side, order=declared.order)
        if given.aging_s is None:
            side = replace(side, aging_s=declared.aging_s)
        if not given.fair:
            side = replace(side, fair=declared.fair, tenant_weights=declared.tenant_weights)
    if given.max_wait_s is not None:
        side = replace(side, max_wait_s=given.max_wait_s)
    if given.max_held is not None:
        if given.max_held < 0:
            raise InvalidInputError(f"--max-held must be at least 0, not {given.max_held}")
        side = replace(side, max_held=given.max_held)
    return side


def _contenders(given: argparse.Namespace, configured: Configured | None) -> tuple[Contender, ...]:
    named = [contender(name) for word in given.policy for name in word.split(",")]
    if configured is not None:
        return tuple(dict.fromkeys([configured.contender, *named]))
    return tuple(dict.fromkeys(named)) or (CONTENDERS[BASE], CONTENDERS[DEFAULT])


def _predictor(given: argparse.Namespace, configured: Configured | None, requests: Traffic) -> Predictor:
    if given.predictor is not None:
        return Predictor(given.predictor)
    return Predictor.FOREST if configured is not None else requests.predictor


def _model(given: argparse.Namespace, configured: Configured | None, requests: Traffic) -> str | None:
    """What all requests ask for; ``None`` where it makes no difference or the requests say it themselves."""
    if configured is None or len(set(configured.serves)) == 1:
        if given.model is not None:
            raise InvalidInputError(
                "--model chooses among pools of --config that serve different models: there are none"
            )
        return None
    known = set(configured.models)
    if given.model is not None:
        if given.model not in known:
            raise InvalidInputError(f"--model {given.model!r} is none of {', '.join(configured.models)}")
        return str(given.model)
    unknown = sorted(set(requests.history.models) - known)
    if unknown:
        raise InvalidInputError(
            f"the pools of --config serve different models and requests ask for {unknown[0]!r}: say --model, one of "
            f"{', '.join(configured.models)}"
        )
    return None

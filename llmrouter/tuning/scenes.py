"""From a checked command line to a scene: engines, parts of the traffic and their rates."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidInputError
from llmrouter.resources import LimitsSpec
from llmrouter.sim.model import EngineModel
from llmrouter.sim.setup import Setup
from llmrouter.study.bench_options import MAX_LOAD
from llmrouter.study.capacity import CAPACITY_REQUESTS, CAPACITY_SEED, capacity_of
from llmrouter.study.cells import CellSpec, build_cell, named_profile
from llmrouter.study.figures import WARM_UP_FRACTION
from llmrouter.study.predictors import Predictor, usual_predictor
from llmrouter.study.progress import make_ready, progress
from llmrouter.study.resample import resampled
from llmrouter.study.simulate_options import DEFAULT_INSTANCES, DEFAULT_LOAD, DEFAULT_PROFILE, profiled
from llmrouter.study.traces import load_trace, trace_name
from llmrouter.study.traffic import as_model
from llmrouter.tuning.windows import MOST_REQUESTS, Part, Scene, own_rate_rps, split

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from llmrouter.sim.workload import Workload
    from llmrouter.study.cells import Cell
    from llmrouter.study.configured import Configured

MOST_WINDOW_REQUESTS = 1_000_000


def scene_of(given: argparse.Namespace, configured: Configured | None, count: int | None) -> Scene:
    """The scene of a command line; reads its recording, and finds C where a load is asked for.

    Args:
        given: as ``options.parser`` parses it.
        configured: what ``--config`` says.
        count: engines in all, where ``--instances`` says so.

    Raises:
        InvalidInputError: what is asked for does not exist, contradicts itself or is too little.
    """
    _check(given)
    cell = build_cell(CellSpec(name=given.cell)) if given.cell else None
    setup = _setup(given, configured, count, cell)
    recording = _recording(given, cell)
    model = _model(given, configured, recording)
    if recording is None:
        assert cell is not None  # noqa: S101 - the parser requires one of the two
        training, held_out, history = _of_law(given, cell, setup, model)
    else:
        training, held_out, history = _of_recording(given, recording, setup, model)
    load = given.load if given.load is not None else DEFAULT_LOAD
    from_empty = cell is not None and cell.from_empty
    return Scene(
        setup=setup,
        replicas=configured.routers.routers if configured is not None else 1,
        max_in_flight=(configured.config.limits if configured is not None else LimitsSpec()).max_in_flight_per_instance,
        training=training,
        held_out=held_out,
        history=history,
        predictor=_predictor(given, configured, cell, history),
        constant_tokens=configured.constant_tokens if configured is not None and given.predictor is None else None,
        bucket_accuracy=cell.bucket_accuracy if cell is not None else {},
        model=model,
        warm_up_fraction=0.0 if from_empty or load >= 1.0 else WARM_UP_FRACTION,
    )


def _check(given: argparse.Namespace) -> None:
    if given.trace is None and (given.format is not None or given.skip_bad_lines):
        raise InvalidInputError("--format and --skip-bad-lines say how to read --trace, which is not given")
    if given.requests is not None and not 200 <= given.requests <= MOST_WINDOW_REQUESTS:  # noqa: PLR2004 - said here
        raise InvalidInputError(f"--requests must be 200 to {MOST_WINDOW_REQUESTS}, not {given.requests}")
    if given.load is not None and given.load > MAX_LOAD:
        raise InvalidInputError(f"--load must be at most {MAX_LOAD:g}, not {given.load}")


def _setup(given: argparse.Namespace, configured: Configured | None, count: int | None, cell: Cell | None) -> Setup:
    if configured is not None:
        if given.profile or count is not None:
            raise InvalidInputError("--config names the engines: change them with --instances POOL=N")
        serves = () if len(set(configured.serves)) == 1 else configured.serves
        engines = list(configured.engines)
    else:
        serves = ()
        engines = profiled(given.profile)
        if not engines and cell is not None:
            engines = list(cell.setup.engines)
        if not engines:
            engines = [EngineModel(named_profile(DEFAULT_PROFILE))] * DEFAULT_INSTANCES
        engines = [engines[i % len(engines)] for i in range(count if count is not None else len(engines))]
    if len(engines) == 1:
        raise InvalidInputError("one engine leaves no choice where to send a request: there is nothing to tune")
    caching = tuple(replace(engine, prefix_caching=given.prefix_caching) for engine in engines)
    return Setup(engines=caching, serves=serves)


def _recording(given: argparse.Namespace, cell: Cell | None) -> Workload | None:
    """The recorded requests, of a file or of a recorded cell; ``None`` where traffic follows a law."""
    if given.trace is not None:
        return load_trace(str(given.trace), given.format or "", skip_bad=given.skip_bad_lines)[0]
    return cell.history if cell is not None and cell.is_recorded else None


def _of_recording(
    given: argparse.Namespace, recording: Workload, setup: Setup, model: str | None
) -> tuple[Part, Part, Workload]:
    earlier, later = split(recording, given.held_out)
    name = trace_name(given.trace) if given.trace is not None else str(given.cell)
    if given.rate is not None or given.load is not None or given.trace is None:
        rate_rps = _rate(given, setup, lambda rps: _long(earlier, rps, model))
        rates = [rate_rps, rate_rps]
    else:
        rates = [own for part in (earlier, later) if (own := own_rate_rps(part)) is not None]
        if len(rates) < 2:  # noqa: PLR2004 - both parts
            raise InvalidInputError(f"{given.trace} has no rate of its own: say --rate or --load")
    training, held_out = (
        Part(
            name=f"the {words} {len(part):,} of {len(recording):,} requests of {name}",
            rate_rps=rate_rps,
            requests=min(given.requests or MOST_REQUESTS, len(part)),
            recording=part,
        )
        for words, part, rate_rps in (("first", earlier, rates[0]), ("last", later, rates[1]))
    )
    return training, held_out, earlier


def _long(recording: Workload, rate_rps: float, model: str | None) -> Workload:
    requests = resampled(recording, rate_rps, CAPACITY_REQUESTS, CAPACITY_SEED)
    return as_model(requests, model) if model is not None else requests


def _of_law(given: argparse.Namespace, cell: Cell, setup: Setup, model: str | None) -> tuple[Part, Part, Workload]:
    def long_at(rate_rps: float) -> Workload:
        requests = cell.workload_at(rate_rps, CAPACITY_REQUESTS, CAPACITY_SEED)
        return as_model(requests, model) if model is not None else requests

    own = cell.rate_rps is not None and given.rate is None and given.load is None
    rate_rps = cell.rate_rps if own and cell.rate_rps is not None else _rate(given, setup, long_at)
    count = given.requests or min(cell.requests, MOST_REQUESTS)
    part = Part(name=f"{cell.spec.name}, training seeds", rate_rps=rate_rps, requests=count, cell=cell.spec)
    return part, replace(part, name=f"{cell.spec.name}, selection seeds"), cell.history


def _rate(given: argparse.Namespace, setup: Setup, long_at: Callable[[float], Workload]) -> float:
    if given.rate is not None:
        return float(given.rate)
    make_ready()
    with progress("capacity", 1, unit="search") as advance:
        full_rps = capacity_of(setup, long_at)
        advance(1)
    return float((given.load if given.load is not None else DEFAULT_LOAD) * full_rps)


def _predictor(
    given: argparse.Namespace, configured: Configured | None, cell: Cell | None, history: Workload
) -> Predictor:
    if given.predictor is not None:
        return Predictor(given.predictor)
    if configured is not None:
        return Predictor.FOREST
    return cell.predictor if cell is not None else usual_predictor(history)


def _model(given: argparse.Namespace, configured: Configured | None, recording: Workload | None) -> str | None:
    """What all requests ask for; ``None`` where it makes no difference or the requests say it themselves."""
    differ = configured is not None and len(set(configured.serves)) > 1
    if configured is None or not differ:
        if given.model is not None:
            raise InvalidInputError(
                "--model chooses among pools of --config that serve different models: there are none"
            )
        return None
    if given.model is not None and given.model not in configured.models:
        raise InvalidInputError(f"--model {given.model!r} is none of {', '.join(configured.models)}")
    unknown = sorted(set(recording.models if recording is not None else ("",)) - set(configured.models))
    if given.model is None and unknown:
        raise InvalidInputError(
            f"the pools of --config serve different models and requests ask for {unknown[0]!r}: say --model, one of "
            f"{', '.join(configured.models)}"
        )
    return str(given.model) if given.model is not None else None

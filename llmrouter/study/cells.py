"""The cells of the protocol as studies run them: built by any process from a specification alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.arrivals import cells as arrivals_cells
from llmrouter.errors import InvalidInputError
from llmrouter.profiles import PROFILES
from llmrouter.sim.model import EngineModel
from llmrouter.sim.setup import RouterSide, Setup
from llmrouter.study.figures import WARM_UP_FRACTION
from llmrouter.study.predictors import Predictor, usual_predictor
from llmrouter.study.resample import resampled
from llmrouter.study.traces import load_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmrouter.domain import EngineProfile
    from llmrouter.sim.workload import Workload

MAX_INSTANCES = 1_024
MAX_REQUESTS = 5_000_000
TRACE_REQUESTS = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A cell of ``arrivals.cells`` under another setting.

    Attributes:
        of: the cell whose traffic and engine it has.
        description: one line.
        requests: of one run; ``None`` leaves the cell's.
        profiles: one engine each; empty leaves the cell's.
        rate_rps: where there is one rate instead of fractions of capacity.
        from_empty: where nothing is dropped as warm-up, whatever the load.
        decision_every_s: see ``RouterSide``.
        predictor: who predicts where nobody else is asked for.
    """

    of: str
    description: str
    requests: int | None = None
    profiles: tuple[str, ...] = ()
    rate_rps: float | None = None
    from_empty: bool = False
    decision_every_s: float = 0.0
    predictor: Predictor = Predictor.TASK_MEAN


KINDS = {
    "paper-v100": Variant(
        of="paper-v100", description="five short tasks on four V100, prefill-first", predictor=Predictor.BUCKET
    ),
    "h100-mix": Variant(of="h100-mix", description="chat, RAG, code, classification, reasoning on four H100, chunked"),
    "h100-prod": Variant(of="h100-prod", description="long prompts, short answers on four H100, chunked"),
    "azure": Variant(of="azure", description="a real trace of code and conversation on four H100, chunked"),
    "paper-own": Variant(
        of="paper-v100",
        description="the paper's own run: 2,000 requests, 20 a second, from empty, a decision every 20 ms",
        requests=2_000,
        rate_rps=20.0,
        from_empty=True,
        decision_every_s=0.02,
        predictor=Predictor.BUCKET,
    ),
    "azure-unequal": Variant(
        of="azure",
        description="the same trace on four RTX 4090 and four RTX PRO 6000",
        profiles=("llama-3.1-8b-rtx4090",) * 4 + ("llama-3.1-8b-rtx-pro-6000",) * 4,
    ),
}
DEFAULT_CELLS = ("paper-v100", "h100-mix", "h100-prod", "azure", "paper-own")
QUICK_CELLS = ("paper-v100", "h100-mix", "azure")


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSpec:
    """A cell and all that is changed about it: enough for any process to build it.

    Attributes:
        name: of ``KINDS``, or of the trace's cell.
        instances: how many engines; ``None`` leaves the cell's.
        profiles: of the engines, repeated in turn; empty leaves the cell's.
        slow_factor: every step of the last engine takes this many times as long.
        cv: coefficient of variation of the gaps between generated arrivals; 1 is Poisson.
        requests: of one run; ``None`` leaves the cell's.
        routers: the router side; its ``decision_every_s`` of 0 leaves the cell's.
        trace, trace_format: a file with its own requests; empty where the cell has its own.
        skip_bad: whether lines that cannot be used are left out.
        prefix_caching: whether engines keep the KV of prompts for later ones.
    """

    name: str
    instances: int | None = None
    profiles: tuple[str, ...] = ()
    slow_factor: float = 1.0
    cv: float = 1.0
    requests: int | None = None
    routers: RouterSide = RouterSide()  # noqa: RUF009 - frozen
    trace: str = ""
    trace_format: str = ""
    skip_bad: bool = False
    prefix_caching: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell that can be run.

    Attributes:
        spec: what it was built from.
        description: one line.
        setup: engines and routers.
        requests: of one run.
        workload_at: a rate, a number of requests and a seed to a workload without predictions.
        history: what predictors may learn from.
        is_recorded: whether the requests are those of a trace.
        predictor: who predicts where nobody else is asked for.
        bucket_accuracy: of the paper's classifier, by application, where the paper says so.
        rate_rps: where the cell has one rate instead of fractions of capacity.
        from_empty: whether nothing is dropped as warm-up.
        published_capacity_rps: C as published with the cell, where nothing that decides it is changed.
        skipped: lines of the trace that were left out, in words; empty where none was.
    """

    spec: CellSpec
    description: str
    setup: Setup
    requests: int
    workload_at: Callable[[float, int, int], Workload]
    history: Workload
    is_recorded: bool
    predictor: Predictor
    bucket_accuracy: Mapping[str, float]
    rate_rps: float | None = None
    from_empty: bool = False
    published_capacity_rps: float | None = None
    skipped: str = ""

    def warm_up_fraction(self, load: float) -> float:
        """Share of a run's requests that is not measured at this fraction of capacity."""
        return 0.0 if self.from_empty or load >= 1.0 else WARM_UP_FRACTION


@functools.lru_cache(maxsize=32)
def build_cell(spec: CellSpec) -> Cell:
    """The cell of a specification.

    Raises:
        InvalidInputError: no such cell, profile or trace, or a number out of its bounds.
    """
    if not spec.trace and spec.name not in KINDS:
        raise InvalidInputError(f"no cell {spec.name!r}; there is: {', '.join(KINDS)}")
    if spec.requests is not None and not 1 <= spec.requests <= MAX_REQUESTS:
        raise InvalidInputError(f"--requests must be 1 to {MAX_REQUESTS}, not {spec.requests}")
    return _trace_cell(spec) if spec.trace else _known_cell(spec, KINDS[spec.name])


def slowed(profile: EngineProfile, factor: float) -> EngineProfile:
    """The same engine with every step ``factor`` times as long, which its name says; raises InvalidInputError."""
    if not (np.isfinite(factor) and factor > 0):
        raise InvalidInputError(f"--slow-instance must be positive and finite, not {factor}")
    return replace(profile.slower(factor), name=f"{profile.name}-times-{factor:g}")


def named_profile(name: str) -> EngineProfile:
    """A shipped profile; raises InvalidInputError listing those there are."""
    if name not in PROFILES:
        raise InvalidInputError(f"no profile {name!r}; there is: {', '.join(sorted(PROFILES))}")
    return PROFILES[name]


def bucket_accuracies(source: arrivals_cells.Cell) -> dict[str, float]:
    """How often the paper's classifier names the right bucket, by application, where the paper says so."""
    return {one.name: one.bucket_accuracy for one in source.classes if one.bucket_accuracy is not None}


def _known_cell(spec: CellSpec, kind: Variant) -> Cell:
    source = arrivals_cells.cell(kind.of)
    own = [EngineModel(named_profile(name)) for name in kind.profiles] or [source.engine] * source.instances
    history = source.history()
    recorded = not source.classes
    if recorded and spec.cv != 1.0:
        raise InvalidInputError(f"--cv changes generated arrivals; those of {spec.name} are recorded")
    if not (np.isfinite(spec.cv) and 0 <= spec.cv <= 100):  # noqa: PLR2004 - said here
        raise InvalidInputError(f"--cv must be 0 to 100, not {spec.cv}")
    unchanged = not spec.profiles and spec.instances is None and spec.slow_factor == 1.0 == spec.cv and not recorded
    return Cell(
        spec=spec,
        description=kind.description,
        setup=_setup(spec, own, kind.decision_every_s),
        requests=spec.requests or kind.requests or source.requests,
        workload_at=functools.partial(resampled, history) if recorded else _generated(source, spec.cv),
        history=history,
        is_recorded=recorded,
        predictor=kind.predictor,
        bucket_accuracy=bucket_accuracies(source),
        rate_rps=kind.rate_rps,
        from_empty=kind.from_empty,
        published_capacity_rps=source.capacity_rps if unchanged and not kind.profiles else None,
    )


def _trace_cell(spec: CellSpec) -> Cell:
    trace, skipped = load_trace(spec.trace, spec.trace_format, skip_bad=spec.skip_bad)
    if spec.cv != 1.0:
        raise InvalidInputError("--cv changes generated arrivals; those of --trace are recorded")
    own = [EngineModel(named_profile("h100-mix"))] * 4
    return Cell(
        spec=spec,
        description=Path(spec.trace).name,
        setup=_setup(spec, own, 0.0),
        requests=spec.requests or min(TRACE_REQUESTS, len(trace)),
        workload_at=functools.partial(resampled, trace),
        history=trace,
        is_recorded=True,
        predictor=usual_predictor(trace),
        bucket_accuracy={},
        skipped=str(skipped) if skipped.total else "",
    )


def _generated(source: arrivals_cells.Cell, cv: float) -> Callable[[float, int, int], Workload]:
    return lambda rate_rps, count, seed: source.workload(rate_rps, count, seed, cv=cv)


def _setup(spec: CellSpec, own: list[EngineModel], decision_every_s: float) -> Setup:
    engines = [EngineModel(named_profile(name)) for name in spec.profiles] or own
    count = spec.instances if spec.instances is not None else max(len(own), len(spec.profiles))
    if not 1 <= count <= MAX_INSTANCES:
        raise InvalidInputError(f"--instances must be 1 to {MAX_INSTANCES}, not {count}")
    chosen = [engines[i % len(engines)] for i in range(count)]
    if spec.slow_factor != 1.0:
        chosen[-1] = replace(chosen[-1], profile=slowed(chosen[-1].profile, spec.slow_factor))
    chosen = [replace(engine, prefix_caching=spec.prefix_caching) for engine in chosen]
    every_s = spec.routers.decision_every_s or decision_every_s
    return Setup(engines=tuple(chosen), routers=replace(spec.routers, decision_every_s=every_s))

"""The windows that a tuning runs on: traffic of other seeds, or parts of a recording, the later one held out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.arrivals.transform import first_turns, take
from llmrouter.errors import InvalidInputError
from llmrouter.study.cells import build_cell
from llmrouter.study.predictors import predicted
from llmrouter.study.resample import resampled
from llmrouter.study.seeds import SELECTION, TRAINING
from llmrouter.study.traffic import as_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.sim.setup import Setup
    from llmrouter.sim.workload import Workload
    from llmrouter.study.cells import CellSpec
    from llmrouter.study.predictors import Predictor

LEAST_REQUESTS = 1_000
"""A recording with fewer has no tail to speak of in its held-out part."""

HELD_OUT_FRACTION = 0.3
MOST_REQUESTS = 4_000
"""Length of a window where nobody says: longer ones cost time and tell little more."""

_ORDER = 0x7475
"""The random stream of the order of training seeds."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Requests that windows are drawn from, by any process.

    Attributes:
        name: for people.
        rate_rps: of the windows.
        requests: of each.
        cell: a cell of the benchmark, whose windows are traffic of other seeds; or ``None`` …
        recording: … and what was recorded, from which windows are resampled.
    """

    name: str
    rate_rps: float
    requests: int
    cell: CellSpec | None = None
    recording: Workload | None = None

    @property
    def window_share(self) -> float:
        """Length of a window over that of the recording; 0 where windows are new traffic."""
        return self.requests / len(self.recording) if self.recording is not None else 0.0

    def window(self, seed: int) -> Workload:
        """The requests of one window, without predictions."""
        if self.recording is not None:
            return resampled(self.recording, self.rate_rps, self.requests, seed)
        assert self.cell is not None  # noqa: S101 - one of the two is set
        return build_cell(self.cell).workload_at(self.rate_rps, self.requests, seed)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """Everything about a tuning but the policies: what any process needs to run one on a window.

    Attributes:
        setup: engines, and what they serve; its router side is each policy's own.
        replicas: routers.
        max_in_flight: bound of requests on an instance where KV is not bounded.
        training, held_out: see ``Part``.
        history: what predictors may learn from; nothing held out is in it.
        predictor: who predicts output lengths …
        constant_tokens: … or what every answer is expected to have.
        bucket_accuracy: of the paper's classifier, by application.
        model: what every request asks for, where engines differ in what they serve.
        warm_up_fraction: share of a window's requests that is not measured.
    """

    setup: Setup
    replicas: int
    max_in_flight: int
    training: Part
    held_out: Part
    history: Workload
    predictor: Predictor
    constant_tokens: float | None = None
    bucket_accuracy: Mapping[str, float] = field(default_factory=dict)
    model: str | None = None
    warm_up_fraction: float = 0.0

    def window(self, part: Part, seed: int) -> Workload:
        """The requests of one window as routers see them."""
        requests = part.window(seed)
        if self.model is not None:
            requests = as_model(requests, self.model)
        if self.constant_tokens is not None:
            return requests.with_predictions(np.full(len(requests), float(self.constant_tokens)))
        return predicted(requests, self.predictor, self.history, seed=seed, bucket_accuracy=self.bucket_accuracy)


def split(trace: Workload, held_out_fraction: float) -> tuple[Workload, Workload]:
    """The earlier and the later part of a recording, each beginning at 0; sessions stay whole.

    Raises:
        InvalidInputError: there are too few requests, or too few sessions.
    """
    if len(trace) < LEAST_REQUESTS:
        raise InvalidInputError(f"{len(trace)} requests are too few to tune on: it takes {LEAST_REQUESTS:,}")
    roots, sizes = np.unique(first_turns(trace), return_counts=True)
    cut = int(np.searchsorted(np.cumsum(sizes), (1.0 - held_out_fraction) * len(trace), "right"))
    if not 0 < cut < len(roots):
        raise InvalidInputError(f"{len(roots)} sessions are too few to hold some out")
    root_N = first_turns(trace)
    earlier_N = root_N < roots[cut]
    return _part(trace, earlier_N), _part(trace, ~earlier_N)


def training_seeds(seed: int) -> list[int]:
    """Seeds of training windows of a tuning, all of the training block in an order of its own."""
    order = np.random.default_rng((seed, _ORDER)).permutation(TRAINING.last - TRAINING.first + 1)
    return [TRAINING.first + int(place) for place in order]


def held_out_seeds(seed: int, count: int) -> range:
    """Seeds of held-out windows, of the selection block: others for another tuning as long as there are others."""
    places = (SELECTION.last - SELECTION.first + 1) // count
    first = SELECTION.first + seed % places * count
    return range(first, first + count)


def own_rate_rps(recording: Workload) -> float | None:
    """Requests a second of a recording; ``None`` where it has no clock."""
    begins_s = recording.arrived_at_s[recording.after < 0]
    span_s = float(begins_s.max() - begins_s.min())
    return len(recording) / span_s if span_s > 0 and math.isfinite(span_s) else None


def _part(trace: Workload, chosen_N: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Workload:
    part = take(trace, np.flatnonzero(chosen_N))
    begins_s = float(part.arrived_at_s[part.after < 0].min())
    return replace(part, arrived_at_s=np.maximum(part.arrived_at_s - begins_s, 0.0))

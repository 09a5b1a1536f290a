"""The paper's cells: engines, router, requests and rate, as printed; what is not printed is in ``assumptions.py``."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bench.paper import assumptions, printed
from bench.paper.routes import CLASSICAL, REFERENCES, SHORT_REFERENCES, Lengths
from llmrouter.arrivals import predictions
from llmrouter.arrivals.cells import Cell, cell
from llmrouter.domain import EngineMode
from llmrouter.profiles import PROFILES
from llmrouter.sim.model import EngineModel, QueueOrder
from llmrouter.sim.setup import RouterSide, Setup

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.domain import EngineProfile
    from llmrouter.sim.workload import Workload

PREDICTOR_STREAM = 77
"""Purpose number of the bucket predictor's random stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperCell:
    """One setting of the paper.

    Attributes:
        name: key of the JSON.
        title: heading of the table.
        source: cell of the benchmark whose lengths are drawn.
        engine: each of the instances.
        instances: how many.
        requests: of an episode.
        rate_rps: mean arrivals per second.
        tick_s: seconds between two actions of the router.
        cv: coefficient of variation of the gaps.
        routes: names of ``ROUTES``.
        printed_s: makespans the paper prints.
        printed_pct: changes of the makespan against round-robin the paper prints.
    """

    name: str
    title: str
    source: Cell
    engine: EngineModel
    instances: int = 4
    requests: int = 2_000
    rate_rps: float = 20.0
    tick_s: float = assumptions.V100_TICK_S
    cv: float = 1.0
    routes: tuple[str, ...] = CLASSICAL + REFERENCES
    printed_s: Mapping[str, tuple[float, float]]
    printed_pct: Mapping[str, float]

    @property
    def setup(self) -> Setup:
        """Its engines behind one router."""
        return Setup(engines=(self.engine,) * self.instances, routers=RouterSide(decision_every_s=self.tick_s))

    def workload(self, seed: int, lengths: Lengths) -> Workload:
        """The requests of an episode with what the route is told of their outputs."""
        made = self.source.workload(self.rate_rps, self.requests, seed, cv=self.cv)
        if lengths is Lengths.TRUE:
            return made.with_predictions(predictions.oracle(made))
        rng = np.random.default_rng((seed, PREDICTOR_STREAM))
        return made.with_predictions(predictions.paper_bucket(made, rng, bucket_classifier(self.source)))

    def with_profile(self, profile: EngineProfile) -> PaperCell:
        """The same cell on engines of another profile."""
        return replace(self, engine=replace(self.engine, profile=profile))


@functools.cache
def bucket_classifier(source: Cell) -> predictions.BucketClassifier:
    """The paper's predictor as its printed accuracies describe it; a bucket stands for its mean length."""
    accuracy = {one.name: one.bucket_accuracy for one in source.classes if one.bucket_accuracy is not None}
    return predictions.BucketClassifier(accuracy=accuracy, values=predictions.bucket_values(source.history()))


def main_cell() -> PaperCell:
    """Four V100, Llama-2-7b, 2,000 requests at 20 a second."""
    source = cell("paper-v100")
    return PaperCell(
        name="v100-4",
        title="4 x V100, Llama-2-7b, 2,000 requests at 20/s",
        source=source,
        engine=source.engine,
        printed_s={"RoundRobin": printed.V100_ROUND_ROBIN_S},
        printed_pct=printed.V100_MAKESPAN_PCT,
    )


def eight_instances() -> PaperCell:
    """Eight of them, 4,000 requests at 40 a second."""
    return replace(
        main_cell(),
        name="v100-8",
        title="8 x V100, Llama-2-7b, 4,000 requests at 40/s",
        instances=8,
        requests=4_000,
        rate_rps=40.0,
        printed_s={},
        printed_pct=printed.V100_8_MAKESPAN_PCT,
    )


def a100_profile(mode: EngineMode, token_budget: int) -> EngineProfile:
    """Llama-3 8B on an A100 with the paper's maximum batch."""
    return replace(
        PROFILES["llama-3-8b-a100"], max_sequences=128, mode=mode, token_budget=token_budget, name="llama-3-8b-a100"
    )


def a100() -> PaperCell:
    """Four A100, Llama-3.1-8B, 80 requests a second."""
    seconds = printed.A100_MAKESPAN_S
    return replace(
        main_cell(),
        name="a100-4",
        title=f"4 x A100, Llama-3.1-8B, {assumptions.A100_REQUESTS:,} requests at 80/s",
        engine=EngineModel(a100_profile(EngineMode.PREFILL_FIRST, 4_096)),
        requests=assumptions.A100_REQUESTS,
        rate_rps=80.0,
        tick_s=assumptions.A100_TICK_S,
        routes=CLASSICAL + SHORT_REFERENCES,
        printed_s={"RoundRobin": (seconds["RoundRobin"],) * 2},
        printed_pct=printed.percent_of(seconds),
    )


def a100_chunked() -> PaperCell:
    """The same with chunked prefill."""
    seconds = printed.A100_CHUNKED_MAKESPAN_S
    base = a100()
    return replace(
        base,
        name="a100-4-chunked",
        title=base.title + ", chunked prefill",
        engine=EngineModel(a100_profile(EngineMode.CHUNKED, assumptions.A100_CHUNK_TOKENS)),
        printed_s={"RoundRobin": (seconds["RoundRobin"],) * 2},
        printed_pct=printed.percent_of(seconds),
    )


def production() -> PaperCell:
    """The production trace: long prompts, short answers, 80 requests a second."""
    seconds = printed.PRODUCTION_MAKESPAN_S
    return replace(
        a100(),
        name="production",
        title="production trace: 4 x A100, Llama-3.1-8B, 1,024-token chunks, 4,000 requests at 80/s",
        source=cell("h100-prod"),
        engine=EngineModel(a100_profile(EngineMode.CHUNKED, 1_024)),
        requests=4_000,
        printed_s={"RoundRobin": (seconds["RoundRobin"],) * 2},
        printed_pct=printed.percent_of(seconds),
    )


def all_cells() -> tuple[PaperCell, ...]:
    """The five cells of four and eight instances."""
    return main_cell(), eight_instances(), a100(), a100_chunked(), production()


def ordered_cells() -> dict[QueueOrder, PaperCell]:
    """The main cell under every in-engine order."""
    base = main_cell()
    return {
        order: replace(base, name=f"v100-4 {order.value}", engine=replace(base.engine, queue_order=order))
        for order in QueueOrder
    }

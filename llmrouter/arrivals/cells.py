"""The cells of the benchmark: engines, a law of requests, a published capacity.

``paper-v100``, ``h100-mix`` and ``h100-prod`` are synthetic; ``azure`` replays windows of the packaged trace;
``trace_cell`` makes one of any recorded workload.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib import resources
from typing import TYPE_CHECKING

from llmrouter.arrivals.laws import Law, LengthClass, SyntheticLaw, TraceLaw
from llmrouter.arrivals.readers import read
from llmrouter.errors import InvalidInputError
from llmrouter.profiles import H100_MIX, PAPER_V100
from llmrouter.sim.model import EngineModel
from llmrouter.sim.setup import Setup

if TYPE_CHECKING:
    from llmrouter.sim.workload import Workload

CELL_NAMES = ("paper-v100", "h100-mix", "h100-prod", "azure")

HISTORY_SEED = 1_000_003
"""The seed of the requests that predictors learn from: no run of a benchmark may use it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A setting in which policies are compared.

    Attributes:
        name: of the cell.
        engine: each of the instances.
        instances: how many.
        requests: of a run.
        capacity_rps: C of ``instances`` engines as published with the cell; ``None`` where nobody measured it.
        warm_fraction: share of the first requests that a run below C leaves out of its figures.
        law: where the requests come from.
    """

    name: str
    engine: EngineModel
    requests: int
    law: Law
    capacity_rps: float | None
    instances: int = 4
    warm_fraction: float = 0.2

    @property
    def classes(self) -> tuple[LengthClass, ...]:
        """The classes of a synthetic cell; none of a recorded one."""
        return self.law.classes if isinstance(self.law, SyntheticLaw) else ()

    @property
    def setup(self) -> Setup:
        """The cell's engines behind one router that sees everything at once."""
        return Setup(engines=(self.engine,) * self.instances)

    def workload(self, rate_rps: float, count: int | None = None, seed: int = 0, *, cv: float = 1.0) -> Workload:
        """``count`` requests (those of a run) at a rate; unpredicted.

        The same seed at another rate gives the same requests with all gaps scaled.

        Args:
            rate_rps: mean requests per second.
            count: requests; ``None`` takes ``requests``.
            seed: chooses gaps, classes, prompts and outputs, each by a stream of its own.
            cv: coefficient of variation of the gaps of a synthetic cell: gamma where it is not 1.

        Raises:
            InvalidInputError: a bound is broken.
        """
        made = self.law.workload(rate_rps, self.requests if count is None else count, seed, cv=cv)
        return replace(made, name=self.name)

    def history(self, count: int = 20_000) -> Workload:
        """Requests that predictors may learn from. Of a recorded cell they are the trace that runs are cut from."""
        if isinstance(self.law, TraceLaw):
            return self.law.trace
        return self.workload(1.0, count, HISTORY_SEED)


def cell(name: str) -> Cell:
    """A cell by its name.

    Raises:
        InvalidInputError: there is no such cell; the message lists those there are.
    """
    if name == "azure":
        return azure()
    if (found := _SYNTHETIC.get(name)) is not None:
        return found
    raise InvalidInputError(f"no cell {name!r}: there are {', '.join(CELL_NAMES)}")


def azure() -> Cell:
    """Windows of the packaged trace of Azure's code and conversation services on ``h100-mix`` engines."""
    path = resources.files("llmrouter") / "testbed" / "data" / "azure_llm_2023_excerpt.csv.gz"
    with resources.as_file(path) as file:
        trace, _ = read(file)
    return trace_cell("azure", trace, EngineModel(H100_MIX), requests=4_000)


def trace_cell(
    name: str,
    trace: Workload,
    engine: EngineModel,
    *,
    requests: int | None = None,
    capacity_rps: float | None = None,
    instances: int = 4,
) -> Cell:
    """A cell of a recorded trace; a run takes ``requests`` of it, all where that is not said."""
    return Cell(
        name=name,
        engine=engine,
        requests=requests or len(trace),
        law=TraceLaw(trace),
        capacity_rps=capacity_rps,
        instances=instances,
    )


def _paper_class(
    name: str, samples: int, prompt: tuple[float, float], output: tuple[float, float], accuracy: float
) -> LengthClass:
    """A class of the paper's Table 1: prompts by their mean and σ (μ = ln mean − σ²/2), outputs by fitted μ and σ."""
    mean, sigma = prompt
    return LengthClass(
        name=name,
        weight=samples,
        prompt_mu=math.log(mean) - sigma**2 / 2,
        prompt_sigma=sigma,
        output_mu=output[0],
        output_sigma=output[1],
        bucket_accuracy=accuracy,
    )


def _mix_class(name: str, share: float, prompt: tuple[float, float], output: tuple[float, float]) -> LengthClass:
    """A class by the medians and σ of its lengths."""
    return LengthClass(
        name=name,
        weight=share,
        prompt_mu=math.log(prompt[0]),
        prompt_sigma=prompt[1],
        output_mu=math.log(output[0]),
        output_sigma=output[1],
    )


_PAPER = SyntheticLaw(
    classes=(
        _paper_class("translation", 7_351, (29.09, 0.50), (3.606, 1.020), 0.9310),
        _paper_class("question", 6_988, (29.83, 0.45), (5.256, 1.420), 0.7036),
        _paper_class("sentiment", 6_564, (211.54, 0.60), (4.863, 0.440), 0.7992),
        _paper_class("reading", 7_122, (125.16, 0.45), (4.908, 1.065), 0.6527),
        _paper_class("entities", 3_304, (26.41, 0.40), (3.787, 0.865), 0.9506),
    ),
    prompt_clip=(4, 1_000),
    output_clip=(1, 1_024),
)
"""Five tasks with the weights, means and shares of long answers of Table 1 of arXiv 2408.13510 v2."""

_MIX = SyntheticLaw(
    classes=(
        _mix_class("chat", 0.45, (350, 0.9), (220, 0.8)),
        _mix_class("rag", 0.25, (3_500, 0.6), (140, 0.7)),
        _mix_class("code", 0.15, (1_500, 0.8), (350, 0.9)),
        _mix_class("classify", 0.10, (500, 0.7), (8, 0.5)),
        _mix_class("reasoning", 0.05, (300, 0.7), (1_400, 0.6)),
    ),
    prompt_clip=(8, 16_384),
    output_clip=(1, 4_096),
)

_PROD = SyntheticLaw(
    classes=tuple(
        LengthClass(
            name=f"production-{number}",
            weight=0.2,
            prompt_mu=math.log(5_526) - 0.5,
            prompt_sigma=1.0,
            output_mu=output_mu,
            output_sigma=0.75,
        )
        for number, output_mu in enumerate((3.2, 3.8, 4.2, 4.6, 4.9), start=1)
    ),
    prompt_clip=(16, 30_000),
    output_clip=(1, 2_048),
    output_mean_tokens=112.7,
)
"""Lengths of the paper's production trace: mean prompt 5,526, mean output 112.7."""

_SYNTHETIC = {
    one.name: one
    for one in (
        Cell(name="paper-v100", engine=EngineModel(PAPER_V100), requests=4_000, law=_PAPER, capacity_rps=13.5),
        Cell(name="h100-mix", engine=EngineModel(H100_MIX), requests=8_000, law=_MIX, capacity_rps=43.5),
        Cell(name="h100-prod", engine=EngineModel(H100_MIX), requests=4_000, law=_PROD, capacity_rps=22.5),
    )
}

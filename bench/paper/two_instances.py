"""The two-instance study: four orders of arrival of light and heavy requests, three routes, three in-engine orders."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bench.paper import assumptions, printed
from bench.paper.play import BASE, Row, compared, figures
from bench.paper.routes import ROUTES
from llmrouter.arrivals import generators
from llmrouter.profiles import PROFILES
from llmrouter.sim.model import EngineModel, QueueOrder
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import RouterSide, Setup
from llmrouter.sim.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

REQUESTS = 3_000
FOUR_ALIKE = 0.5
ROUTES_HERE = (BASE, "Dedicated", "DecodeBalancer")

_ARRIVALS, _CLASSES = 1, 2
"""Random streams of a scenario."""


def heavy(scenario: int, count: int, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which requests have a heavy prompt, and which a heavy decode; scenarios in the order of ``printed.SCENARIOS``."""
    rng = np.random.default_rng((seed, _CLASSES))
    share = assumptions.HEAVY_DECODE_SHARE
    if scenario == 0:
        decode = rng.random(count) < share
    elif scenario == 1:
        return rng.random(count) < FOUR_ALIKE, rng.random(count) < FOUR_ALIKE
    else:
        decode = np.arange(count) < round(share * count)
    if scenario == 3:  # noqa: PLR2004 - HL first
        decode = decode[::-1]
    return ~decode, decode


def workload(scenario: int, seed: int, count: int = REQUESTS) -> Workload:
    """The requests of a scenario, with their true lengths told."""
    prompt, decode = heavy(scenario, count, seed)
    outputs = np.where(decode, assumptions.HEAVY_OUTPUT_TOKENS, assumptions.LIGHT_OUTPUT_TOKENS)
    return Workload.of(
        generators.poisson(assumptions.TWO_INSTANCE_RPS, count, np.random.default_rng((seed, _ARRIVALS))),
        np.where(prompt, assumptions.HEAVY_PROMPT_TOKENS, assumptions.LIGHT_PROMPT_TOKENS),
        outputs,
        predicted_output_tokens=outputs,
        name=printed.SCENARIOS[scenario],
    )


def setup(order: QueueOrder) -> Setup:
    """Two V100 engines that admit in an order."""
    engine = replace(EngineModel(PROFILES["paper-v100"]), queue_order=order)
    return Setup(engines=(engine,) * 2, routers=RouterSide(decision_every_s=assumptions.V100_TICK_S))


def runs(seeds: Sequence[int]) -> int:
    """How many episodes the study takes."""
    return len(QueueOrder) * len(printed.SCENARIOS) * len(ROUTES_HERE) * len(seeds)


def study(
    seeds: Sequence[int], count: int = REQUESTS, on_done: Callable[[int], None] = lambda _done: None
) -> dict[str, list[list[Row]]]:
    """By in-engine order, for every scenario: a row for each route."""
    return {
        order.value: [
            _rows(order, scenario, seeds, count, on_done=on_done) for scenario in range(len(printed.SCENARIOS))
        ]
        for order in QueueOrder
    }


def _rows(
    order: QueueOrder, scenario: int, seeds: Sequence[int], count: int, *, on_done: Callable[[int], None]
) -> list[Row]:
    made: dict[str, list[dict[str, float]]] = {route: [] for route in ROUTES_HERE}
    for seed in seeds:
        requests = workload(scenario, seed, count)
        for route in ROUTES_HERE:
            made[route].append(figures(simulate(setup(order), requests, ROUTES[route].make(), seed=seed)))
            on_done(1)
    return compared(made)

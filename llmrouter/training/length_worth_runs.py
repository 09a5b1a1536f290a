"""The runs behind what a prediction is worth: every policy with every column, on the same requests, seed by seed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.routing.orders import DEFAULT_AGING_S, ORDERS
from llmrouter.routing.rules import Rule
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy
from llmrouter.study.alone import alone_on_best_s
from llmrouter.study.capacity import CAPACITY_REQUESTS, CAPACITY_SEED, capacity_of
from llmrouter.study.contenders import CONTENDERS, DEFAULT, MAX_REQUESTS
from llmrouter.study.figures import WARM_UP_FRACTION, Slo, figures
from llmrouter.training.length_worth_columns import QUANTILES, Column, columns_of, quality
from llmrouter.training.length_worth_traffic import drawn

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from llmrouter.lengths.predictor import LengthPredictor, LengthRequest
    from llmrouter.routing.policies import Policy
    from llmrouter.sim.setup import Setup
    from llmrouter.sim.workload import Workload
    from llmrouter.training.length_worth_columns import Said
    from llmrouter.training.length_worth_traffic import Population

Figures = dict[str, float | None]
"""Of one run, by name: see ``study/figures.py``."""

REFERENCE = "LeastInFlight"
"""Looks at no prediction: in its run an answer is there to be learned when it ends."""

PLACING = tuple(column for column in Column if column not in QUANTILES)
RANKED = (Column.TASK_MEAN, Column.APPLICATION, Column.OURS, Column.ORACLE)
RESERVING = (Column.NONE, Column.TASK_MEAN, Column.OURS, *QUANTILES, Column.ORACLE, Column.NOISE_2)
RESERVES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6)
"""Shares of the predicted tokens to come that are counted against KV now; the product's is 0.15.

So fine because a larger prediction at a share is much like a smaller one at a larger share.
"""

FIRST_COME = "FirstComeFirstServed"
SHORTEST, RANK = "ShortestPredicted", "PredictedRank"
LEAST_RANK = 1e-6


class Block(StrEnum):
    """What a prediction is used for: where a request goes, who of the held ones goes next, how much KV is reserved."""

    PLACEMENT = "placement"
    ORDER = "order"
    RESERVE = "reserve"


@dataclass(frozen=True, slots=True)
class Way:
    """A policy, an order, and the columns it is run with."""

    block: Block
    name: str
    make: Callable[[], Policy | CompiledPolicy]
    columns: tuple[Column, ...]
    order: str = FIRST_COME


@dataclass(frozen=True, slots=True)
class Key:
    """A run but for its seed."""

    block: Block
    load: float
    way: str
    column: Column


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is run: ``history`` answers before each run of ``requests``; ``read`` are requests with the model's law."""

    population: Population
    read: Sequence[LengthRequest]
    model: LengthPredictor
    setup: Setup
    loads: tuple[float, ...]
    seeds: range
    history: int
    requests: int
    blocks: tuple[Block, ...] = tuple(Block)


@dataclass(frozen=True, slots=True)
class Runs:
    """Figures of every run, one for each seed; how good each column was, seed by seed; and C."""

    capacity_rps: float
    figures: dict[Key, list[Figures]]
    quality: list[dict[str, dict[str, float]]]


def capacity(study: Study) -> float:
    """C: the highest rate that round-robin sustains with this traffic, as benchmarks find it."""
    long_run = drawn(study.population, history=0, requests=CAPACITY_REQUESTS, seed=CAPACITY_SEED)
    return capacity_of(study.setup, long_run.workload)


def ways(blocks: Collection[Block]) -> tuple[Way, ...]:
    """All that is run in these blocks. ``REFERENCE`` and RoundRobin look at no prediction: they have one column."""
    unheld = CompiledPolicy(rule=Rule.MARGINAL_COST, max_requests=MAX_REQUESTS)
    default = CONTENDERS[DEFAULT].make
    every = (
        Way(Block.PLACEMENT, DEFAULT, default, PLACING),
        Way(Block.PLACEMENT, f"{DEFAULT}, no hold", lambda: unheld, PLACING),
        *(Way(Block.PLACEMENT, name, CONTENDERS[name].make, PLACING) for name in ("OwnLatency", "LeastTokensLeft")),
        *(Way(Block.PLACEMENT, name, CONTENDERS[name].make, (Column.NONE,)) for name in ("RoundRobin", REFERENCE)),
        Way(Block.ORDER, FIRST_COME, default, (Column.NONE, Column.ORACLE)),
        Way(Block.ORDER, SHORTEST, default, PLACING, SHORTEST),
        Way(Block.ORDER, RANK, default, RANKED, RANK),
        *(
            Way(Block.RESERVE, f"{name}, r {share:g}", _reserving(rule, share), RESERVING)
            for name, rule in (("KvGate", Rule.LEAST_IN_FLIGHT), (DEFAULT, Rule.MARGINAL_COST))
            for share in RESERVES
        ),
    )
    return tuple(way for way in every if way.block in blocks)


def run_all(study: Study, capacity_rps: float, advance: Callable[[int], None]) -> Runs:
    """All runs; ``advance`` is told of each. ``runs_of`` says how many there are.

    Columns are those of the highest load, where answers are learned latest, at all loads: what differs between loads
    is then the load alone.
    """
    found: dict[Key, list[Figures]] = defaultdict(list)
    goodness: list[dict[str, dict[str, float]]] = []
    chosen = ways(study.blocks)
    for seed in study.seeds:
        taken = drawn(study.population, history=study.history, requests=study.requests, seed=seed)
        busiest = taken.workload(max(study.loads) * capacity_rps)
        ends_N = simulate(study.setup, busiest, CONTENDERS[REFERENCE].make(), seed=seed).finished_at_s
        columns = columns_of(taken, busiest, model=study.model, read=study.read, finished_at_s=ends_N)
        goodness.append(quality(columns, busiest.output_tokens))
        for load in study.loads:
            workload = taken.workload(load * capacity_rps)
            for way in chosen:
                for column in way.columns:
                    key = Key(way.block, load, way.name, column)
                    found[key].append(_figures(study, workload, columns[column], way, load=load, seed=seed))
                    advance(1)
    return Runs(capacity_rps, dict(found), goodness)


def runs_of(study: Study) -> int:
    """How many runs a study takes."""
    return len(study.loads) * len(study.seeds) * sum(len(way.columns) for way in ways(study.blocks))


def _figures(study: Study, workload: Workload, said: Said, way: Way, *, load: float, seed: int) -> Figures:
    told = replace(workload.with_predictions(said.tokens), predicted_rank=np.maximum(said.rank, LEAST_RANK))
    side = replace(study.setup.routers, order=ORDERS[way.order], aging_s=DEFAULT_AGING_S)
    outcomes = simulate(replace(study.setup, routers=side), told, way.make(), seed=seed)
    return figures(
        outcomes,
        lone_s=alone_on_best_s(study.setup.engines, workload),
        warm_up_fraction=0.0 if load >= 1.0 else WARM_UP_FRACTION,
        slo=Slo(),
    )


def _reserving(rule: Rule, share: float) -> Callable[[], CompiledPolicy]:
    return lambda: CompiledPolicy(rule=rule, max_requests=None, kv_fraction=1.0, decode_reserve_fraction=share)

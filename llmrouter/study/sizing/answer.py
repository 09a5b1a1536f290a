"""The answer to how many GPUs traffic needs: by layout, by GPUs, by split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidInputError
from llmrouter.planning.inputs import PlanInputs
from llmrouter.planning.outlook import outlook
from llmrouter.planning.split import propose
from llmrouter.sim.capacity import highest_rate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llmrouter.planning.inputs import PoolOption
    from llmrouter.study.sizing.layouts import Layout
    from llmrouter.study.sizing.options import Question

CURVE_POINTS = 24
"""Numbers of GPUs that a curve has at most."""

MAX_SPLITS = 64
"""More splits of the same GPUs are not listed."""


@dataclass(frozen=True, slots=True)
class Option:
    """One split and what is expected of it.

    Attributes:
        layout: which pools.
        replicas: by pool.
        gpus: of them all.
        attainment: of the model that fares worst, the share of requests that meet the SLO.
        goodput_rps: requests a second that meet it.
        ttft_p90_s, tpot_s: of the model that fares worst; ``None`` where nothing can be served.
        carries_rps: the highest rate of the same requests at which the SLO is met; ``None`` where none is.
    """

    layout: str
    replicas: Mapping[str, int]
    gpus: int
    attainment: float
    goodput_rps: float
    ttft_p90_s: float | None
    tpot_s: float | None
    carries_rps: float | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The best option, those of each number of GPUs by layout, and all splits of the best one's GPUs."""

    best: Option
    meets: bool
    curves: Mapping[str, tuple[Option, ...]]
    splits: tuple[Option, ...]


def answer_to(question: Question) -> Answer:
    """Searches every layout for every number of GPUs.

    Raises:
        InvalidInputError: no layout has room for an instance of each stage.
    """
    curves = {layout.name: tuple(_curve(question, layout)) for layout in question.layouts}
    last = [curve[-1] for curve in curves.values() if curve]
    if not last:
        raise InvalidInputError(f"no split of {question.gpus} GPUs serves any request in time: allow more, or longer")
    target = question.slo.attainment
    enough = [one for one in last if one.attainment >= target]
    best = (
        min(enough, key=lambda one: (one.gpus, -one.attainment))
        if enough
        else max(last, key=lambda one: (one.goodput_rps, -one.gpus))
    )
    chosen = next(layout for layout in question.layouts if layout.name == best.layout)
    return Answer(best, bool(enough), curves, tuple(_splits(question, chosen, best)))


def larger(question: Question, than: Option) -> Iterator[Option]:
    """Splits of the same layout for 1.1, 1.2 … 2 times the requests, each once."""
    layout = next(one for one in question.layouts if one.name == than.layout)
    seen = [dict(than.replicas)]
    for tenths in range(11, 21):
        demands = tuple(demand.times(tenths / 10) for demand in question.asked.demands)
        more = replace(question, asked=replace(question.asked, demands=demands))
        replicas = dict(_best(more, layout, question.gpus).replicas)
        if replicas not in seen:
            seen.append(replicas)
            yield option_of(question, layout, replicas)


def option_of(question: Question, layout: Layout, replicas: Mapping[str, int]) -> Option:
    """What is expected of a split."""
    seen = outlook(question.asked.demands, layout.pools, replicas, question.slo)
    worst = seen.worst
    return Option(
        layout=layout.name,
        replicas=replicas,
        gpus=sum(replicas[pool.name] * pool.gpus_per_replica for pool in layout.pools),
        attainment=seen.attainment,
        goodput_rps=seen.goodput_rps,
        ttft_p90_s=None if worst is None else worst.ttft_s(0.9),
        tpot_s=None if worst is None else worst.tpot_s,
        carries_rps=_carries(question, layout, replicas),
    )


def _curve(question: Question, layout: Layout) -> Iterator[Option]:
    """The best split of each number of GPUs, up to where the SLO is met."""
    least = sum(pool.min_replicas * pool.gpus_per_replica for pool in layout.pools)
    steps = max(1, -(-question.gpus // CURVE_POINTS))
    counts = sorted({*range(question.gpus, max(least, 1) - 1, -steps), question.gpus})
    for gpus in counts:
        if gpus < least:
            continue
        option = _best(question, layout, gpus)
        if option.goodput_rps > 0.0:
            yield option
        if option.attainment >= question.slo.attainment:
            return


def _best(question: Question, layout: Layout, gpus: int) -> Option:
    proposal = propose(
        PlanInputs(
            demands=question.asked.demands,
            pools=tuple(replace(pool, current=pool.min_replicas) for pool in layout.pools),
            slo=question.slo,
            gpu_budget=gpus,
            keep_within=0.0,
        )
    )
    return option_of(question, layout, proposal.replicas)


def _splits(question: Question, layout: Layout, best: Option) -> Iterator[Option]:
    """All splits of the same GPUs, where there are several and not too many."""
    ranges = [_counts(pool, best.gpus) for pool in layout.pools]
    names = [pool.name for pool in layout.pools]
    sizes = [pool.gpus_per_replica for pool in layout.pools]
    size = 1
    for one in ranges:
        size *= len(one)
    if len(ranges) < 2 or size > MAX_SPLITS**2:  # noqa: PLR2004 - one pool has one split
        return
    fits = [
        split
        for split in product(*ranges)
        if sum(count * each for count, each in zip(split, sizes, strict=True)) == best.gpus
    ]
    if len(fits) <= MAX_SPLITS:
        options = [option_of(question, layout, dict(zip(names, split, strict=True))) for split in fits]
        yield from (one for one in options if one.goodput_rps > 0.0)


def _counts(pool: PoolOption, gpus: int) -> range:
    return range(pool.min_replicas, min(pool.max_replicas, gpus // max(pool.gpus_per_replica, 1)) + 1)


def _carries(question: Question, layout: Layout, replicas: Mapping[str, int]) -> float | None:
    demands, rate_rps = question.asked.demands, question.asked.rate_rps

    def meets(rate: float) -> bool:
        more = [demand.times(rate / rate_rps) for demand in demands]
        return outlook(more, layout.pools, replicas, question.slo).attainment >= question.slo.attainment

    return highest_rate(meets, rate_rps, lowest_rps=rate_rps / 1_000, highest_rps=rate_rps * 1_000)

"""How many replicas each pool should have: the split of a GPU budget with the best goodput, and why.

All splits are tried where they are few (DistServe's search, arXiv 2401.09670), else steepest ascent from several
starts. Of splits that meet the SLO the one with the fewest GPUs is taken, else the one with the best goodput; but what
there is stays where another split is hardly better.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidInputError
from llmrouter.planning.inputs import PlanInputs, Proposal
from llmrouter.planning.outlook import Outlook, outlook, paths_of
from llmrouter.planning.station import request_s

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmrouter.planning.demand import ModelDemand

MANY_SPLITS = 2_000
"""More are not tried one by one."""

_MISSED = 1.25
"""What there is is left where it misses the SLO this many times as often as it may, and another split does not."""

_TARGET_LOAD = 0.7

Split = tuple[int, ...]
"""Replicas by pool, in the order of the pools."""


def propose(inputs: PlanInputs) -> Proposal:
    """The split to have.

    Raises:
        InvalidInputError: the least replicas of all pools exceed the budget, or a model has no pool.
    """
    search = Search(inputs, inputs.demands)
    now = search.outlook(search.now)
    best = search.best()
    if search.gpus(best) < search.gpus(search.now) or (best != search.now and search.meets(search.now)):
        best = _with_reserve(inputs, search, best)
    if not _is_worth(inputs, search, best):
        best = search.now
    then = search.outlook(best)
    worst = now.worst
    return Proposal(
        replicas=search.by_name(best),
        reason=_reason(inputs, search, best),
        gpus=search.gpus(best),
        goodput_rps=then.goodput_rps,
        offered_rps=then.offered_rps,
        current_goodput_rps=now.goodput_rps,
        bottleneck=worst.bottleneck if worst is not None else "",
    )


class Search:
    """The splits that are allowed, and what each would do, worked out once."""

    def __init__(self, inputs: PlanInputs, demands: tuple[ModelDemand, ...]) -> None:
        self._inputs = inputs
        self._demands = demands
        self._pools = inputs.pools
        self._known: dict[Split, Outlook] = {}
        self._low = tuple(pool.min_replicas for pool in inputs.pools)
        self._high = tuple(pool.max_replicas for pool in inputs.pools)
        self.now: Split = tuple(min(max(pool.current, pool.min_replicas), pool.max_replicas) for pool in inputs.pools)
        self._check()
        if not self._fits(self.now):
            self.now = self._low

    def _check(self) -> None:
        inputs = self._inputs
        if not inputs.pools:
            raise InvalidInputError("pools: at least one is needed")
        for demand in inputs.demands:
            if not paths_of(demand.model, inputs.pools):
                raise InvalidInputError(f"pools: none serves model {demand.model}")
        if inputs.gpu_budget is not None and (least := self.gpus(self._low)) > inputs.gpu_budget:
            raise InvalidInputError(f"gpuBudget {inputs.gpu_budget} is below what minReplicas need, {least}")

    def gpus(self, split: Split) -> int:
        """GPUs of a split."""
        return sum(count * pool.gpus_per_replica for count, pool in zip(split, self._pools, strict=True))

    def by_name(self, split: Split) -> dict[str, int]:
        """Replicas by pool."""
        return {pool.name: count for pool, count in zip(self._pools, split, strict=True)}

    def outlook(self, split: Split) -> Outlook:
        """What a split would do."""
        found = self._known.get(split)
        if found is None:
            found = outlook(self._demands, self._pools, self.by_name(split), self._inputs.slo)
            self._known[split] = found
        return found

    def meets(self, split: Split) -> bool:
        """Whether every model meets the SLO as often as it should."""
        return self.outlook(split).attainment >= self._inputs.slo.attainment

    def value(self, split: Split) -> tuple[float, ...]:
        """What is better is greater."""
        seen = self.outlook(split)
        if seen.attainment >= self._inputs.slo.attainment:
            return (1.0, -float(self.gpus(split)), seen.attainment, seen.goodput_rps)
        return (0.0, seen.goodput_rps, -float(self.gpus(split)), seen.attainment)

    def best(self) -> Split:
        """The best split that is allowed."""
        if _count(self._low, self._high) <= MANY_SPLITS:
            return max(filter(self._fits, self._all()), key=self.value)
        return max((self._climb(start) for start in self._starts()), key=self.value)

    def _fits(self, split: Split) -> bool:
        inside = all(low <= one <= high for low, one, high in zip(self._low, split, self._high, strict=True))
        budget = self._inputs.gpu_budget
        return inside and (budget is None or self.gpus(split) <= budget)

    def _all(self) -> Iterator[Split]:
        return product(*(range(low, high + 1) for low, high in zip(self._low, self._high, strict=True)))

    def _starts(self) -> list[Split]:
        """What there is, and what is busy for 70 % of its time on each path alone."""
        starts = [self.now]
        for chosen in (0, -1):
            wanted = list(self._low)
            for demand in self._demands:
                path = paths_of(demand.model, self._pools)[chosen]
                for stage in (path.prefill, path.decode):
                    for pool in stage[:1]:
                        needed = demand.requests_per_s * request_s(pool.profile, pool.role, demand) / _TARGET_LOAD
                        wanted[self._pools.index(pool)] += int(needed) + 1
            starts.append(self._within(tuple(wanted)))
        return starts

    def _within(self, split: Split) -> Split:
        """A split brought within the bounds, and within the budget by shares of what is above the least."""
        bound = [min(max(one, low), high) for low, one, high in zip(self._low, split, self._high, strict=True)]
        share = 1.0
        while not self._fits(tuple(bound)):
            share *= 0.9
            bound = [low + int((one - low) * share) for low, one in zip(self._low, bound, strict=True)]
        return tuple(bound)

    def _climb(self, split: Split) -> Split:
        while True:
            better = max(self._neighbours(split), key=self.value, default=split)
            if self.value(better) <= self.value(split):
                return split
            split = better

    def _neighbours(self, split: Split) -> Iterator[Split]:
        """One pool more or less by 1, 4 or 16; one more and another fewer."""
        places = range(len(split))
        for size in (1, 4, 16):
            changes = [(place, sign * size) for place in places for sign in (-1, 1)]
            moves = [*((one,) for one in changes), *((more, less) for more in changes for less in changes)]
            for move in moves:
                moved = list(split)
                for place, change in move:
                    moved[place] += change
                if self._fits(tuple(moved)):
                    yield tuple(moved)


def _count(low: Split, high: Split) -> int:
    count = 1
    for one, other in zip(low, high, strict=True):
        count *= other - one + 1
    return count


def _with_reserve(inputs: PlanInputs, search: Search, best: Split) -> Split:
    """What is enough with ``keep_within`` more requests: nothing is taken away that little more would need."""
    more = tuple(demand.times(1.0 + inputs.keep_within) for demand in inputs.demands)
    reserved = Search(inputs, more)
    careful = reserved.best()
    if search.meets(search.now) and search.gpus(careful) >= search.gpus(search.now):
        return search.now
    return careful if reserved.meets(careful) or not search.meets(best) else best


def _is_worth(inputs: PlanInputs, search: Search, best: Split) -> bool:
    """Whether the change is more than ``keep_within`` better."""
    now, then = search.outlook(search.now), search.outlook(best)
    if search.meets(search.now):
        return search.gpus(best) < search.gpus(search.now)
    allowed = 1.0 - inputs.slo.attainment
    if search.meets(best) and 1.0 - now.attainment > _MISSED * allowed:
        return True
    return then.goodput_rps > (1.0 + inputs.keep_within) * now.goodput_rps


def _reason(inputs: PlanInputs, search: Search, best: Split) -> str:
    now, then = search.outlook(search.now), search.outlook(best)
    expected = f"{then.attainment:.0%} within the SLO{_times(then)}"
    if best == search.now:
        return f"what there is is kept: {expected} expected of it"
    moved = ", ".join(
        f"{pool.name} {before} → {after}"
        for pool, before, after in zip(inputs.pools, search.now, best, strict=True)
        if before != after
    )
    worst = now.worst
    if search.meets(search.now):
        why = "fewer GPUs do"
    elif worst is None or worst.bottleneck == "instances":
        why = "there are too few instances"
    else:
        why = f"{worst.bottleneck} is the bottleneck"
    return f"{why}: {moved} ({search.gpus(best)} GPUs); {expected} expected, {now.attainment:.0%} of what there is"


def _times(seen: Outlook) -> str:
    """TTFT and TPOT of the model that fares worst."""
    worst = seen.worst
    if worst is None or (ttft_s := worst.ttft_s(0.9)) is None or (tpot_s := worst.tpot_s) is None:
        return ""
    return f" (TTFT p90 {ttft_s:.2g} s, TPOT {tpot_s * 1e3:.2g} ms)"

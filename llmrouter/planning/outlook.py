"""What a split of replicas would do: goodput by model, and what binds. Pools share a model's load by capacity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.domain import Role
from llmrouter.planning.station import Station, request_s, station

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llmrouter.planning.demand import ModelDemand
    from llmrouter.planning.inputs import PoolOption, Slo

_ROUNDS = 12
_PARTS = 20
"""Of the capacity, where all that arrives is more: so many shares of it are tried."""
_ENOUGH = 0.95
"""Where so many of what is served meet the SLO, to serve fewer is no gain."""


@dataclass(frozen=True, slots=True)
class Path:
    """A way through the pools: one that does all of a request, or those of each stage."""

    prefill: tuple[PoolOption, ...]
    decode: tuple[PoolOption, ...]

    @property
    def pools(self) -> tuple[PoolOption, ...]:
        """All of them."""
        return self.prefill + self.decode


@dataclass(frozen=True, slots=True)
class Leg:
    """A share of a model's requests: whose prompts one station computes and whose answers the other makes.

    They are the same station where instances do both.
    """

    share: float
    first: Station
    second: Station

    def attainment(self, demand: ModelDemand, slo: Slo) -> float:
        """Share of its requests that meet the SLO, the two times taken as independent."""
        gaps = [self._gaps_within(tokens, slo.tpot_s) for tokens in demand.output_tokens]
        return self.ttft_within(demand, slo.ttft_s) * sum(gaps) / len(gaps)

    def ttft_within(self, demand: ModelDemand, seconds: float) -> float:
        """Share of its requests whose first token comes within ``seconds``."""
        met = [self.first.ttft_within(tokens, seconds) for tokens in demand.prefill_tokens]
        return sum(met) / len(met)

    def _gaps_within(self, output_tokens: float, seconds: float) -> float:
        """In two stages, waiting for room to decode comes within the first gap."""
        met, gaps = self.second.tpot_within(output_tokens, seconds), output_tokens - 1.0
        if self.first is self.second or gaps < 1.0:
            return met
        return met * self.second.room.within(gaps * (seconds - self.second.token_s))


@dataclass(frozen=True, slots=True)
class ModelOutlook:
    """One model under a split.

    Attributes:
        demand: what arrives.
        served_rps: what of it is served; the rest would be shed, so that this meets the SLO as well as it can.
        goodput_rps: what of that meets the SLO.
        legs: where it goes; none where nothing is asked for or nothing can be served.
        bottleneck: what binds first: ``prefill``, ``decode``, ``memory`` or, where there are none, ``instances``.
    """

    demand: ModelDemand
    served_rps: float
    goodput_rps: float
    legs: tuple[Leg, ...]
    bottleneck: str

    @property
    def offered_rps(self) -> float:
        """Requests a second that arrive."""
        return self.demand.requests_per_s

    @property
    def attainment(self) -> float:
        """Share of the requests that meet the SLO; 1 where nothing arrives."""
        return self.goodput_rps / self.offered_rps if self.offered_rps > 0.0 else 1.0

    @property
    def tpot_s(self) -> float | None:
        """Mean time between the tokens of what is served."""
        return sum(leg.share * leg.second.token_s for leg in self.legs) if self.legs else None

    def ttft_s(self, level: float) -> float | None:
        """A quantile of the TTFT of what is served, to 1 %."""
        if not self.legs:
            return None
        low_s, high_s = 1e-3, 1e4
        while high_s > 1.01 * low_s:
            middle_s = (low_s * high_s) ** 0.5
            if sum(leg.share * leg.ttft_within(self.demand, middle_s) for leg in self.legs) >= level:
                high_s = middle_s
            else:
                low_s = middle_s
        return high_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """All models under a split. ``loads`` are shares of what each pool could do, by pool."""

    models: tuple[ModelOutlook, ...]
    loads: Mapping[str, float]

    @property
    def offered_rps(self) -> float:
        """Requests a second that arrive."""
        return sum(one.offered_rps for one in self.models)

    @property
    def goodput_rps(self) -> float:
        """Requests a second that meet the SLO."""
        return sum(one.goodput_rps for one in self.models)

    @property
    def attainment(self) -> float:
        """Of the model that fares worst, the share of requests that meet the SLO; 1 where nothing arrives."""
        return min((one.attainment for one in self.models), default=1.0)

    @property
    def worst(self) -> ModelOutlook | None:
        """The model that fares worst."""
        asked = [one for one in self.models if one.offered_rps > 0.0]
        return min(asked, key=lambda one: one.attainment, default=None)


@dataclass(frozen=True, slots=True)
class _Flow:
    """Where the requests of one model go: share by path."""

    demand: ModelDemand
    paths: tuple[Path, ...]
    shares: tuple[float, ...]


def outlook(
    demands: Sequence[ModelDemand], pools: Sequence[PoolOption], replicas: Mapping[str, int], slo: Slo
) -> Outlook:
    """What these replicas, by pool, would do for these demands. Models that share pools are shed together."""
    results: dict[str, ModelOutlook] = {}
    loads = {pool.name: 0.0 for pool in pools}
    for group in _groups(demands, pools):
        own = [pool for pool in pools if any(pool.serves(one.model) for one in group)]
        flows = _flows(group, own, replicas)
        best, stations = _best_served(flows, own, replicas, slo)
        results |= {one.demand.model: one for one in best}
        loads |= {name: one.load if isinstance(one, Station) else 1.0 for name, one in stations.items()}
    return Outlook(models=tuple(results[one.model] for one in demands), loads=loads)


def _best_served(
    flows: Sequence[_Flow], pools: Sequence[PoolOption], replicas: Mapping[str, int], slo: Slo
) -> tuple[tuple[ModelOutlook, ...], Mapping[str, Station | str]]:
    """All requests or, where too few of them would meet the SLO, the share that is best served alone."""
    best: tuple[float, tuple[ModelOutlook, ...], Mapping[str, Station | str]] | None = None
    most = min(1.0, 1.0 / max(1.0, *_offered_loads(flows, pools, replicas).values()))
    for fraction in (1.0, *(most * part / _PARTS for part in range(_PARTS - 1, 0, -1))):
        stations = _stations(flows, pools, replicas, fraction)
        seen = tuple(_model_outlook(flow, replicas, stations, fraction=fraction, slo=slo) for flow in flows)
        goodput = sum(one.goodput_rps for one in seen)
        if best is None or goodput > best[0]:
            best = (goodput, seen, stations)
        elif goodput > 0.0:
            break  # past the best
        if goodput >= _ENOUGH * fraction * sum(one.offered_rps for one in seen):
            break
    assert best is not None  # noqa: S101 - the fractions are some
    return best[1], best[2]


def paths_of(model: str, pools: Sequence[PoolOption]) -> tuple[Path, ...]:
    """The ways that requests of a model may take."""
    own = [pool for pool in pools if pool.serves(model)]
    prefill = tuple(pool for pool in own if pool.role is Role.PREFILL)
    decode = tuple(pool for pool in own if pool.role is Role.DECODE)
    staged = (Path(prefill, decode),) if prefill and decode else ()
    return tuple(Path((), (pool,)) for pool in own if pool.role is Role.MIXED) + staged


def capacity_rps(demand: ModelDemand, path: Path, replicas: Mapping[str, int]) -> float:
    """Requests a second that a path could do if it did nothing else and nothing had to be in time."""
    return min(
        sum(replicas[pool.name] / max(request_s(pool.profile, pool.role, demand), 1e-12) for pool in stage)
        for stage in (path.prefill, path.decode)
        if stage
    )


def _groups(demands: Sequence[ModelDemand], pools: Sequence[PoolOption]) -> list[list[ModelDemand]]:
    """Models that share pools, directly or not, together."""
    groups: list[tuple[set[str], list[ModelDemand]]] = []
    for demand in demands:
        names = {pool.name for pool in pools if pool.serves(demand.model)}
        joined = [one for one in groups if one[0] & names]
        groups = [one for one in groups if not one[0] & names]
        members = [each for one in joined for each in one[1]]
        groups.append((names.union(*(one[0] for one in joined)), [*members, demand]))
    return [members for _, members in groups]


def _flows(
    demands: Sequence[ModelDemand], pools: Sequence[PoolOption], replicas: Mapping[str, int]
) -> tuple[_Flow, ...]:
    """Shares that load all pools as evenly as may be: in proportion to capacity, corrected by what others ask."""
    flows = []
    for demand in demands:
        paths = paths_of(demand.model, pools)
        able = [capacity_rps(demand, path, replicas) for path in paths]
        flows.append(_Flow(demand, paths, _normed(able)))
    if len(flows) == 1 or all(len(flow.paths) <= 1 for flow in flows):
        return tuple(flows)
    for _ in range(_ROUNDS):
        loads = _offered_loads(flows, pools, replicas)
        flows = [
            _Flow(
                flow.demand,
                flow.paths,
                _normed(
                    [
                        share / max(1e-6, *(loads[pool.name] for pool in path.pools)) ** 0.5
                        for share, path in zip(flow.shares, flow.paths, strict=True)
                    ]
                ),
            )
            for flow in flows
        ]
    return tuple(flows)


def _offered_loads(
    flows: Iterable[_Flow], pools: Sequence[PoolOption], replicas: Mapping[str, int]
) -> dict[str, float]:
    loads = {pool.name: 0.0 for pool in pools}
    for flow in flows:
        for pool, demand in _asked(flow, replicas, 1.0):
            if replicas[pool.name]:
                each = request_s(pool.profile, pool.role, flow.demand) / replicas[pool.name]
                loads[pool.name] += demand.requests_per_s * each
    return loads


def _asked(flow: _Flow, replicas: Mapping[str, int], fraction: float) -> list[tuple[PoolOption, ModelDemand]]:
    """What of a model's demand each pool gets: of a stage by capacity."""
    found = []
    for path, share in zip(flow.paths, flow.shares, strict=True):
        for stage in (path.prefill, path.decode):
            for pool, part in _parts(flow.demand, stage, replicas):
                if share * part > 0.0:
                    found.append((pool, flow.demand.times(fraction * share * part)))
    return found


def _stations(
    flows: Sequence[_Flow], pools: Sequence[PoolOption], replicas: Mapping[str, int], fraction: float
) -> dict[str, Station | str]:
    asked: dict[str, list[ModelDemand]] = {pool.name: [] for pool in pools}
    for flow in flows:
        for pool, demand in _asked(flow, replicas, fraction):
            asked[pool.name].append(demand)
    return {pool.name: station(pool.profile, pool.role, replicas[pool.name], asked[pool.name]) for pool in pools}


def _model_outlook(
    flow: _Flow,
    replicas: Mapping[str, int],
    stations: Mapping[str, Station | str],
    *,
    fraction: float,
    slo: Slo,
) -> ModelOutlook:
    demand = flow.demand
    legs: list[Leg] = []
    stuck: str = "" if demand.requests_per_s <= 0.0 else "instances"
    for share, first, second in _taken(flow, replicas):
        one, other = stations[first], stations[second]
        if isinstance(one, str) or isinstance(other, str):
            return ModelOutlook(demand, 0.0, 0.0, (), one if isinstance(one, str) else str(other))
        legs.append(Leg(share, one, other))
    if not legs:
        return ModelOutlook(demand, 0.0, 0.0, (), stuck)
    met = sum(leg.share * leg.attainment(demand, slo) for leg in legs)
    served = fraction * demand.requests_per_s
    busiest = max((one for leg in legs for one in (leg.first, leg.second)), key=lambda one: one.load)
    return ModelOutlook(demand, served, served * met, tuple(legs), busiest.tightest)


def _taken(flow: _Flow, replicas: Mapping[str, int]) -> list[tuple[float, str, str]]:
    """Share of the requests by the pool that computes the prompt and the pool that answers."""
    found = []
    for path, share in zip(flow.paths, flow.shares, strict=True):
        firsts = _parts(flow.demand, path.prefill, replicas)
        for pool, part in _parts(flow.demand, path.decode, replicas):
            for first, first_part in firsts or [(pool, 1.0)]:
                if share * part * first_part > 0.0:
                    found.append((share * part * first_part, first.name, pool.name))
    return found


def _parts(
    demand: ModelDemand, stage: Sequence[PoolOption], replicas: Mapping[str, int]
) -> list[tuple[PoolOption, float]]:
    """A stage's pools and their parts of it, by capacity."""
    able = [replicas[pool.name] / max(request_s(pool.profile, pool.role, demand), 1e-12) for pool in stage]
    return list(zip(stage, _normed(able), strict=True))


def _normed(values: Sequence[float]) -> tuple[float, ...]:
    total = sum(values)
    return tuple(value / total for value in values) if total > 0.0 else tuple(0.0 for _ in values)

"""What routers say of themselves at their metrics ports, added up: pure."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PREFIX = "llmrouter_"
PLACED = "Routed"
"""The outcome of a request that was placed."""


@dataclass(frozen=True, slots=True)
class Sight:
    """The series of one router at one instant: values by name without the prefix, and labels in their order."""

    router: str
    at_s: float
    values: Mapping[tuple[str, tuple[tuple[str, str], ...]], float] = field(default_factory=dict)

    def total(self, name: str, **labels: str) -> float | None:
        """Sum of all series of that name that have these labels; ``None`` where there is none."""
        wanted = set(labels.items())
        found = [value for (one, has), value in self.values.items() if one == name and wanted <= set(has)]
        return sum(found) if found else None

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Values of a name by some of its labels, added up over the others."""
        sums: dict[tuple[str, ...], float] = defaultdict(float)
        for (one, has), value in self.values.items():
            if one == name and not math.isnan(value):
                sums[tuple(dict(has).get(label, "") for label in labels)] += value
        return dict(sums)


def read_sight(router: str, text: str, at_s: float) -> Sight:
    """Reads a router's exposition; raises ValueError where it is none."""
    return Sight(
        router,
        at_s,
        {
            (sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith(PREFIX)
        },
    )


@dataclass(frozen=True, slots=True)
class InstanceLoad:
    """One instance as the routers count it. Requests are of the ledger, so every router says the same."""

    pool: str
    instance: str
    requests: float
    tokens: float | None
    slowness: float | None


def instance_loads(sights: Iterable[Sight]) -> list[InstanceLoad]:
    """Loads by pool and instance, from whichever router counts most: each has a replica of the one ledger."""
    requests: dict[tuple[str, ...], float] = {}
    tokens: dict[tuple[str, ...], float] = {}
    slowness: dict[tuple[str, ...], float] = {}
    for sight in sights:
        for name, into in (
            ("in_flight_requests", requests),
            ("in_flight_tokens", tokens),
            ("calibration_instance_slowness", slowness),
        ):
            for key, value in sight.by(name, "pool", "instance").items():
                into[key] = max(into.get(key, 0.0), value)
    return [
        InstanceLoad(pool, instance, value, tokens.get((pool, instance)), slowness.get((pool, instance)))
        for (pool, instance), value in sorted(requests.items())
    ]


def rate(before: Sight | None, now: Sight, name: str, **labels: str) -> float | None:
    """Increase of a counter per second between two sights of one router; ``None`` without two, or after a restart."""
    if before is None or now.at_s <= before.at_s:
        return None
    first, last = before.total(name, **labels), now.total(name, **labels)
    if last is None:
        return None
    grown = last - (first or 0.0)
    return None if grown < 0.0 else grown / (now.at_s - before.at_s)


def quantile(before: Sight | None, now: Sight, name: str, q: float) -> float | None:
    """Quantile of a histogram (its unit), of what came between two sights, or since the start without the first.

    Linear within a bucket, as Prometheus' ``histogram_quantile`` has it; the last bound where it lies beyond.
    """
    counts = _buckets(now, name)
    if before is not None:
        first = _buckets(before, name)
        counts = {bound: max(count - first.get(bound, 0.0), 0.0) for bound, count in counts.items()}
    bounds = sorted(counts)
    if not bounds or counts[bounds[-1]] <= 0.0:
        return None
    wanted, low, below = q * counts[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        if counts[bound] >= wanted:
            if math.isinf(bound):
                return low
            share = (wanted - below) / (counts[bound] - below) if counts[bound] > below else 1.0
            return low + share * (bound - low)
        low, below = bound, counts[bound]
    return low


def _buckets(sight: Sight, name: str) -> dict[float, float]:
    sums: dict[float, float] = defaultdict(float)
    for (bound,), value in sight.by(f"{name}_bucket", "le").items():
        sums[float(bound)] += value
    return dict(sums)

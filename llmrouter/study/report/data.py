"""The result of ``llmrouter bench`` as the page sees it: every part may be absent, and then it is said to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llmrouter.study.report.metrics import METRICS, Metric

if TYPE_CHECKING:
    from collections.abc import Mapping

BASE = "RoundRobin"
BASELINE, OURS, BOUND = "baseline", "ours", "bound"


@dataclass(frozen=True, slots=True)
class Row:
    """A policy at a cell and load: its figures by key, ``None`` where unknown."""

    cell: str
    load: str
    policy: str
    seeds: int | None
    figures: Mapping[str, float | None]

    def value(self, metric: Metric) -> float | None:
        """The mean over seeds."""
        return self.figures.get(metric.key)

    def change(self, metric: Metric) -> tuple[float | None, float | None]:
        """Percent against the base, and the half-width of its interval."""
        return self.figures.get(metric.change_key), self.figures.get(f"{metric.change_key}_ci95")


@dataclass(frozen=True)
class Point:
    """A cell at a load.

    Attributes:
        rows: by policy, in the result's order.
        quantiles: by policy and key of ``DISTRIBUTIONS``: quantiles, evenly from 0 to 100 %.
        per_seed: by policy and key of a metric: the figure of each seed.
        timelines: by policy, as they came.
        best_baseline: as the result names it, else the baseline with the least mean E2E.
        entry: what the result says of the best here, as it came.
    """

    cell: str
    load: str
    rate_rps: float | None
    rows: Mapping[str, Row]
    quantiles: Mapping[str, Mapping[str, list[float]]]
    per_seed: Mapping[str, Mapping[str, list[float | None]]]
    timelines: Mapping[str, Mapping[str, Any]]
    best_baseline: str | None
    entry: Mapping[str, Any]

    @property
    def name(self) -> str:
        """For sentences."""
        return f"{self.cell} at {self.load}"


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """A policy. ``slot`` is its colour in every plot; ``on`` whether it stands out before the reader chooses."""

    name: str
    kind: str
    description: str | None
    slot: int
    on: bool


@dataclass(frozen=True)
class Study:
    """The whole result.

    ``default`` is the product's default policy, if it is among the policies; ``missing`` says in sentences what the
    result lacks.
    """

    command: str | None
    version: str | None
    seeds: Mapping[str, Any]
    notes: tuple[str, ...]
    cells: Mapping[str, Mapping[str, Any]]
    policies: Mapping[str, PolicyInfo]
    points: tuple[Point, ...]
    slo: Mapping[str, Any]
    default: str | None = None
    missing: tuple[str, ...] = field(default=())

    @cached_property
    def cell_names(self) -> tuple[str, ...]:
        """In the order of their rows, then those without any."""
        return tuple(dict.fromkeys([*(point.cell for point in self.points), *self.cells]))

    @cached_property
    def loads(self) -> tuple[str, ...]:
        """Of all cells, ascending."""
        return tuple(sorted({point.load for point in self.points}, key=float))

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """Those that any row knows."""
        rows = [row for point in self.points for row in point.rows.values()]
        return tuple(metric for metric in METRICS if any(row.value(metric) is not None for row in rows))

    def of_cell(self, cell: str) -> tuple[Point, ...]:
        """The points of a cell, ascending by load."""
        return tuple(sorted((point for point in self.points if point.cell == cell), key=lambda one: float(one.load)))

    def kind(self, policy: str) -> str:
        """``baseline``, ``ours`` or ``bound``."""
        return self.policies[policy].kind

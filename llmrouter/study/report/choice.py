"""Which policy is best where, which deserve a colour of their own, and how two of them compare on the same seeds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from llmrouter.plots.theme import series_slot
from llmrouter.study.report.data import BASE, BASELINE, BOUND, OURS
from llmrouter.study.report.metrics import E2E_MEAN
from llmrouter.study.report.values import number
from llmrouter.study.statistics import paired_change

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llmrouter.study.report.data import Point, Row, Study
    from llmrouter.study.report.metrics import Metric

MAX_FRONT = 7
"""So many policies stand out at first: more colours are not told apart."""

_FAIR = 1e-9


class Verdict(Enum):
    """What an interval says about a change."""

    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "no clear difference"
    UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class Contrast:
    """A paired change in percent and the half-width of its 95 % interval."""

    percent: float | None
    half_width: float | None

    def verdict(self, metric: Metric) -> Verdict:
        """Better or worse only where the interval excludes 0."""
        if self.percent is None or self.half_width is None:
            return Verdict.UNKNOWN
        if abs(self.percent) <= self.half_width:
            return Verdict.UNDECIDED
        return Verdict.BETTER if metric.better(self.percent) else Verdict.WORSE


def contrast(point: Point, policy: str, against: str, metric: Metric) -> Contrast:
    """How ``policy`` changes a figure of ``against``, seed by seed; unknown without the figures of each seed."""
    if against == BASE and policy in point.rows:
        return Contrast(*point.rows[policy].change(metric))
    key = f"vs_best_{metric.change_key}"
    if point.entry.get("default") == policy and point.entry.get("policy") == against and key in point.entry:
        return Contrast(number(point.entry[key]), number(point.entry.get(f"{key}_ci95")))
    mine, theirs = (point.per_seed.get(name, {}).get(metric.key, []) for name in (policy, against))
    if not mine or len(mine) != len(theirs):
        return Contrast(None, None)
    change = paired_change(mine, theirs)
    return Contrast(change.percent, change.half_width)


def fair(rows: Iterable[Row]) -> list[Row]:
    """Rows that turned away no more requests than the least of them: latencies are of requests that finished."""
    kept = list(rows)
    least = min((row.figures.get("shed_rate") or 0.0 for row in kept), default=0.0)
    return [row for row in kept if (row.figures.get("shed_rate") or 0.0) <= least + _FAIR]


def best_row(point: Point, study: Study, metric: Metric = E2E_MEAN) -> Row | None:
    """The policy with the best figure among those that know no true lengths and turn no more requests away."""
    rows = fair(row for name, row in point.rows.items() if study.kind(name) != BOUND)
    known = [(value, row) for row in rows if (value := row.value(metric)) is not None]
    if not known:
        return None
    pick = max if metric.higher_is_better else min
    return pick(known, key=lambda pair: pair[0])[1]


def by_metric(point: Point, metric: Metric = E2E_MEAN) -> list[Row]:
    """The rows from the best to the worst figure; those without it last."""
    sign = -1.0 if metric.higher_is_better else 1.0
    rows = list(point.rows.values())
    known = [(sign * value, index) for index, row in enumerate(rows) if (value := row.value(metric)) is not None]
    first = [rows[index] for _, index in sorted(known)]
    return first + [row for row in rows if row.value(metric) is None]


def ranked(points: Sequence[Point], kinds: Mapping[str, str], default: str | None) -> tuple[dict[str, int], set[str]]:
    """A colour slot for every policy, and those that stand out at first.

    The base has the neutral slot 0, the default slot 1; then come the best baselines, by how often they are that, and
    the policies with the least mean E2E, our others, the other baselines, the bounds.
    """
    often: dict[str, int] = {}
    for point in points:
        if point.best_baseline is not None:
            often[point.best_baseline] = often.get(point.best_baseline, 0) + 1
    leaders = sorted(often, key=lambda name: -often[name])
    winners = [_winner(point, kinds) for point in points]
    known = ["LeastInFlight", "LMetric"]
    ours = [name for name, kind in kinds.items() if kind == OURS]
    front = [BASE, *([default] if default else []), *leaders, *(name for name in winners if name), *known]
    first = [name for name in dict.fromkeys(front) if name in kinds]
    rest = sorted(kinds, key=lambda name: [OURS, BASELINE, BOUND].index(kinds[name]) if kinds[name] in _ORDER else 3)
    others = [name for name in dict.fromkeys([*first, *ours, *rest]) if name != BASE]
    slots = {name: series_slot(place) for place, name in enumerate(others)}
    if BASE in kinds:
        slots[BASE] = 0
    return slots, set(slots if len(slots) <= MAX_FRONT else first[:MAX_FRONT])


_ORDER = (OURS, BASELINE, BOUND)


def _winner(point: Point, kinds: Mapping[str, str]) -> str | None:
    rows = fair(row for name, row in point.rows.items() if kinds[name] != BOUND)
    known = {row.policy: value for row in rows if (value := row.value(E2E_MEAN)) is not None}
    return min(known, key=known.__getitem__) if known else None

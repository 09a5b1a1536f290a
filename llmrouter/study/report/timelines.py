"""What every instance did: KV usage, batch and queue over time, for a few policies on the same requests."""

from __future__ import annotations

import itertools
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

from llmrouter.plots.heat import Heat, Strand, heat_chart, legend
from llmrouter.plots.markup import Markup, el, tick
from llmrouter.study.report.data import BASE
from llmrouter.study.report.values import items, known_numbers, numbers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmrouter.study.report.data import Point, Study

MAX_POLICIES = 3
_PARTS = (
    ("kv_usage_fraction", "KV usage"),
    ("running", "running: requests in the batch"),
    ("waiting", "waiting: requests in the engine's queue"),
)

Rows = list[list[float | None]]


def timelines(point: Point, study: Study) -> Markup:
    """Heat maps of up to ``MAX_POLICIES`` policies: the base, the default, the best baseline, then the others."""
    wanted = dict.fromkeys([BASE, study.default or BASE, point.best_baseline or BASE, *point.timelines])
    usable = ((name, found) for name in wanted if (found := _usable(point.timelines.get(name, {}))))
    shown = dict(itertools.islice(usable, MAX_POLICIES))
    if not shown:
        return el("p", f"No timeline was recorded here{_elsewhere(point, study)}.", class_="missing")
    highs = {key: _high([found[key] for found in shown.values() if key in found], key) for key, _ in _PARTS}
    held_high = max((max(found["held"], default=0.0) for found in shown.values()), default=0.0)
    charts = [_chart(name, found, study, highs=highs, held_high=held_high) for name, found in shown.items()]
    others = len(set(point.timelines) - set(shown))
    note = f" {others} more policies have a timeline that is not drawn." if others else ""
    return el(
        "div",
        el(
            "p",
            legend("0", "the most of these policies"),
            "A row for each instance; one seed.",
            note,
            class_="soft small",
        ),
        el("div", *charts, class_="charts"),
    )


def _elsewhere(point: Point, study: Study) -> str:
    loads = [other.load for other in study.of_cell(point.cell) if other.timelines]
    return f"; there is one at {', '.join(loads)} of capacity" if loads else ""


def _usable(timeline: Mapping[str, Any]) -> dict[str, Any]:
    at_s = known_numbers(timeline.get("at_s"))
    if len(at_s) < 2:  # noqa: PLR2004 - a time axis has two ends
        return {}
    found: dict[str, Any] = {key: rows for key, _ in _PARTS if (rows := _rows(timeline.get(key), len(at_s)))}
    held = known_numbers(timeline.get("held"))
    return found | {"at_s": at_s, "held": held if len(held) == len(at_s) else []} if found else {}


def _rows(value: object, width: int) -> Rows:
    rows = [numbers(row) for row in items(value)]
    return rows if rows and all(len(row) == width for row in rows) else []


def _high(all_rows: Sequence[Rows], key: str) -> float:
    if key == "kv_usage_fraction":
        return 1.0
    return max((value for rows in all_rows for row in rows for value in row if value is not None), default=1.0) or 1.0


def _chart(
    name: str, found: Mapping[str, Any], study: Study, *, highs: Mapping[str, float], held_high: float
) -> Markup:
    instances = len(next(found[key] for key, _ in _PARTS if key in found))
    bands: list[Heat | Strand] = [
        Heat(title, found[key], highs[key], "0–100 %" if highs[key] == 1.0 else f"0–{tick(highs[key])}")
        for key, title in _PARTS
        if key in found
    ]
    if found["held"] and held_high > 0:
        bands.append(Strand("held at the router", found["held"], held_high, slot=study.policies[name].slot))
    chart = heat_chart(
        bands,
        found["at_s"],
        title=name,
        description=f"KV usage, running and waiting requests of {instances} instances over time under {name}.",
        row_names=[str(index) for index in range(instances)],
    )
    return el("figure", chart, el("figcaption", _told(found)))


def _told(found: Mapping[str, Any]) -> str:
    parts = []
    if "kv_usage_fraction" in found:
        means = [fmean(known) for row in found["kv_usage_fraction"] if (known := [v for v in row if v is not None])]
        if means:
            parts.append(f"KV usage {fmean(means):.0%} on average; between instances ±{100 * pstdev(means):.1f} points")
    if "waiting" in found:
        waits = [value for row in found["waiting"] for value in row if value is not None]
        parts.append(f"at most {tick(max(waits, default=0.0))} waiting at an instance")
    if found["held"] and max(found["held"]) > 0:
        parts.append(f"at most {tick(max(found['held']))} held at the router")
    return f"{'; '.join(parts)}." if parts else ""

"""From the JSON of ``llmrouter bench`` to ``Study``: nothing in it is required, and what is absent is said to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmrouter.study.report.choice import ranked
from llmrouter.study.report.data import BASE, BASELINE, BOUND, OURS, Point, PolicyInfo, Row, Study
from llmrouter.study.report.metrics import DISTRIBUTIONS
from llmrouter.study.report.values import items, known_numbers, load_key, mapping, number, numbers, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def read_study(result: Mapping[str, Any]) -> Study:
    """The result as the page sees it; nothing in it is required."""
    rows, dropped = _rows(result)
    default = _default(result, {row.policy for row in rows})
    kinds = _kinds(result, rows, default)
    points = _points(result, rows, kinds)
    return Study(
        command=text(result.get("command")),
        version=text(result.get("version")),
        seeds=mapping(result.get("seeds")),
        notes=tuple(note for note in items(result.get("notes")) if isinstance(note, str)),
        cells={str(name): mapping(about) for name, about in mapping(result.get("cells")).items()},
        policies=_policies(result, points, kinds, default=default),
        points=points,
        slo=mapping(result.get("slo")),
        default=default,
        missing=tuple(_missing(result, points, dropped)),
    )


def _rows(result: Mapping[str, Any]) -> tuple[list[Row], int]:
    found, dropped = [], 0
    for item in items(result.get("rows")):
        given = mapping(item)
        cell, load, policy = text(given.get("cell")), load_key(given.get("load")), text(given.get("policy"))
        if cell is None or load is None or policy is None:
            dropped += 1
            continue
        figures = {key: number(value) for key, value in given.items()}
        seeds = number(given.get("seeds"))
        found.append(Row(cell, load, policy, None if seeds is None else int(seeds), figures))
    return found, dropped


def _default(result: Mapping[str, Any], policies: set[str]) -> str | None:
    """As the result names it, at its top or with the best; else the only one of ours."""
    entries = [mapping(entry) for entry in _best_entries(result).values()]
    named = [text(result.get("default")), *(text(entry.get("default")) for entry in entries)]
    about = mapping(result.get("policies"))
    ours = [name for name, one in about.items() if mapping(one).get("kind") == OURS and name in policies]
    found = [name for name in named if name in policies]
    return found[0] if found else ours[0] if len(ours) == 1 else None


def _kinds(result: Mapping[str, Any], rows: Iterable[Row], default: str | None) -> dict[str, str]:
    given = mapping(result.get("policies"))
    names = dict.fromkeys(row.policy for row in rows)
    return {name: text(mapping(given.get(name)).get("kind")) or _guess(name, default) for name in names}


def _guess(name: str, default: str | None) -> str:
    if name.endswith("-oracle"):
        return BOUND
    return OURS if name == default else BASELINE


def _points(result: Mapping[str, Any], rows: list[Row], kinds: Mapping[str, str]) -> tuple[Point, ...]:
    grouped: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        grouped.setdefault((row.cell, row.load), {})[row.policy] = row
    best = _best_entries(result)
    return tuple(
        Point(
            cell=cell,
            load=load,
            rate_rps=next((row.figures.get("rate_rps") for row in by_policy.values()), None),
            rows=by_policy,
            quantiles=_quantiles(_at(result.get("samples"), cell, load)),
            per_seed={
                policy: {key: numbers(values) for key, values in mapping(mapping(sample).get("per_seed")).items()}
                for policy, sample in _at(result.get("samples"), cell, load).items()
            },
            timelines={name: mapping(one) for name, one in _timelines(result, cell, load).items()},
            best_baseline=_best_baseline(best.get((cell, load), {}), by_policy, kinds),
            entry=best.get((cell, load), {}),
        )
        for (cell, load), by_policy in grouped.items()
    )


def _at(tree: object, cell: str, load: str) -> Mapping[str, Any]:
    loads = mapping(mapping(tree).get(cell))
    return next((mapping(value) for key, value in loads.items() if load_key(key) == load), {})


def _timelines(result: Mapping[str, Any], cell: str, load: str) -> Mapping[str, Any]:
    one = mapping(mapping(result.get("timelines")).get(cell))
    if "policies" in one:
        return mapping(one["policies"]) if load_key(one.get("load")) == load else {}
    return _at(result.get("timelines"), cell, load)


def _quantiles(samples: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    keys = [key for key, *_ in DISTRIBUTIONS]
    return {
        policy: {key: found for key in keys if len(found := known_numbers(mapping(sample).get(key))) > 1}
        for policy, sample in samples.items()
    }


def _best_entries(result: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, Any]]:
    best = result.get("best")
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for item in items(best):
        entry = mapping(item)
        load = load_key(entry.get("load"))
        if isinstance(entry.get("cell"), str) and load is not None:
            found[entry["cell"], load] = entry
    for cell, loads in mapping(best).items():
        for key, entry in mapping(loads).items():
            load = load_key(key)
            if load is not None:
                found[cell, load] = mapping(entry)
    return found


def _best_baseline(entry: Mapping[str, Any], rows: Mapping[str, Row], kinds: Mapping[str, str]) -> str | None:
    for key in ("baseline", "policy"):
        named = text(entry.get(key))
        if named is not None and named in rows and kinds[named] == BASELINE:
            return named
    means = {
        name: mean
        for name, row in rows.items()
        if kinds[name] == BASELINE and (mean := row.figures.get("e2e_mean_s")) is not None
    }
    return min(means, key=means.__getitem__) if means else None


def _policies(
    result: Mapping[str, Any], points: tuple[Point, ...], kinds: Mapping[str, str], *, default: str | None
) -> dict[str, PolicyInfo]:
    given = mapping(result.get("policies"))
    slots, front = ranked(points, kinds, default)
    return {
        name: PolicyInfo(name, kind, text(mapping(given.get(name)).get("description")), slots[name], name in front)
        for name, kind in kinds.items()
    }


def _missing(result: Mapping[str, Any], points: tuple[Point, ...], dropped: int) -> list[str]:
    said = []
    if not points:
        said.append("The result has no rows: there is nothing to compare.")
    if dropped:
        said.append(f"{dropped} rows lack their cell, load or policy and are left out.")
    if points and not any(BASE in point.rows for point in points):
        said.append(f"{BASE} is not among the policies, so changes have no reference.")
    if (base := text(result.get("base"))) not in (None, BASE):
        said.append(f"Changes are against {base}; where this page says {BASE}, read {base}.")
    if points and not any(point.quantiles for point in points):
        said.append("The result has no samples: no latency distributions, no intervals of absolute figures.")
    if points and not any(point.timelines for point in points):
        said.append("The result has no timelines of instances.")
    said.extend(
        f"The result does not say its {part}." for part in ("command", "seeds", "cells") if not result.get(part)
    )
    return said

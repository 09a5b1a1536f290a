"""The result in sentences: what is best where, where a simple rule does better, and what a gain costs elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.plots.markup import change, signed
from llmrouter.study.report.choice import Contrast, Verdict, best_row, contrast
from llmrouter.study.report.data import BASE
from llmrouter.study.report.metrics import E2E_MEAN, HEADLINES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.study.report.data import Point, Row, Study
    from llmrouter.study.report.metrics import Metric

_LISTED = 6


@dataclass(frozen=True, slots=True)
class Judged:
    """A cell and load: its best row, and the default against the best baseline for each of ``HEADLINES``."""

    point: Point
    best: Row | None
    default_vs_baseline: dict[str, Contrast]

    @property
    def verdict(self) -> Verdict:
        """On mean E2E."""
        found = self.default_vs_baseline.get(E2E_MEAN.key)
        return found.verdict(E2E_MEAN) if found else Verdict.UNKNOWN


def judged(study: Study) -> list[Judged]:
    """Every cell and load, in the result's order."""
    return [_judge(point, study) for point in study.points]


def headline(study: Study) -> str:
    """What was compared."""
    policies, cells, loads = len(study.policies), len(study.cell_names), study.loads
    seeds = _seeds(study)
    return (
        f"{_count(policies, 'policy', 'policies')} on {_count(cells, 'cell', 'cells')}"
        + (f" at {_list(loads)} of capacity" if loads else "")
        + (f", {seeds}" if seeds else "")
        + "."
    )


def standing(study: Study, all_judged: Sequence[Judged]) -> list[str]:
    """Sentences on the default policy: against the best baseline, against the base, and what it costs."""
    default = study.default
    if default is None:
        return ["The product's default policy is not among those compared."]
    known = [one for one in all_judged if one.verdict is not Verdict.UNKNOWN]
    return [
        sentence
        for sentence in (
            _against_baselines(default, known, len(all_judged)),
            _beaten(default, known),
            _costs_against_baselines(known),
            _against_base(default, study),
            _costs_against_base(default, study),
        )
        if sentence
    ]


def outlook(study: Study) -> list[str]:
    """Which policies lead most often, and what true lengths would add."""
    said = []
    leaders: dict[str, int] = {}
    for point in study.points:
        best = best_row(point, study)
        if best is not None:
            leaders[best.policy] = leaders.get(best.policy, 0) + 1
    if len(study.points) > 1 and leaders:
        order = sorted(leaders, key=lambda name: -leaders[name])
        counted = _list([f"{name} in {leaders[name]}" for name in order])
        said.append(f"Least mean E2E, of the {len(study.points)} settings: {counted}.")
    return said


def of_point(one: Judged, study: Study) -> str:
    """A sentence or two on a cell and load."""
    if one.best is None:
        return "No policy has a mean E2E here."
    percent, half_width = one.best.change(E2E_MEAN)
    said = f"{one.best.policy} has the least mean E2E, {E2E_MEAN.written(one.best.value(E2E_MEAN))}"
    if one.best.policy != BASE and percent is not None:
        said += f" ({change(percent, half_width)} against {BASE})"
    said += "."
    worse = [metric.label for metric in HEADLINES[1:] if _verdict(one.best, metric) is Verdict.WORSE]
    if worse:
        said += f" It is worse than {BASE} in {_list(worse)}."
    if study.default and one.best.policy != study.default and one.verdict is not Verdict.UNKNOWN:
        found = one.default_vs_baseline[E2E_MEAN.key]
        said += f" {study.default} against {one.point.best_baseline}, the best baseline: {_changed(found)}."
    return said


def _judge(point: Point, study: Study) -> Judged:
    default, baseline = study.default, point.best_baseline
    found = {}
    if default in point.rows and baseline is not None and default is not None:
        found = {metric.key: contrast(point, default, baseline, metric) for metric in HEADLINES}
    return Judged(point, best_row(point, study), found)


def _against_baselines(default: str, known: Sequence[Judged], total: int) -> str | None:
    if not known:
        return f"{default} cannot be set against the best baseline: the figures of each seed are not there."
    counts = {verdict: sum(one.verdict is verdict for one in known) for verdict in Verdict}
    of = f"{len(known)} of {total} settings" if len(known) < total else _count(total, "setting", "settings")
    return (
        f"{default}, the default, against the best baseline of each setting by mean E2E, in {of}: "
        f"better in {counts[Verdict.BETTER]}, no clear difference in {counts[Verdict.UNDECIDED]}, "
        f"worse in {counts[Verdict.WORSE]}."
    )


def _beaten(default: str, known: Sequence[Judged]) -> str | None:
    worse = [one for one in known if one.verdict is Verdict.WORSE]
    if not worse:
        return f"No baseline beats {default} in mean E2E beyond its interval." if known else None
    worse.sort(key=lambda one: -(one.default_vs_baseline[E2E_MEAN.key].percent or 0.0))
    listed = [
        f"{one.point.best_baseline} in {one.point.name} ({default} {_changed(one.default_vs_baseline[E2E_MEAN.key])})"
        for one in worse[:_LISTED]
    ]
    more = f", and {len(worse) - _LISTED} more" if len(worse) > _LISTED else ""
    return f"A simple rule does better than {default}: {'; '.join(listed)}{more}."


def _against_base(default: str, study: Study) -> str | None:
    found = [
        (percent, point)
        for point in study.points
        if default in point.rows and (percent := point.rows[default].change(E2E_MEAN)[0]) is not None
    ]
    if not found or default == BASE:
        return None
    found.sort(key=lambda pair: pair[0])
    (low, best), (high, worst) = found[0], found[-1]
    if len(found) == 1:
        return f"Its mean E2E against {BASE}: {change(*best.rows[default].change(E2E_MEAN))}."
    return f"Its mean E2E against {BASE}: from {signed(low)} % ({best.name}) to {signed(high)} % ({worst.name})."


def _costs_against_baselines(known: Sequence[Judged]) -> str | None:
    """What a gain in mean E2E over the best baseline costs in the other figures."""
    found = [(metric, [(one.default_vs_baseline[metric.key], one.point) for one in known]) for metric in HEADLINES[1:]]
    said = _worse(found)
    return f"In other figures it is worse than that baseline, beyond the interval: {said}." if said else None


def _costs_against_base(default: str, study: Study) -> str | None:
    rows = [(point, point.rows[default]) for point in study.points if default in point.rows]
    if default == BASE:
        return None
    contrasts = [(metric, [(Contrast(*row.change(metric)), point) for point, row in rows]) for metric in HEADLINES[1:]]
    known = [
        metric.label
        for metric, pairs in contrasts
        if any(one.verdict(metric) is not Verdict.UNKNOWN for one, _ in pairs)
    ]
    if said := _worse(contrasts):
        return f"Where it is worse than {BASE}: {said}."
    return f"It worsens none of {_list(known)} against {BASE} beyond its interval." if known else None


def _worse(found: Sequence[tuple[Metric, Sequence[tuple[Contrast, Point]]]]) -> str:
    """``TTFT p99 in 4 of 6 (most: +51.1 ± 32.3 %, h100-mix at 0.95); …``: only what is worse beyond its interval."""
    said = []
    for metric, contrasts in found:
        worse = [one for one in contrasts if one[0].verdict(metric) is Verdict.WORSE]
        if worse:
            most, point = max(worse, key=lambda one: abs(one[0].percent or 0.0))
            said.append(f"{metric.label} in {len(worse)} of {len(contrasts)} (most: {_changed(most)}, {point.name})")
    return "; ".join(said)


def _verdict(row: Row, metric: Metric) -> Verdict:
    return Contrast(*row.change(metric)).verdict(metric)


def _changed(found: Contrast) -> str:
    return change(found.percent, found.half_width)


def _seeds(study: Study) -> str | None:
    count = study.seeds.get("count")
    if not isinstance(count, int):
        return None
    block, first = study.seeds.get("block"), study.seeds.get("first")
    where = f" of the {block} block" if isinstance(block, str) else ""
    begin = f", from {first}" if isinstance(first, int) else ""
    return f"{_count(count, 'paired seed', 'paired seeds')}{where}{begin}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _list(names: Sequence[str]) -> str:
    if len(names) < 2:  # noqa: PLR2004 - one name needs no "and"
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"

"""Which engine each run is judged on, and which runs an engine is fitted on first."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.validation.engines import Coefficients, MeasuredEngine, Reuse, Split
from llmrouter.validation.fit import PROFILE_COEFFICIENTS, STEP_COEFFICIENTS
from llmrouter.validation.measured import below_saturation

if TYPE_CHECKING:
    from collections.abc import Sequence

from llmrouter.validation.measured import MeasuredRun

LONG_PROMPT_TOKENS = 4_000
"""Prompts of this length that come again and again from one user are a growing conversation with a cached beginning."""

DISPLACEMENT = 1.35
"""How far off the shipped coefficients a fresh fit starts."""

LOW_SHARE = 0.35
"""The lower of the two fitted rates, as a share of the higher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """An engine, its runs, and those it must be fitted on before it can judge (none: its fit is shipped).

    Where ``halves``, there is one run: the engine is fitted on the first half of its requests and judged on the second.
    """

    engine: MeasuredEngine
    runs: tuple[MeasuredRun, ...]
    fit_on: tuple[MeasuredRun, ...] = ()
    fit_kv: bool = False
    halves: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All work: assignments, and runs that no engine model covers, each with the reason."""

    assignments: tuple[Assignment, ...]
    excluded: tuple[tuple[MeasuredRun, str], ...]


EXCLUDED = (
    (
        "otel-spans",
        r"codellama-prefill",
        "its prompts take three times as long as those of the same model's other run; what was changed is not recorded",
    ),
)
"""Layout, pattern of run names, and why such runs are not judged."""


def plan(runs: Sequence[MeasuredRun], known: Sequence[MeasuredEngine], *, refit: bool) -> Plan:
    """Every run has one place: a known engine, an engine of its own name to be fitted, or the excluded."""
    excluded: list[tuple[MeasuredRun, str]] = []
    by_engine: dict[str, list[MeasuredRun]] = {}
    engines: dict[str, MeasuredEngine] = {}
    for run in runs:
        reason = next(
            (why for layout, pattern, why in EXCLUDED if run.layout == layout and re.search(pattern, run.name)), None
        )
        if reason is not None:
            excluded.append((run, reason))
            continue
        engine = next((engine for engine in known if engine.serves(run)), None)
        name = engine.name if engine is not None else _unknown_name(run)
        if engine is not None:
            engines[name] = engine
        by_engine.setdefault(name, []).append(run)
    assignments = [
        _assign(engines[name], members, refit=refit) if name in engines else _new(name, members, known)
        for name, members in by_engine.items()
    ]
    return Plan(assignments=tuple(assignments), excluded=tuple(excluded))


def two_rates(runs: Sequence[MeasuredRun]) -> tuple[MeasuredRun, ...]:
    """The runs to fit on: the highest rate below saturation, and one near ``LOW_SHARE`` of it, or all there is.

    Where every run is saturated, the lowest rate and the next are all there is.
    """
    by_rate = sorted(runs, key=lambda run: (np.nan_to_num(run.rate_rps, nan=np.inf), run.name))
    below = [run for run in by_rate if below_saturation(run)] or by_rate[:2]
    high = below[-1]
    low = min(below, key=lambda run: abs(run.rate_rps - LOW_SHARE * high.rate_rps))
    return (high,) if low is high else (low, high)


def _assign(engine: MeasuredEngine, runs: list[MeasuredRun], *, refit: bool) -> Assignment:
    if not refit:
        return Assignment(engine=engine, runs=tuple(runs))
    fresh = replace(engine, coefficients=_displaced(engine.coefficients), fitted=(), fitted_on=())
    return _to_fit(fresh, runs, fit_kv="kv_tokens" in engine.fitted)


def _to_fit(engine: MeasuredEngine, runs: list[MeasuredRun], *, fit_kv: bool) -> Assignment:
    halves = len(runs) == 1
    fit_on = (runs[0].half(second=False),) if halves else two_rates(runs)
    return Assignment(engine=engine, runs=tuple(runs), fit_on=fit_on, fit_kv=fit_kv, halves=halves)


def _displaced(start: Coefficients) -> Coefficients:
    """Coefficients well off the shipped ones, up and down in turn, so that a fresh fit owes them nothing."""
    return replace(
        start,
        **{
            name: getattr(start, name) * (DISPLACEMENT if place % 2 else 1 / DISPLACEMENT)
            for place, name in enumerate(STEP_COEFFICIENTS)
        },
    )


def _unknown_name(run: MeasuredRun) -> str:
    """Runs of one deployment differ in their rate: the name without its trailing numbers."""
    return f"{run.set_name}: {re.sub(r'[-_ ]*(qps)?[0-9.]+([-_][0-9.]+)*$', '', run.name) or run.name}"


def _new(name: str, runs: list[MeasuredRun], known: Sequence[MeasuredEngine]) -> Assignment:
    """A deployment that the catalogue does not know: the start is the known engine of the same layout most like it."""
    sample = runs[0]
    alike = [engine for engine in known if engine.layout == sample.layout] or list(known)
    tpot_s = _shortest_gap_s(runs)
    nearest = min(alike, key=lambda engine: abs(np.log(engine.coefficients.base_decode_s / tpot_s)))
    found = re.search(r"(\d+)replicas", name)
    engine = replace(
        nearest,
        name=name,
        runs=f"^{re.escape(sample.name)}",
        group=f"{name} (not in the catalogue)",
        coefficients=_scaled(nearest.coefficients, tpot_s),
        replicas=int(found.group(1)) if found else 1,
        reuse=_reuse(sample),
        split=Split.SESSION if _reuse(sample) is Reuse.SESSIONS else Split.RANDOM,
        warm_fraction=1.0,
        decode_instances=0,
        documented={},
        fitted=(),
        fitted_on=(),
    )
    return _to_fit(engine, runs, fit_kv=not all(map(below_saturation, runs)))


def _shortest_gap_s(runs: Sequence[MeasuredRun]) -> float:
    tpot_s = np.concatenate([run.tpot_s for run in runs])
    known = tpot_s[np.isfinite(tpot_s) & (tpot_s > 0)]
    return float(np.quantile(known, 0.1)) if len(known) else 0.02


def _reuse(run: MeasuredRun) -> Reuse:
    if run.layout != "generation":
        return Reuse.NONE
    if (run.session < 0).all():
        return Reuse.SHARE
    return Reuse.SESSIONS if float(np.median(run.prompt_tokens)) > LONG_PROMPT_TOKENS else Reuse.NONE


def _scaled(start: Coefficients, tpot_s: float) -> Coefficients:
    factor = float(np.clip(0.9 * tpot_s / start.base_decode_s, 0.05, 20))
    names = (*PROFILE_COEFFICIENTS, "prefill_sequence_s")
    scaled: dict[str, float] = {name: getattr(start, name) * factor for name in names}
    if start.uncached_fraction >= 1:
        scaled["uncached_fraction"] = 0.6
    return replace(start, **scaled)

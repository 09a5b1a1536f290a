"""The verdicts as JSON and as tables of a terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from llmrouter.validation.fit import STEP_COEFFICIENTS
from llmrouter.validation.judge import FIGURES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from llmrouter.validation.engines import MeasuredEngine
    from llmrouter.validation.judge import Verdict
    from llmrouter.validation.readers import Skipped

SUMMARY_FIGURES = ("tpot_mean", "e2e_mean", "ttft_p50")
SATURATED_FIGURES = ("tpot_mean", "e2e_mean", "makespan")
OUTLIER_FACTOR = 3.0
"""A run is an outlier where an error exceeds this many times its group's median …"""
OUTLIER_LEAST = 0.1
"""… and this fraction."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a group is held to: medians of |error| over unseen runs below saturation; ``None`` claims nothing."""

    tpot_mean: float | None
    e2e_mean: float | None
    ttft_p50: float | None


TARGETS = {
    "DistServe file, vLLM runs": Target(0.05, 0.07, 0.15),
    "BLIS Llama-2-7b": Target(0.02, 0.02, 0.10),
    "LMBench 8B sharegpt": Target(0.05, 0.05, 0.15),
    "LMBench 8B short_input": Target(0.05, 0.08, None),
    "LMBench 8B long_input, 1 replica": Target(0.10, 0.15, 0.25),
    "S-LoRA": Target(0.06, 0.06, 0.20),
    "llmservingsim": Target(0.08, 0.05, None),
}
"""By the beginning of a group's name."""

_TARGETS_70B = {"sharegpt": Target(0.07, 0.08, 0.15), "short_input": Target(0.05, 0.08, None)}


def target_of(group: str) -> Target | None:
    """The target of a group, if there is one."""
    if group.startswith("LMBench 70B"):
        return next(target for word, target in _TARGETS_70B.items() if word in group)
    return next((target for name, target in TARGETS.items() if group.startswith(name)), None)


def document(
    verdicts: Sequence[Verdict], engines: Sequence[MeasuredEngine], skipped: Sequence[Skipped]
) -> dict[str, Any]:
    """Everything as one JSON object; ``runs`` has one entry per measured run."""
    return {
        "runs": [_run(verdict) for verdict in verdicts],
        "sets": summaries(verdicts, by_set=True),
        "groups": summaries(verdicts, by_set=False),
        "engines": [_engine(engine) for engine in engines],
        "skipped": [{"set": note.set_name, "reason": note.reason} for note in skipped],
        "below_saturation": "from measured times: last third of the requests against the first; see the documentation",
        "errors": "simulated/measured - 1; null where not measurable or not judged, with the reason in note",
    }


def _run(verdict: Verdict) -> dict[str, Any]:
    run, engine = verdict.run, verdict.engine
    rate_rps = run.rate_rps
    return {
        "run": run.name,
        "set": run.set_name,
        "engine": engine.name if engine else None,
        "group": engine.group if engine else None,
        "fitted_on": list(engine.fitted_on) if engine else [],
        "below_saturation": verdict.below_saturation,
        **{f"{name}_err": _rounded(verdict.errors[name]) for name in FIGURES},
        "requests": len(run),
        "rate_rps": _rounded(rate_rps) if np.isfinite(rate_rps) else None,
        "note": verdict.note,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def _engine(engine: MeasuredEngine) -> dict[str, Any]:
    values = asdict(engine.coefficients)
    fitted = {name: values[name] for name in engine.fitted}
    given = {
        **{name: values[name] for name in ("kv_tokens",) if name not in engine.fitted},
        "max_sequences": engine.max_sequences,
        "token_budget": engine.token_budget,
        "schedule": engine.schedule.value,
        "admission": engine.admission.value,
        "scheduling_lag_steps": engine.scheduling_lag_steps,
        "replicas": engine.replicas,
        "split": engine.split.value if engine.replicas > 1 else None,
        "reuse": engine.reuse.value,
        "decode_instances": engine.decode_instances,
    }
    return {
        "engine": engine.name,
        "group": engine.group,
        "fitted_on": list(engine.fitted_on),
        "fitted": fitted,
        "given": given,
        "documented": engine.documented,
    }


def summaries(verdicts: Sequence[Verdict], *, by_set: bool) -> list[dict[str, Any]]:
    """Medians of |error| over unseen runs below saturation, worst run and outliers, by set or by group of runs."""
    names: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        key = verdict.run.set_name if by_set else (verdict.engine.group if verdict.engine else None)
        if key is not None:
            names.setdefault(key, []).append(verdict)
    return [_summary(name, members, targeted=not by_set) for name, members in names.items()]


def _summary(name: str, members: Sequence[Verdict], *, targeted: bool) -> dict[str, Any]:
    judged = [verdict for verdict in members if verdict.below_saturation and not verdict.seen]
    medians = median_errors(judged)
    target = target_of(name) if targeted else None
    worst = max(judged, key=lambda verdict: abs(verdict.errors["e2e_mean"] or 0.0), default=None)
    return {
        "name": name,
        "runs": len(members),
        "unseen_below_saturation": len(judged),
        "unseen_saturated": sum(not verdict.below_saturation and not verdict.seen for verdict in members),
        "median_abs_err": medians,
        "median_abs_err_saturated": median_errors(
            [verdict for verdict in members if not verdict.below_saturation and not verdict.seen]
        ),
        "median_abs_err_fitted": median_errors([verdict for verdict in members if verdict.seen]),
        "target": asdict(target) if target else None,
        "worst": None if worst is None else {"run": worst.run.name, "e2e_mean_err": _rounded(worst.errors["e2e_mean"])},
        "outliers": [verdict.run.name for verdict in judged if _is_outlier(verdict, medians)],
    }


def median_errors(verdicts: Iterable[Verdict]) -> dict[str, float | None]:
    """Median |error| by figure; ``None`` where no run has it."""
    members = list(verdicts)
    found: dict[str, float | None] = {}
    for name in FIGURES:
        errors = [abs(error) for verdict in members if (error := verdict.errors[name]) is not None]
        found[name] = round(float(np.median(errors)), 5) if errors else None
    return found


def _is_outlier(verdict: Verdict, medians: dict[str, float | None]) -> bool:
    for name in ("tpot_mean", "e2e_mean", "ttft_p50"):
        error, median = verdict.errors[name], medians[name]
        if error is not None and median is not None and abs(error) > max(OUTLIER_FACTOR * median, OUTLIER_LEAST):
            return True
    return False


def summary_table(groups: Sequence[dict[str, Any]]) -> Table:
    """One line per group: medians beside targets."""
    table = Table(
        title="Median |error| over unseen runs: those below saturation (target), then those over", title_justify="left"
    )
    table.add_column("runs of", overflow="fold", ratio=3)
    table.add_column("below", justify="right")
    for name in SUMMARY_FIGURES:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("worst by E2E", overflow="fold", ratio=2)
    table.add_column("over", justify="right")
    for name in SATURATED_FIGURES:
        table.add_column(name.replace("_", " "), justify="right")
    for group in groups:
        worst = group["worst"]
        table.add_row(
            group["name"],
            f"{group['unseen_below_saturation']}/{group['runs']}",
            *(_against(group, name) for name in SUMMARY_FIGURES),
            "–" if worst is None else f"{worst['run'].rsplit('/', 1)[-1]} {_percent(worst['e2e_mean_err'])}",
            str(group["unseen_saturated"] or "–"),
            *(_share(group["median_abs_err_saturated"][name]) for name in SATURATED_FIGURES),
        )
    return table


def _against(group: dict[str, Any], name: str) -> str:
    median = group["median_abs_err"][name]
    target = (group["target"] or {}).get(name)
    text = _share(median)
    if target is None or median is None:
        return text
    colour = "green" if median <= target else "red"
    return f"[{colour}]{text}[/] ({100 * target:.0f})"


def _share(median: float | None) -> str:
    return "–" if median is None else f"{100 * median:.1f} %"


def run_table(verdicts: Sequence[Verdict]) -> Table:
    """One line per run."""
    table = Table(title="Error by run: simulated/measured − 1", title_justify="left")
    table.add_column("run", overflow="fold")
    table.add_column("rate/s", justify="right")
    table.add_column("load")
    for name in FIGURES:
        table.add_column(name.replace("_", " "), justify="right")
    for verdict in verdicts:
        load = "below" if verdict.below_saturation else "saturated"
        table.add_row(
            f"{verdict.run.name}{' *' if verdict.seen else ''}",
            f"{verdict.run.rate_rps:.2f}",
            load,
            *(_percent(verdict.errors[name]) for name in FIGURES),
        )
    table.caption = "* the engine was fitted on this run"
    return table


def engine_lines(engines: Sequence[MeasuredEngine]) -> Iterator[str]:
    """Of every engine: what is fitted, on which runs, and where the rest is written down."""
    yield f"Fitted unless said otherwise: {', '.join(STEP_COEFFICIENTS)}."
    for engine in engines:
        also = [name for name in engine.fitted if name not in STEP_COEFFICIENTS]
        yield f"{engine.name}: fitted on {', '.join(engine.fitted_on) or 'nothing: published values'}"
        if also:
            yield f"    fitted too: {', '.join(also)}"
        for name, source in engine.documented.items():
            yield f"    {name}: {source}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f} %"

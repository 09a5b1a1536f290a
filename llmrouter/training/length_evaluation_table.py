"""An evaluation for a terminal: per setting and stream, one line a predictor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from llmrouter.training.length_evaluation_scores import METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

COLUMNS = {
    "bucket_accuracy": ("bucket", "{:.1%}"),
    "kendall_tau": ("τ-b", "{:.3f}"),
    "somers_d": ("Somers' D", "{:.3f}"),
    "pinball_loss": ("pinball", "{:.2f}"),
    "coverage_80": ("covers", "{:.1%}"),
    "mae_tokens": ("MAE", "{:.1f}"),
}


LEGEND = (
    "bucket: share of answers in the most probable of 0-250-1000-. τ-b, Somers' D: of rank and length. pinball: loss, "
    "tokens. covers: of the 80 % interval. MAE: of the median, tokens. ±: half of the 95 % interval (bootstrap over "
    "prompts)."
)


def print_evaluation(result: Mapping[str, Any], console: Console) -> None:
    """Tables of all streams, the subject's tasks, what the columns are, and the notes."""
    for setting in result["settings"]:
        for stream in setting["streams"]:
            console.print(_stream_table(setting, stream))
        if setting["streams"] and setting["streams"][0]["by_task"]:
            console.print(_task_table(result["predictor"], setting))
    if "drift" in result:
        console.print(_drift_table(result["drift"]))
    console.print(LEGEND, markup=False, highlight=False)
    for note in result["notes"]:
        console.print(f"· {note}", markup=False, highlight=False)


def cell(metric: str, part: Sequence[float | None]) -> str:
    """A value with half the width of its 95 % interval."""
    _, form = COLUMNS[metric]
    value, low, high = part
    if value is None:
        return "–"
    if low is None or high is None:
        return form.format(value)
    return f"{form.format(value)}\n±{form.format((high - low) / 2.0).removesuffix('%')}"


def _stream_table(setting: Mapping[str, Any], stream: Mapping[str, Any]) -> Table:
    how = f"online, {setting['order']} order" if setting["online"] else "offline"
    hint = "with the task hint" if setting["hint"] else "without the task hint"
    who = stream["family"] or "all rows"
    table = Table(
        box=SIMPLE_HEAD, title=f"{who}: {stream['rows']:,} rows, {stream['prompts']:,} prompts; {how}, {hint}"
    )
    table.add_column("predictor", no_wrap=True)
    for title, _ in COLUMNS.values():
        table.add_column(title, justify="right", overflow="fold")
    for name, metrics in stream["overall"]["predictors"].items():
        table.add_row(name.replace("+", "\n+"), *(cell(metric, metrics[metric]) for metric in COLUMNS))
    return table


def _task_table(subject: str, setting: Mapping[str, Any]) -> Table:
    tasks = setting["streams"][0]["by_task"]
    table = Table(
        box=SIMPLE_HEAD, title=f"{subject}, by task ({'with' if setting['hint'] else 'without'} the task hint)"
    )
    table.add_column("task", no_wrap=True)
    table.add_column("rows", justify="right")
    for title, _ in COLUMNS.values():
        table.add_column(title, justify="right", overflow="fold")
    for task, one in sorted(tasks.items()):
        metrics = one["predictors"][subject]
        table.add_row(task or "(none)", f"{one['rows']:,}", *(cell(metric, metrics[metric]) for metric in COLUMNS))
    return table


def _drift_table(drift: Mapping[str, Any]) -> Table:
    title = f"{drift['before']} gives way to {drift['after']}: pinball loss ÷ that of a fresh predictor, 80 % covers"
    table = Table(box=SIMPLE_HEAD, title=title)
    table.add_column("predictor", no_wrap=True)
    windows = drift["windows"]
    for window in windows:
        table.add_column(f"answers {window['from'] + 1}–{window['to']}", justify="right")
    for name in windows[0]["after_change"]["predictors"]:
        cells = []
        for window in windows:
            lived, fresh = (window[which]["predictors"][name] for which in ("after_change", "fresh"))
            loss = lived["pinball_loss"][0] / max(fresh["pinball_loss"][0], 1e-9)
            cells.append(f"{loss:.2f}; {lived['coverage_80'][0]:.1%}")
        table.add_row(name.replace("+", "\n+"), *cells)
    return table


assert set(COLUMNS) <= set(METRICS)  # noqa: S101 - both are written by hand

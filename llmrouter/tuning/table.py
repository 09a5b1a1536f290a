"""The verdict as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from llmrouter.study.table import LABELS, show
from llmrouter.tuning.parameters import numbers
from llmrouter.tuning.written import change_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from llmrouter.resources import RoutingPolicySpec
    from llmrouter.tuning.judgement import Judged, Verdict

_LABELS = {**LABELS, "preemptions_per_request": "preempted", "shed_rate": "shed"}
_COLOURS = {"better": "green", "worse": "red", "same": ""}
_MUST = {"improve": "must improve", "hold": "must not get worse", "": ""}


def print_verdict(
    result: Mapping[str, Any],
    verdict: Verdict,
    *,
    current: RoutingPolicySpec,
    tuned: RoutingPolicySpec,
    console: Console,
) -> None:
    """Two tables: the policy's numbers, and figures on the held-out windows; then the verdict."""
    names = Table(title="the policy's numbers", title_justify="left")
    for heading in ("", "current", "tuned"):
        names.add_column(heading, justify="left" if not heading else "right")
    was, now = numbers(current), numbers(tuned)
    for name, value in now.items():
        changed = value != was[name]
        names.add_row(name, f"{was[name]:g}", f"[bold]{value:g}[/]" if changed else f"{value:g}")
    console.print(names)
    held_out = result["held_out"]
    title = (
        f"held out: {result['held_out_windows']} windows of {held_out['requests_of_a_window']:,} requests at "
        f"{held_out['rate_rps']:.3g} a second, of {held_out['name']}"
    )
    figures = Table(title=title, title_justify="left")
    for heading in ("", "current", "tuned", "change", ""):
        figures.add_column(heading, justify="left" if not heading else "right")
    for row in verdict.rows:
        figures.add_row(*_cells(row, str(result["objective"])))
    console.print(figures)
    console.print(("accepted: " if verdict.accepted else "kept the current policy: ") + verdict.reason, highlight=False)
    for note in result["notes"]:
        console.print(f"· {note}", markup=False, highlight=False)


def _cells(row: Judged, objective: str) -> tuple[str, ...]:
    colour = _COLOURS[row.verdict]
    text = f"[{colour}]{change_text(row)}[/]" if colour else change_text(row)
    if row.name == "objective":
        return f"objective {objective}", "", "", text, _MUST[row.must]
    label = _LABELS[row.name]
    return label, _shown(row.name, row.current), _shown(row.name, row.tuned), text, _MUST[row.must]


def _shown(name: str, value: float | None) -> str:
    if name == "preemptions_per_request" and value is not None:
        return f"{value:.2%}"
    return show(name, value)

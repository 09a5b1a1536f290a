"""What a candidate does, as ``kubectl`` shows it: a table that moves where there is a terminal, lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from llmrouter.testbed.terminal_view import TerminalView

if TYPE_CHECKING:
    from llmrouter.testbed.replay_events import ReplayState

LINE_INTERVAL_S = 5.0
PHASE_STYLES = {"RolledBack": "bold red", "Refused": "bold red", "Promoted": "bold green", "Running": "bold cyan"}
SECTION = "Candidate"
EVENTS = ("Candidate", "Promotion", "PolicyChanged")
_TIMES = (("ttft", "TTFT"), ("tpot", "TPOT"), ("e2e", "E2E"))


class CanaryView(TerminalView):
    """Shows ``status.candidate``; use as a context manager."""

    def show(self, status: dict[str, Any], state: ReplayState) -> None:
        """The candidate as it is now."""
        said = status.get("candidate") or {}
        shown = picture(said, state.progress)
        if self._live is not None:
            self._live.update(shown)
        line = str(said.get("phase", "")) if self._live is not None else f"{headline(said)}{in_short(said)}"
        ends_or_begins = self._line.split(":")[0] != line.split(":")[0]
        now_s = time.monotonic()
        if line != self._line and (ends_or_begins or now_s - self._line_at_s >= LINE_INTERVAL_S):
            self._line, self._line_at_s = line, now_s
            self._console.print(headline(said).append(in_short(said)), soft_wrap=True)


def headline(said: dict[str, Any]) -> Text:
    """The candidate in a line."""
    phase = str(said.get("phase", "–"))
    line = Text(f"{said.get('name', '–')} ")
    line.append(phase, style=PHASE_STYLES.get(phase, "bold"))
    line.append(f" {said.get('reason', '')}: {said.get('message', '')}")
    return line


def in_short(said: dict[str, Any]) -> str:
    """Ratios, or what a shadow would have done."""
    found = [f"{one['metric']} {one['ratio']:.2f}" for one in said.get("comparisons", ()) if one["metric"] != "errors"]
    shadow = shadowed(said["shadow"]) if "shadow" in said else ""
    return "".join(f"  [{part}]" for part in (", ".join(found), shadow) if part)


def picture(said: dict[str, Any], progress: dict[str, Any]) -> Group:
    """Both arms under a headline."""
    parts: list[Text | Table] = [headline(said)]
    if progress:
        counts = "{sent} sent, {done} done, {failed} failed, {in_flight} in flight".format(**progress)
        parts.append(Text(f"traffic: {counts}", style="dim"))
    if said.get("arms"):
        parts.append(arms(said))
    if shadow := said.get("shadow"):
        parts.append(Text(shadowed(shadow)))
    return Group(*parts)


def shadowed(shadow: dict[str, Any]) -> str:
    """A shadow in a line."""
    agreed = f", {shadow['agreementFraction']:.0%} as decided" if "agreementFraction" in shadow else ""
    cost = (
        f", {shadow['costDifferenceSeconds']:+.3g} s of predicted cost a request"
        if "costDifferenceSeconds" in shadow
        else ""
    )
    return f"shadow: {shadow['decisions']} decisions{agreed}{cost}"


def arms(said: dict[str, Any]) -> Table:
    """Both arms and their ratios."""
    table = Table(box=None, pad_edge=False)
    table.add_column("arm")
    for name in ("requests", "errors", *(label for _, label in _TIMES)):
        table.add_column(name, justify="right")
    for one in said["arms"]:
        times = (f"{one[f'{key}MeanSeconds']:.3f} s" if f"{key}MeanSeconds" in one else "–" for key, _ in _TIMES)
        table.add_row(one["arm"], str(one["requests"]), str(one["errors"]), *times)
    found = {one["metric"]: one for one in said.get("comparisons", ())}
    if found:
        ratios = (
            f"{found[key]['ratio']:.2f} ({found[key]['low']:.2f}–{found[key]['high']:.2f})" if key in found else "–"
            for key, _ in _TIMES
        )
        table.add_row("ratio", "", "", *ratios)
    return table

"""What rebalancing does, as ``kubectl`` shows it: a table that moves where there is a terminal, lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from llmrouter.testbed.terminal_view import TerminalView

if TYPE_CHECKING:
    from llmrouter.testbed.pod_watch import PodWatch
    from llmrouter.testbed.replay_events import ReplayState

LINE_INTERVAL_S = 10.0
SECTION = "Rebalance"
EVENTS = ("Rebalance",)
_STYLES = {"Blocked": "bold red", "RollingBack": "bold red", "Settled": "bold green", "Recommending": "bold yellow"}


class RebalanceView(TerminalView):
    """Shows ``status.rebalance``; use as a context manager."""

    def show(self, status: dict[str, Any], state: ReplayState, pods: PodWatch) -> None:
        """Pools and phase as they are now."""
        said: dict[str, Any] = status.get("rebalance") or {}
        line = headline(said, pods)
        if self._live is not None:
            self._live.update(picture(said, line, state, pods))
        mark = f"{said.get('phase')} {said.get('summary')}"
        now_s = time.monotonic()
        if mark != self._line or (self._live is None and now_s - self._line_at_s >= LINE_INTERVAL_S):
            self._line, self._line_at_s = mark, now_s
            self._console.print(line, soft_wrap=True)


def headline(said: dict[str, Any], pods: PodWatch) -> Text:
    """The phase in a line."""
    phase = str(said.get("phase", "–"))
    line = Text()
    line.append(f"{phase:<13}", style=_STYLES.get(phase, "bold cyan"))
    line.append(f"{said.get('summary', ''):<28}")
    line.append(f"{pods.count} pods, at most {pods.most}  ", style="dim")
    line.append(str(said.get("message", "")).partition(" (")[0])
    return line


def picture(said: dict[str, Any], line: Text, state: ReplayState, pods: PodWatch) -> Group:
    """The pools under a headline."""
    table = Table(box=None, pad_edge=False)
    for name in ("pool", "declared", "proposed", "pods"):
        table.add_column(name, justify="left" if name == "pool" else "right")
    proposed = {one["pool"]: one.get("replicas") for one in said.get("proposed") or ()}
    for one in said.get("applied") or ():
        pool = one["pool"]
        table.add_row(pool, str(one["replicas"]), str(proposed.get(pool, "–")), str(pods.of(pool)))
    parts: list[Text | Table] = [line, table]
    if state.progress:
        counts = "{sent} sent, {done} done, {failed} failed, {in_flight} in flight".format(**state.progress)
        parts.append(Text(f"traffic ({state.stretch}): {counts}", style="dim"))
    return Group(*parts)

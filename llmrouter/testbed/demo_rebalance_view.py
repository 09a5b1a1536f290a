"""What rebalancing does, as ``kubectl`` shows it: a table that moves where there is a terminal, lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType

    from llmrouter.testbed.pod_watch import PodWatch
    from llmrouter.testbed.replay_events import ReplayState

LINE_INTERVAL_S = 10.0
EVENTS = ("Rebalance",)
_STYLES = {"Blocked": "bold red", "RollingBack": "bold red", "Settled": "bold green", "Recommending": "bold yellow"}


class RebalanceView:
    """Shows ``status.rebalance``; use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._line_at_s = 0.0
        self._last = ""

    def __enter__(self) -> Self:
        """Takes the terminal, where there is one."""
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=2, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Gives the terminal back."""
        if self._live is not None:
            self._live.stop()

    def chapter(self, title: str) -> None:
        """A headline that stays."""
        self._console.print()
        self._console.print(Rule(title, align="left", style="bold"))
        self._last = ""

    def describe(self, text: str) -> None:
        """What ``kubectl describe`` says."""
        self._console.print(Padding(Text(text, style="dim"), (1, 0, 0, 2)))

    def show(self, status: dict[str, Any], state: ReplayState, pods: PodWatch) -> None:
        """Pools and phase as they are now."""
        said: dict[str, Any] = status.get("rebalance") or {}
        line = headline(said, pods)
        if self._live is not None:
            self._live.update(picture(said, line, state, pods))
        mark = f"{said.get('phase')} {said.get('summary')}"
        now_s = time.monotonic()
        if mark != self._last or (self._live is None and now_s - self._line_at_s >= LINE_INTERVAL_S):
            self._last, self._line_at_s = mark, now_s
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


def excerpt(described: str) -> str:
    """Of ``kubectl describe llmrouter``: the status of rebalancing, and its Events."""
    lines = described.splitlines()
    at = next((place for place, line in enumerate(lines) if line.startswith("Status:")), 0)
    block: list[str] = []
    for line in lines[at:]:
        if line.startswith("  Rebalance:"):
            block = [line]
        elif block and line.startswith("    "):
            block.append(line)
        elif block:
            break
    events = [line for line in lines if _is_event(line.split())]
    return "\n".join(["$ kubectl describe llmr demo", "  …", *block, "  …", "Events:", *events])


def _is_event(words: list[str]) -> bool:
    return words[:1] in (["Normal"], ["Warning"]) and len(words) > 1 and words[1].startswith(EVENTS)

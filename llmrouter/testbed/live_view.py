"""What happens in a replay, as it happens: a table where there is a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llmrouter.testbed.terminal_view import TerminalView

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.testbed.replay_events import ReplayState

LINE_INTERVAL_S = 5.0
ID_LENGTH = 15
DIGEST_LENGTH = 10


class LiveView(TerminalView):
    """Shows a ``ReplayState``; use as a context manager."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        super().__init__(console or Console(highlight=False))
        self._title = title
        self._stretch = ""

    def show(self, state: ReplayState) -> None:
        """The state as it is now."""
        if self._live is not None:
            self._live.update(picture(self._title, state))
            return
        now_s = time.monotonic()
        due = state.stretch != self._stretch or now_s - self._line_at_s >= LINE_INTERVAL_S
        if due and state.progress:
            self._stretch, self._line_at_s = state.stretch, now_s
            self.say(one_line(state))


def one_line(state: ReplayState) -> str:
    """The state in a line."""
    progress = state.progress
    loads = " ".join(str(instance["in_flight_requests"]) for instance in progress["instances"])
    return (
        f"{state.stretch:>13}: {progress['done']} done, {progress['failed']} failed, {progress['in_flight']} in flight "
        f"[{loads}], deciding {', '.join(_values(progress, 'deciding')) or '–'}"
    )


def picture(title: str, state: ReplayState) -> Group:
    """The state as a table of instances under a headline."""
    progress = state.progress
    if not progress:
        return Group(Text(f"{title}: waiting for the first answer"))
    elapsed_s = max(0.0, progress["at_s"] - state.stretch_began_at_s)
    head = Text()
    head.append(f"{title}  ", style="bold")
    head.append(f"{state.stretch} ", style="bold cyan")
    head.append(f"{elapsed_s:.0f}/{state.stretch_duration_s:.0f} s   ")
    head.append(f"{progress['sent']} sent  {progress['done']} done  {progress['in_flight']} in flight  ")
    head.append(
        f"{progress['failed']} failed  {progress['retries']} retried", style="red" if progress["failed"] else ""
    )
    return Group(head, _policy_line(progress), _instances(progress["instances"]))


def _policy_line(progress: dict[str, Any]) -> Text:
    digests = [digest[:DIGEST_LENGTH] for digest in _values(progress, "policy_digest")]
    line = Text(f"{len(progress['routers'])} routers   policy ")
    line.append(", ".join(_values(progress, "deciding")) or "–", style="bold green")
    line.append(f"   digest {', '.join(digests) or '–'}")
    if held := sum(router["held"] for router in progress["routers"].values()):
        line.append(f"   {held} held")
    if any(router["degraded"] for router in progress["routers"].values()):
        line.append("   degraded", style="bold red")
    return line


def _instances(instances: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, expand=True)
    for name in ("instance", "pool"):
        table.add_column(name, no_wrap=True)
    for name in ("reqs", "run", "wait", "KV", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("in flight", ratio=1)
    most = max((instance["in_flight_context_tokens"] for instance in instances), default=0)
    for instance in sorted(instances, key=lambda one: (one["pool"], one["instance_id"])):
        tokens = instance["in_flight_context_tokens"]
        table.add_row(
            _ending(instance["instance_id"]),
            instance["pool"],
            str(instance["in_flight_requests"]),
            _or_dash(instance["running"]),
            _or_dash(instance["waiting"]),
            _percent(instance["kv_usage_fraction"]),
            f"{tokens:,}",
            ProgressBar(total=max(most, 1), completed=tokens, complete_style="green", finished_style="green"),
        )
    return table


def print_table(console: Console, rows: Sequence[tuple[str, ...]]) -> None:
    """A table whose first row is its header."""
    header, *body = rows
    table = Table(pad_edge=False, box=None)
    for position, name in enumerate(header):
        table.add_column(name, justify="left" if position == 0 else "right")
    for row in body:
        table.add_row(*row)
    console.print(table)


def _values(progress: dict[str, Any], key: str) -> list[str]:
    return sorted({str(router[key]) for router in progress["routers"].values()})


def _ending(instance_id: str) -> str:
    """The part of a long name that tells it from its siblings."""
    return instance_id if len(instance_id) <= ID_LENGTH else f"…{instance_id[1 - ID_LENGTH :]}"


def _or_dash(value: int | None) -> str:
    return "–" if value is None else str(value)


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{fraction:.0%}"

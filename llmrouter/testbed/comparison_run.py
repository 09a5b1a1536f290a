"""What demos do alike, with Kubernetes or without: follow a replay to its end, show it, and conclude."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

from llmrouter.testbed.cluster.errors import ClusterError, PartFailedError
from llmrouter.testbed.cluster.processes import tail_of
from llmrouter.testbed.comparison import notes, shortcomings, table, write_summary
from llmrouter.testbed.live_view import LiveView, print_table
from llmrouter.testbed.replay_events import ReplayState, follow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import FrameType

INTERRUPTED = 130
TERMINATED = 143


def watch_replay(
    lines: Path, *, alive: Callable[[], bool], view: LiveView, on_stretch: Callable[[str], None]
) -> ReplayState:
    """Shows a replay until it ends; ``on_stretch`` hears the name of each stretch when it begins.

    Raises:
        PartFailedError: the replay ended without saying how it went.
    """
    state = ReplayState()
    for line in follow(lines, alive):
        event = state.feed(line) if line is not None else None
        if event is not None and event["kind"] == "stretch":
            on_stretch(event["name"])
        view.show(state)
        if state.end is not None:
            return state
    raise PartFailedError(f"the replay ended early; its output {lines} ends:\n{tail_of(lines)}")


def conclude(values: dict[str, Any], path: Path, console: Console) -> int:
    """Writes the summary and prints the table; the exit status says whether the comparison can be believed."""
    write_summary(values, path)
    console.print()
    print_table(console, table(values["phases"]))
    console.print()
    for line in notes(values):
        console.print(line, markup=False, soft_wrap=True)
    return verdict(shortcomings(values), path, console)


def verdict(found: Sequence[str], path: Path, console: Console) -> int:
    """Says what is not as it should be and where the summary lies; the exit status says whether all is."""
    for line in found:
        console.print(f"NOT AS IT SHOULD BE: {line}", style="bold red", markup=False, soft_wrap=True)
    console.print(f"\nsummary: {path}", markup=False, soft_wrap=True)
    return 1 if found else 0


def run_to_exit_status(body: Callable[[Console], int]) -> int:
    """Runs a demo: SIGTERM unwinds it as SIGINT does, what cannot be done is one clear line."""
    console = Console(highlight=False)
    try:
        with _sigterm_unwinds():
            return body(console)
    except ClusterError as error:
        console.print(f"demo: {error}", style="red", markup=False, soft_wrap=True)
        return error.exit_status
    except KeyboardInterrupt:
        console.print("demo: interrupted")
        return INTERRUPTED


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    def unwind(number: int, frame: FrameType | None) -> None:
        del number, frame
        sys.exit(TERMINATED)

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

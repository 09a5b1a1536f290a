"""The JSON lines of a replay, read while it runs: what it does now, and every outcome so far."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmrouter.testbed.measure import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

POLL_S = 0.1


@dataclass
class ReplayState:
    """What a replay has said so far."""

    stretch: str = "start"
    stretch_began_at_s: float = 0.0
    stretch_duration_s: float = 0.0
    progress: dict[str, Any] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    end: dict[str, Any] | None = None
    decided_by: dict[str, set[str]] = field(default_factory=dict)
    """Names of the policies that decided, by stretch, as the routers' snapshots said."""

    def feed(self, line: str) -> dict[str, Any] | None:
        """Takes one line; returns its event, or ``None`` for a line that is not one, such as a warning."""
        try:
            event = json.loads(line)
        except ValueError:
            return None
        if not isinstance(event, dict) or "kind" not in event:
            return None
        match event["kind"]:
            case "stretch":
                self.stretch = event["name"]
                self.stretch_began_at_s = event["at_s"]
                self.stretch_duration_s = event["duration_s"]
            case "progress":
                self.progress = event
                deciders = {router["deciding"] for router in event["routers"].values()}
                self.decided_by.setdefault(event["stretch"], set()).update(deciders)
            case "rows":
                self.outcomes.extend(Outcome.from_row(row) for row in event["rows"])
            case "end":
                self.end = event
        return event

    def of(self, stretch: str) -> list[Outcome]:
        """Outcomes of one stretch."""
        return [outcome for outcome in self.outcomes if outcome.stretch == stretch]


def follow(path: Path, alive: Callable[[], bool]) -> Iterator[str | None]:
    """Lines of a file that grows, until its writer is gone; ``None`` whenever there is nothing new for a moment."""
    partial = ""
    with path.open(encoding="utf-8", errors="replace") as source:
        while True:
            writing = alive()
            if read := source.readline():
                partial += read
                if partial.endswith("\n"):
                    yield partial
                    partial = ""
                continue
            if not writing:
                return
            yield None
            time.sleep(POLL_S)

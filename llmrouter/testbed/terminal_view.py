"""A terminal that a demo has for itself: what moves is at its end, what was said stays above."""

from __future__ import annotations

from textwrap import indent
from typing import TYPE_CHECKING, Self

from rich.live import Live
from rich.rule import Rule
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

REFRESH_PER_SECOND = 2.0


class TerminalView:
    """Takes the terminal while it is entered, where there is one; its kinds show what moves in ``_live``."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._line_at_s = 0.0
        self._line = ""
        """What the last line was about, and when it was written."""

    def __enter__(self) -> Self:
        """Takes the terminal."""
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=REFRESH_PER_SECOND, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Gives the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """One line that stays."""
        self._console.print(text, markup=False, soft_wrap=True)

    def chapter(self, title: str) -> None:
        """A headline that stays."""
        self._console.print()
        self._console.print(Rule(title, align="left", style="bold"))
        self._line = ""

    def describe(self, text: str) -> None:
        """What ``kubectl describe`` says."""
        self._console.print()
        self._console.print(Text(indent(text, "  "), style="dim"), soft_wrap=True)


def excerpt(described: str, section: str, events: tuple[str, ...]) -> str:
    """Of ``kubectl describe llmrouter``: one section of the status, and the Events whose reasons begin like these."""
    lines = described.splitlines()
    at = next((place for place, line in enumerate(lines) if line.startswith("Status:")), 0)
    block: list[str] = []
    for line in lines[at:]:
        if line.startswith(f"  {section}:"):
            block = [line]
        elif block and line.startswith("    "):
            block.append(line)
        elif block:
            break
    after = next((place for place, line in enumerate(lines) if line.startswith("Events:")), len(lines))
    told = [line for line in lines[after + 1 :] if line.split()[1:2] and line.split()[1].startswith(events)]
    return "\n".join(["$ kubectl describe llmr demo", "  …", *block, "  …", "Events:", *told])

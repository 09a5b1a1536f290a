"""Azure's LLM inference traces: as published (TIMESTAMP, ContextTokens, GeneratedTokens), or with arrivals in seconds.

The published times are kept to the microsecond and count from the first request.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from llmrouter.arrivals.readers.columns import Columns, Row, seconds, tokens
from llmrouter.arrivals.readers.lines import BadLine, Why
from llmrouter.arrivals.readers.tables import each, table

if TYPE_CHECKING:
    from llmrouter.arrivals.readers.lines import Source
    from llmrouter.sim.workload import Workload

PUBLISHED = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
NORMALISED = ("arrival_s", "input_tokens", "output_tokens")


def read(source: Source, name: str) -> Workload:
    """One file: its requests are of one application, named after the file (``code`` or ``conversation``)."""
    found = table(source, ())
    names = PUBLISHED if PUBLISHED[0] in found.columns else NORMALISED
    if missing := [column for column in names if column not in found.columns]:
        raise source.error(f"lacks the columns {', '.join(missing)}")
    at, prompt, output = (found.columns[column] for column in names)
    columns = Columns()
    application = _application(name)
    clock = _Clock() if names is PUBLISHED else None

    def use(row: list[str]) -> None:
        columns.add(
            Row(
                arrived_at_s=clock.since_first_s(row[at]) if clock else seconds(row[at], "arrival_s"),
                prompt_tokens=tokens(row[prompt], names[1]),
                output_tokens=tokens(row[output], names[2]),
                application=application,
            )
        )

    each(source, found.rows, use)
    return columns.workload(source, name)


class _Clock:
    """Seconds since the first time it is shown."""

    def __init__(self) -> None:
        self._first: datetime | None = None

    def since_first_s(self, text: str) -> float:
        """Raises BadLine for what is no time, and for one before the first."""
        try:
            at = datetime.fromisoformat(text.strip())
            self._first = self._first or at
            passed_s = (at - self._first).total_seconds()
        except (ValueError, TypeError):
            raise BadLine(Why.NUMBER, f"TIMESTAMP must be a date and time, not {text!r:.40}") from None
        if passed_s < 0:
            raise BadLine(Why.UNSORTED, f"TIMESTAMP {text} is before the first request: arrivals must be in order")
        return passed_s


def _application(name: str) -> str:
    lower = name.lower()
    return next((word for mark, word in (("code", "code"), ("conv", "conversation")) if mark in lower), "")

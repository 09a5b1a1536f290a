"""One's own recordings: CSV or JSON lines with the columns of ``COLUMNS``; others are ignored.

A row with a ``session`` that came before and a ``think_s`` is a later turn: it arrives ``think_s`` seconds after the
answer to the session's last row, whatever its ``arrival_s``, which may be left out. Every other row arrives at its
``arrival_s``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmrouter.arrivals.readers.columns import Columns, Row, seconds, tokens
from llmrouter.arrivals.readers.lines import BadLine, Why
from llmrouter.arrivals.readers.tables import each, objects, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmrouter.arrivals.readers.lines import Source
    from llmrouter.sim.workload import Workload

NEEDED = ("arrival_s", "prompt_tokens", "output_tokens")
COLUMNS = (
    *NEEDED,
    *("application", "model", "tenant", "session", "think_s", "cancelled_after_s"),
    *("predicted_output_tokens", "prefix_blocks", "prefix_block_tokens"),
)
MAX_BLOCK_TOKENS = 65_536


def read_csv(source: Source, name: str) -> Workload:
    """A CSV file; an empty field says nothing, ``prefix_blocks`` are separated by spaces."""
    found = table(source, NEEDED)
    places = [(column, found.columns[column]) for column in COLUMNS if column in found.columns]
    requests = _Requests()

    def use(row: list[str]) -> None:
        requests.add({column: text for column, place in places if (text := row[place])})

    each(source, found.rows, use)
    return requests.columns.workload(source, name)


def read_jsonl(source: Source, name: str) -> Workload:
    """A file of JSON objects, one a line; null says nothing, ``prefix_blocks`` is a list."""
    requests = _Requests()

    def use(row: dict[str, object]) -> None:
        requests.add({column: value for column in COLUMNS if (value := row.get(column)) is not None})

    each(source, objects(source), use)
    return requests.columns.workload(source, name)


@dataclass(slots=True)
class _Requests:
    """The requests so far, and the last row of every session."""

    columns: Columns = field(default_factory=Columns)
    last_row: dict[str, int] = field(default_factory=dict)

    def add(self, said: Mapping[str, object]) -> None:
        """Adds what a row says; raises BadLine."""
        session = _word(said, "session")
        after = self._turn_before(session, said)
        if after < 0:
            arrived_at_s = seconds(_needed(said, "arrival_s"), "arrival_s")
        else:
            arrived_at_s = self.columns.arrived_at_s[after]
        row = Row(
            arrived_at_s=arrived_at_s,
            prompt_tokens=tokens(_needed(said, "prompt_tokens"), "prompt_tokens"),
            output_tokens=tokens(_needed(said, "output_tokens"), "output_tokens"),
            after=after,
        )
        if len(said) > len(NEEDED) or after >= 0:
            self._add_optional(row, said)
        self.columns.add(row)
        if session:
            self.last_row[session] = len(self.columns) - 1

    def _turn_before(self, session: str, said: Mapping[str, object]) -> int:
        if "think_s" not in said:
            return -1
        if not session:
            raise BadLine(Why.COLUMNS, "think_s needs a session")
        return self.last_row.get(session, -1)

    def _add_optional(self, row: Row, said: Mapping[str, object]) -> None:
        row.application, row.model, row.tenant = _word(said, "application"), _word(said, "model"), _word(said, "tenant")
        if row.after >= 0:
            row.think_s = seconds(said["think_s"], "think_s")
        if "cancelled_after_s" in said:
            row.cancelled_after_s = seconds(said["cancelled_after_s"], "cancelled_after_s", high=math.inf)
        if "predicted_output_tokens" in said:
            row.predicted_output_tokens = _predicted(said["predicted_output_tokens"])
        if "prefix_blocks" in said:
            row.blocks = _blocks(said["prefix_blocks"])
            self._check_size(said)

    def _check_size(self, said: Mapping[str, object]) -> None:
        if "prefix_block_tokens" not in said:
            raise BadLine(Why.COLUMNS, "prefix_blocks needs prefix_block_tokens, the tokens of a block")
        size = tokens(said["prefix_block_tokens"], "prefix_block_tokens", high=MAX_BLOCK_TOKENS)
        if self.columns.block_tokens not in (0, size):
            raise BadLine(
                Why.PREFIX, f"prefix_block_tokens must be {self.columns.block_tokens} as in earlier lines, not {size}"
            )
        self.columns.block_tokens = size


def _needed(said: Mapping[str, object], name: str) -> object:
    if name not in said:
        raise BadLine(Why.COLUMNS, f"lacks {name}")
    return said[name]


def _word(said: Mapping[str, object], name: str) -> str:
    value = said.get(name)
    if value is None:
        return ""
    if type(value) is str:
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadLine(Why.COLUMNS, f"{name} must be a word, not {value!r:.40}")
    return str(value)


def _predicted(value: object) -> float:
    """A prediction may be less than a token, even 0: unpredicted."""
    try:
        return seconds(value, "predicted_output_tokens")
    except BadLine as bad:
        raise BadLine(bad.why, str(bad).replace(" of seconds", "")) from None


def _blocks(value: object) -> Sequence[str | int]:
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, list) or not all(type(block) in (int, str) for block in value):
        raise BadLine(Why.PREFIX, f"prefix_blocks must be a list of ids, not {value!r:.40}")
    return value

"""Recorded sessions of a coding agent: turns that each wait for the answer before them and some thinking.

Every session has a clock of its own; ``transform.with_starts`` sets them apart. Block hashes are not published: a turn
whose prompt is as long as the one before it or longer is taken to begin with it, a shorter one to share nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmrouter.arrivals.readers.columns import Columns, Row, seconds, tokens
from llmrouter.arrivals.readers.tables import each, table

if TYPE_CHECKING:
    from llmrouter.arrivals.readers.lines import Source
    from llmrouter.sim.workload import Workload

NEEDED = ("session_id", "arrival_delta_s", "think_time_s", "input_tokens", "output_tokens")
BLOCK_TOKENS = 512


@dataclass(slots=True)
class _Session:
    """The last turn so far: its row, its prompt and the blocks of it."""

    row: int = -1
    prompt_tokens: int = 0
    blocks: list[int] = field(default_factory=list)


def read(source: Source, name: str) -> Workload:
    """One file, the rows of a session in the order of its turns.

    A session starts at its first turn's ``arrival_delta_s``; ``think_time_s`` is from an answer's end to the next turn.
    """
    found = table(source, NEEDED)
    turns = _Turns()
    places = [(column, found.columns[column]) for column in (*NEEDED, "model_id") if column in found.columns]

    def use(row: list[str]) -> None:
        turns.add({column: row[place] for column, place in places})

    each(source, found.rows, use)
    return turns.columns.workload(source, name)


@dataclass(slots=True)
class _Turns:
    """The turns so far, by session; first turns are not yet in order of arrival."""

    columns: Columns = field(default_factory=lambda: Columns(block_tokens=BLOCK_TOKENS, ordered=False))
    sessions: dict[str, _Session] = field(default_factory=dict)
    blocks: int = 0

    def add(self, said: dict[str, str]) -> None:
        """Adds a turn; raises BadLine."""
        session = self.sessions.get(said["session_id"]) or _Session()
        prompt_tokens = tokens(said["input_tokens"], "input_tokens")
        output_tokens = tokens(said["output_tokens"], "output_tokens")
        if session.row < 0:
            arrived_at_s, think_s = seconds(said["arrival_delta_s"], "arrival_delta_s"), 0.0
        else:
            arrived_at_s = self.columns.arrived_at_s[session.row]
            think_s = seconds(said["think_time_s"], "think_time_s")
        kept = session.blocks if prompt_tokens >= session.prompt_tokens else []
        new = prompt_tokens // BLOCK_TOKENS - len(kept)
        blocks = [*kept, *range(self.blocks, self.blocks + new)]
        self.columns.add(
            Row(
                arrived_at_s=arrived_at_s,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                application="agent",
                model=said.get("model_id", ""),
                tenant=said["session_id"],
                after=session.row,
                think_s=think_s,
                blocks=blocks,
            )
        )
        self.blocks += new
        self.sessions[said["session_id"]] = _Session(len(self.columns) - 1, prompt_tokens, blocks)

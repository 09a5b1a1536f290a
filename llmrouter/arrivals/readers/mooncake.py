"""Mooncake's traces: JSON lines with times in milliseconds, lengths and the hashes of the prompt's 512-token blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.arrivals.readers.columns import Columns, Row, seconds, tokens
from llmrouter.arrivals.readers.lines import BadLine, Why
from llmrouter.arrivals.readers.tables import each, objects

if TYPE_CHECKING:
    from numpy.random import Generator

    from llmrouter.arrivals.readers.lines import Source
    from llmrouter.sim.workload import Workload

BLOCK_TOKENS = 512
FIELDS = ("timestamp", "input_length", "output_length")
MIN_TICK_S = 1.0
MIN_PER_TICK = 2.0


def read(source: Source, name: str, rng: Generator | None = None) -> Workload:
    """One file. With ``rng``, arrivals recorded in ticks of a second or more are spread evenly over their tick."""
    columns = Columns(block_tokens=BLOCK_TOKENS)
    application = name.removesuffix("_trace")

    def use(row: dict[str, object]) -> None:
        if missing := [field for field in FIELDS if field not in row]:
            raise BadLine(Why.COLUMNS, f"lacks {', '.join(missing)}")
        blocks = row.get("hash_ids", [])
        if not isinstance(blocks, list) or not all(type(block) is int for block in blocks):
            raise BadLine(Why.PREFIX, f"hash_ids must be a list of whole numbers, not {blocks!r:.40}")
        columns.add(
            Row(
                arrived_at_s=seconds(row["timestamp"], "timestamp") / 1_000,
                prompt_tokens=tokens(row["input_length"], "input_length"),
                output_tokens=tokens(row["output_length"], "output_length"),
                application=application,
                blocks=blocks,
            )
        )

    each(source, objects(source), use)
    made = columns.workload(source, name)
    return made if rng is None else spread(made, rng)


def spread(workload: Workload, rng: Generator) -> Workload:
    """Arrivals moved evenly into the span from their tick to the next, in their order.

    Times are taken to be ticks where distinct ones are typically a second or more apart and hold two requests or more
    on average; else nothing is moved.
    """
    at_s = workload.arrived_at_s
    ticks, tick_of, counts = np.unique(at_s, return_inverse=True, return_counts=True)
    if len(ticks) < 2 or counts.mean() < MIN_PER_TICK:  # noqa: PLR2004
        return workload
    gaps = np.diff(ticks)
    if (typical_s := float(np.median(gaps))) < MIN_TICK_S:
        return workload
    spans = np.minimum(np.append(gaps, typical_s), typical_s)
    return replace(workload, arrived_at_s=np.sort(at_s + rng.random(len(workload)) * spans[tick_of]))

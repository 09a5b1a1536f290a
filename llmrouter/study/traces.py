"""A trace file as studies read it: the same file gives the same requests, whoever reads it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.arrivals.readers import Format, read

if TYPE_CHECKING:
    import argparse

    from llmrouter.arrivals.readers import Skipped
    from llmrouter.sim.workload import Workload

_DRAWN_WITH = 0
"""Seed of what a format leaves to chance: ServeGen's requests, Mooncake's instants within its ticks."""


@functools.lru_cache(maxsize=4)
def load_trace(path: str, trace_format: str, *, skip_bad: bool) -> tuple[Workload, Skipped]:
    """The file's requests and the lines left out, by reason; an empty format is told from the file.

    Raises:
        InvalidInputError: one line that names the file, the line and what is wrong there.
    """
    return read(
        Path(path),
        format=trace_format or None,
        on_bad="skip" if skip_bad else "refuse",
        rng=np.random.default_rng(_DRAWN_WITH),
    )


def trace_name(path: Path) -> str:
    """The name of a trace file's cell: the file's without its endings."""
    return path.name.split(".")[0] or path.name


def add_trace_options(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """``--format`` and ``--skip-bad-lines``, which say how ``--trace`` is read."""
    group.add_argument(
        "--format", choices=[one.value for one in Format], help="of the trace (default: told from the file)"
    )
    group.add_argument(
        "--skip-bad-lines", action="store_true", help="leave out lines that cannot be used, and count them"
    )

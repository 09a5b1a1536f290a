"""Recorded requests as workloads: one entry, ``read``, and a module for every format."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from llmrouter.arrivals import transform
from llmrouter.arrivals.readers import azure, mooncake, own, servegen, sessions
from llmrouter.arrivals.readers.lines import OnBad, Skipped, Source
from llmrouter.arrivals.readers.servegen_draw import Window
from llmrouter.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.random import Generator

    from llmrouter.sim.workload import Workload

__all__ = ["Format", "OnBad", "Skipped", "Window", "format_of", "read"]


class Format(StrEnum):
    """The formats that ``read`` knows."""

    AZURE = "azure"
    CSV = "csv"
    JSONL = "jsonl"
    MOONCAKE = "mooncake"
    SERVEGEN = "servegen"
    SESSIONS = "sessions"


_READERS: dict[Format, Callable[[Source, str], Workload]] = {
    Format.AZURE: azure.read,
    Format.CSV: own.read_csv,
    Format.JSONL: own.read_jsonl,
    Format.SESSIONS: sessions.read,
}


_HEADERS = (
    (Format.CSV, own.NEEDED),
    (Format.SESSIONS, sessions.NEEDED),
    (Format.SERVEGEN, servegen.RATE_COLUMNS),
    (Format.SERVEGEN, servegen.LENGTH_COLUMNS),
    (Format.AZURE, azure.PUBLISHED),
    (Format.AZURE, azure.NORMALISED),
)
"""Columns that tell a format, tried in this order."""


def read(
    path: Path,
    *,
    format: str | None = None,  # noqa: A002 - the word of the command line
    on_bad: OnBad = "refuse",
    window: Window | None = None,
    rng: Generator | None = None,
) -> tuple[Workload, Skipped]:
    """Reads recorded requests, gzipped or not.

    Args:
        path: the file; of ServeGen's pair either.
        format: a word of ``Format``; ``None`` tells it by the header or the first line.
        on_bad: ``refuse`` raises at the first line that cannot be used; ``skip`` leaves such lines out and counts them.
        window: the span to keep, moved to start at 0; ``None`` keeps all, of ServeGen the first 600 s.
        rng: draws ServeGen's requests, and spreads Mooncake's arrivals within their ticks; others need none.

    Returns:
        The workload, and how many lines were left out, by reason.

    Raises:
        InvalidInputError: one line that names the file, the line and what is wrong there; or there is no request.
    """
    kind = format_of(path) if format is None else _known(format)
    if on_bad not in ("refuse", "skip"):
        raise InvalidInputError(f"on_bad must be refuse or skip, not {on_bad!r}")
    if kind is Format.SERVEGEN:
        if rng is None:
            raise InvalidInputError(f"{path}: requests of ServeGen are drawn, which needs a seed")
        return servegen.read(path, rng, window=window, on_bad=on_bad)
    source = Source(path, on_bad)
    name = path.name.split(".")[0]
    made = mooncake.read(source, name, rng) if kind is Format.MOONCAKE else _READERS[kind](source, name)
    if window is not None:
        made = transform.window(made, window.start_s, window.duration_s)
    return made, source.summary()


def format_of(path: Path) -> Format:
    """The format, told by the header of a CSV file or the first JSON object.

    Raises:
        InvalidInputError: the file cannot be opened, is empty, or looks like none of them.
    """
    source = Source(path)
    first = next(source.lines(), None)
    if first is None:
        source.line = 0
        raise source.error("is empty")
    if first.lstrip().startswith("{"):
        return Format.MOONCAKE if '"timestamp"' in first and '"input_length"' in first else Format.JSONL
    header = {name.strip() for name in first.split(",")}
    for kind, columns in _HEADERS:
        if set(columns) <= header:
            return kind
    raise source.error(f"looks like none of {', '.join(Format)}: one's own CSV has the columns {', '.join(own.NEEDED)}")


def _known(word: str) -> Format:
    try:
        return Format(word)
    except ValueError:
        raise InvalidInputError(f"format must be one of {', '.join(Format)}, not {word!r}") from None

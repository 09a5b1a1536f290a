"""Readers of measured runs: CSV or JSONL files, gzipped or not, told apart by their columns.

Every layout gives arrival, prompt, output, TTFT and E2E of each request; which columns they come from is the table
below. A file without runs and arrivals (single requests with the state they met) cannot be replayed: it is named, with
the reason, and passed over. Anything else that is wrong is an error with its file and line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.errors import InvalidInputError
from llmrouter.sim.workload import MAX_TOKENS
from llmrouter.validation.measured import MeasuredRun

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MAX_SECONDS = 1e8
_ROUNDING_S = 1e-3
ARRIVAL = "arrival_s"
SESSION = "user_id"

PROMPT_COLUMNS = ("prompt_tokens", "input_tokens")
TTFT_COLUMNS = ("ttft_s", "first_token_s")
E2E_COLUMNS = ("e2e_s", "generation_s", "last_token_s")
"""What stands for a figure, best first: ``first_token_s`` and ``last_token_s`` are instants on the clock of arrivals,
``generation_s`` runs from the first token to the last."""

LAYOUTS = (
    ("generation", "generation_s"),
    ("token-instants", "first_token_s"),
    ("otel-spans", "decode_s"),
    ("clients", "client"),
    ("requests", "arrival_s"),
)
"""Layouts and the column that tells each; the first that a header has names the file's."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file without judgeable runs, and why."""

    set_name: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where a file's figures stand: names of columns."""

    layout: str
    prompt: str
    ttft: str
    e2e: str
    session: str | None

    @property
    def numbers(self) -> tuple[str, ...]:
        needed = (ARRIVAL, self.prompt, "output_tokens", self.ttft, self.e2e)
        return needed if self.session is None else (*needed, self.session)


def read_folder(folder: Path, *, skip_bad: bool = False) -> tuple[list[MeasuredRun], list[Skipped]]:
    """All measured runs of the folder's ``*.csv.gz`` and ``*.csv`` files, or of its ``groundtruth``, by name of file.

    Args:
        folder: where the files are.
        skip_bad: whether a malformed file is passed over, with its error as the reason.

    Raises:
        InvalidInputError: no such folder, no run in it, or a file is malformed; the message names file and line.
    """
    if not folder.is_dir():
        raise InvalidInputError(f"{folder} is no folder")
    paths = _files(folder) or _files(folder / "groundtruth")
    runs: list[MeasuredRun] = []
    skipped: list[Skipped] = []
    for path in paths:
        try:
            found = read_file(path)
        except InvalidInputError as error:
            if not skip_bad:
                raise
            found = Skipped(set_name(path), str(error))
        if isinstance(found, Skipped):
            skipped.append(found)
        else:
            runs.extend(found)
    if not runs:
        reasons = "".join(f"; {note.set_name}: {note.reason}" for note in skipped)
        raise InvalidInputError(f"{folder} holds no *.csv.gz file with measured runs{reasons}")
    return runs, skipped


def read_file(path: Path) -> list[MeasuredRun] | Skipped:
    """The runs of one file, in its order, or why it holds none.

    Raises:
        InvalidInputError: malformed; the message names file and line.
    """
    lines = _rows(path)
    header = next(lines, None)
    if header is None:
        raise InvalidInputError(f"{path}: line 1: a header is missing")
    names = header[1]
    if ARRIVAL not in names and "run" not in names:
        return Skipped(set_name(path), "no column arrival_s: without arrivals nothing can be replayed")
    columns = _columns(path, names)
    return [_run(path, columns, name, rows) for name, rows in _by_run(path, columns, names, lines).items()]


def set_name(path: Path) -> str:
    """The file's name without its endings."""
    return path.name.removesuffix(".gz").removesuffix(".csv").removesuffix(".jsonl")


def _files(folder: Path) -> list[Path]:
    return sorted((*folder.glob("*.csv.gz"), *folder.glob("*.csv")))


def _columns(path: Path, names: list[str]) -> _Columns:
    for name in (ARRIVAL, "output_tokens"):
        if name not in names:
            raise InvalidInputError(f"{path}: line 1: column {name} is missing")
    return _Columns(
        layout=next(layout for layout, mark in LAYOUTS if mark in names),
        prompt=_one_of(path, names, PROMPT_COLUMNS),
        ttft=_one_of(path, names, TTFT_COLUMNS),
        e2e=_one_of(path, names, E2E_COLUMNS),
        session=SESSION if SESSION in names else None,
    )


def _one_of(path: Path, names: list[str], choices: tuple[str, ...]) -> str:
    found = next((choice for choice in choices if choice in names), None)
    if found is None:
        raise InvalidInputError(f"{path}: line 1: column {' or '.join(choices)} is missing")
    return found


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of a CSV file, or of a JSONL file as if it were one; the header comes first."""
    line = 0
    try:
        with (
            gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as raw,
            io.TextIOWrapper(raw, encoding="utf-8", newline="") as text,
        ):
            if ".jsonl" in path.suffixes:
                for line, cells in _objects(path, text):
                    yield line, cells
                return
            reader = csv.reader(text)
            for cells in reader:
                line = reader.line_num
                if cells:
                    yield line, cells
    except (EOFError, zlib.error, OSError) as error:
        raise InvalidInputError(f"{path}: line {line + 1}: cannot be read further: {error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(f"{path}: line {line + 1}: {error}") from error


def _objects(path: Path, text: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    names: list[str] = []
    for line, row in enumerate(text, start=1):
        if not row.strip():
            continue
        try:
            found = json.loads(row)
        except ValueError as error:
            raise InvalidInputError(f"{path}: line {line}: no JSON object: {error}") from error
        if not isinstance(found, dict):
            raise InvalidInputError(f"{path}: line {line}: no JSON object: {row.strip()[:40]}")
        if not names:
            names = list(found)
            yield line, names
        lack = next((name for name in names if name not in found), None)
        if lack is not None:
            raise InvalidInputError(f"{path}: line {line}: field {lack} is missing")
        yield line, [str(found[name]) for name in names]


def _by_run(
    path: Path, columns: _Columns, names: list[str], lines: Iterator[tuple[int, list[str]]]
) -> dict[str, list[tuple[int, list[float]]]]:
    """Rows by run: (line number, the numbers of ``columns.numbers``)."""
    places = [names.index(name) for name in columns.numbers]
    run_at = names.index("run") if "run" in names else None
    by_run: dict[str, list[tuple[int, list[float]]]] = {}
    for line, cells in lines:
        if len(cells) != len(names):
            raise InvalidInputError(f"{path}: line {line}: {len(cells)} cells, not {len(names)}")
        row = [
            _number(f"{path}: line {line}", name, cells[at]) for name, at in zip(columns.numbers, places, strict=True)
        ]
        by_run.setdefault(set_name(path) if run_at is None else cells[run_at], []).append((line, row))
    if not by_run:
        raise InvalidInputError(f"{path}: line 2: there are no rows below the header")
    return by_run


def _number(where: str, name: str, cell: str) -> float:
    if name == SESSION and cell == "":
        return -1.0
    try:
        number = float(cell)
    except ValueError:
        raise InvalidInputError(f"{where}: {name} must be a number, not {cell!r}") from None
    if name == SESSION:
        low, high = -1.0, MAX_SECONDS
    elif name.endswith("_tokens"):
        low, high = (0.0 if name == "output_tokens" else 1.0), float(MAX_TOKENS)
    else:
        low, high = 0.0, MAX_SECONDS
    if not (math.isfinite(number) and low <= number <= high):
        raise InvalidInputError(f"{where}: {name} must be {low:g} to {high:g}, not {cell}")
    return number


def _run(path: Path, columns: _Columns, name: str, rows: list[tuple[int, list[float]]]) -> MeasuredRun:
    """One run. A request whose first token comes before it arrives, or after its last, was not measured."""
    cells = dict(zip(columns.numbers, np.array([row for _, row in rows]).T, strict=True))
    arrived_at_s = cells[ARRIVAL]
    ttft_s = cells[columns.ttft] - (arrived_at_s if columns.ttft == "first_token_s" else 0.0)
    since = {"e2e_s": 0.0, "generation_s": ttft_s, "last_token_s": -arrived_at_s}[columns.e2e]
    e2e_s = cells[columns.e2e] + since
    order = np.argsort(arrived_at_s, kind="stable")
    session = cells[columns.session] if columns.session else np.full(len(rows), -1.0)
    return MeasuredRun(
        set_name=set_name(path),
        name=name,
        layout=columns.layout,
        arrived_at_s=arrived_at_s[order] - arrived_at_s[order[0]],
        prompt_tokens=cells[columns.prompt][order].astype(np.int64),
        output_tokens=np.maximum(cells["output_tokens"][order].astype(np.int64), 1),
        ttft_s=ttft_s[order],
        e2e_s=e2e_s[order],
        measured=((ttft_s > 0) & (e2e_s >= ttft_s - _ROUNDING_S))[order],
        session=session[order].astype(np.int64),
    )

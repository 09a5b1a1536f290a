"""CSV with a header and JSON lines, row by row, with the bad ones refused or counted."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeVar

from llmrouter.arrivals.readers.lines import BadLine, Why

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from llmrouter.arrivals.readers.lines import Source


_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file whose header was read. ``columns`` maps a name to its place in a row."""

    columns: dict[str, int]
    rows: Iterator[list[str]]


def table(source: Source, needed: Sequence[str]) -> Table:
    """Reads the header of a CSV file; the rows come one by one, as wide as the header.

    Raises:
        InvalidInputError: the file is empty, a needed column is missing or one comes twice.
    """
    reader = csv.reader(source.lines())
    try:
        header = [name.strip() for name in next(reader)]
    except StopIteration:
        raise source.error("is empty") from None
    except csv.Error as error:
        raise source.error(f"not CSV: {error}") from error
    if missing := [name for name in needed if name not in header]:
        raise source.error(f"lacks the columns {', '.join(missing)}")
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise source.error(f"has the column {', '.join(twice)} twice")
    return Table({name: place for place, name in enumerate(header)}, _rows(source, reader, len(header)))


def _rows(source: Source, reader: Iterator[list[str]], width: int) -> Iterator[list[str]]:
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            source.bad(Why.CSV, f"not CSV: {error}")
            continue
        if len(row) == width:
            yield row
        else:
            source.bad(Why.COLUMNS, f"has {len(row)} columns, not {width}")


def objects(source: Source) -> Iterator[dict[str, object]]:
    """The JSON objects of a file, one a line."""
    for line in source.lines():
        try:
            found = json.loads(line, parse_constant=_no_constant)
        except RecursionError:
            source.bad(Why.JSON, "not a JSON object: nested too deep")
            continue
        except ValueError as error:
            source.bad(Why.JSON, f"not a JSON object: {error}")
            continue
        if isinstance(found, dict):
            yield found
        else:
            source.bad(Why.JSON, f"not a JSON object but a {type(found).__name__}")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def each(source: Source, rows: Iterator[_Row], use: Callable[[_Row], None]) -> None:
    """Uses every row; one that raises BadLine is refused or counted."""
    for row in rows:
        try:
            use(row)
        except BadLine as bad:
            source.bad(bad.why, str(bad))

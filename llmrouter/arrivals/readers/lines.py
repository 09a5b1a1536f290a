"""Lines of a text file, plain or gzipped, and what is done about those that cannot be used."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from llmrouter.errors import InvalidInputError

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator, Mapping
    from pathlib import Path

OnBad = Literal["refuse", "skip"]

MAX_LINE_BYTES = 4 * 1024 * 1024
_GZIP_MAGIC = b"\x1f\x8b"


class Why(StrEnum):
    """Why a line was not used."""

    COLUMNS = "wrong number of columns"
    NUMBER = "not a number"
    BOUNDS = "out of bounds"
    UNSORTED = "earlier than the line before"
    PREFIX = "prefix blocks do not fit the prompt"
    JSON = "not a JSON object"
    CSV = "not CSV"
    TEXT = "not UTF-8"
    TOO_LONG = "line too long"
    TRUNCATED = "file ends early"
    UNKNOWN_LENGTHS = "client without lengths"


@dataclass(frozen=True, slots=True)
class Skipped:
    """How many lines were left out, by reason; nothing where a file was read whole."""

    by_reason: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.by_reason.values())

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.by_reason.items())) or "none"


class BadLine(Exception):  # noqa: N818 - a signal between two functions of a reader, never seen outside
    """A line that cannot be used, and why."""

    def __init__(self, why: Why, message: str) -> None:
        super().__init__(message)
        self.why = why


@dataclass(slots=True)
class Source:
    """A file being read: where it is, which line, what to do about a bad one.

    Attributes:
        path: of the file.
        on_bad: ``refuse`` raises at the first bad line, ``skip`` counts it and goes on.
        line: of what is being read, from 1; 0 before the first.
        cut: whether that line has no end, as the last of a file that was cut off has none.
        skipped: lines left out so far, by reason.
    """

    path: Path
    on_bad: OnBad = "refuse"
    line: int = 0
    cut: bool = False
    skipped: Counter[str] = field(default_factory=Counter)

    def bad(self, why: Why, message: str) -> None:
        """Raises InvalidInputError with file and line, or counts the line."""
        if self.on_bad == "refuse":
            raise self.error(message)
        self.skipped[why] += 1

    def error(self, message: str) -> InvalidInputError:
        """An error that names file and line."""
        place = f"{self.path}, line {self.line}" if self.line else str(self.path)
        if self.line and self.cut:
            message += " (the file ends in this line: is it cut off?)"
        return InvalidInputError(f"{place}: {message}")

    def summary(self) -> Skipped:
        """What was left out."""
        return Skipped(MappingProxyType(dict(self.skipped)))

    @contextmanager
    def opened(self) -> Iterator[io.BufferedIOBase]:
        """The file's bytes, unzipped; raises InvalidInputError where it cannot be opened."""
        try:
            raw = self.path.open("rb")
        except OSError as error:
            raise InvalidInputError(f"{self.path}: {error.strerror or error}") from error
        with raw:
            if raw.peek(2)[:2] == _GZIP_MAGIC:
                with gzip.open(raw, "rb") as unzipped:
                    yield unzipped
            else:
                yield raw

    def lines(self) -> Iterator[str]:
        """The lines with their ends, decoded; blank ones are left out, a byte order mark too.

        A file that ends in the middle of its compressed data, a line that is no UTF-8 and one of more than
        ``MAX_LINE_BYTES`` are bad lines.
        """
        self.line = 0
        with self.opened() as stream:
            while True:
                self.line += 1
                raw = self._next(stream)
                if not raw:
                    return
                self.cut = not raw.endswith(b"\n")
                if raw.isspace():
                    continue
                if len(raw) > MAX_LINE_BYTES:
                    self._pass_long_line(stream, raw)
                    continue
                try:
                    text = raw.decode("utf-8-sig" if self.line == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    self.bad(Why.TEXT, f"not UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}")
                    continue
                yield text

    def _next(self, stream: io.BufferedIOBase) -> bytes:
        try:
            return stream.readline(MAX_LINE_BYTES + 1)
        except EOFError:
            self.bad(Why.TRUNCATED, "the compressed data end early: the file is cut off")
        except (gzip.BadGzipFile, zlib.error) as error:
            self.bad(Why.TRUNCATED, f"the compressed data are damaged: {error}")
        except OSError as error:
            raise self.error(str(error.strerror or error)) from error
        return b""

    def _pass_long_line(self, stream: io.BufferedIOBase, raw: bytes) -> None:
        self.bad(Why.TOO_LONG, f"longer than {MAX_LINE_BYTES:,} bytes")
        while raw and not raw.endswith(b"\n"):
            raw = self._next(stream)

"""Reads prompts with the lengths of their answers, as JSON lines, plain or gzipped."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmrouter.errors import InvalidInputError
from llmrouter.lengths.distribution import MAX_TOKENS
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.lengths.prompt_tokens import PromptTokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

HELD_OUT_SHARE = 0.2
TOOL_TASK = "tool_use"
MAX_LINE_BYTES = 64 * 1024 * 1024
MAX_PROMPT_TOKENS = 10**8


@dataclass(frozen=True, slots=True)
class LengthRow:
    """One answered request. ``prompt_digest`` names its prompt; ``task`` is the hint; unknown labels are "".

    ``counted``: the file says how many tokens the whole prompt has.
    """

    request: LengthRequest
    output_tokens: int
    task: str
    family: str
    source: str
    prompt_digest: bytes
    counted: bool = True

    @property
    def held_out(self) -> bool:
        """Whether the row is in the fifth of prompts that scores models and never trains them."""
        return held_out(self.prompt_digest)

    def seen(self, *, hint: bool) -> LengthRequest:
        """The request as predictors see it: with its label, or without.

        With the hint, a task named ``tool_use`` stands for a request that offers tools where the row does not say.
        """
        if not hint:
            return replace(self.request, application="")
        if self.task == TOOL_TASK and self.request.tools is None:
            return replace(self.request, tools=1)
        return self.request


@dataclass(frozen=True, slots=True)
class LengthRows:
    """What a file held: rows in its order, how many lines were left out, by reason, and how many lengths were missing.

    A missing ``prompt_tokens`` is estimated from the prompt.
    """

    rows: tuple[LengthRow, ...]
    skipped: Counter[str]
    estimated: int


def held_out(prompt_digest: bytes) -> bool:
    """The split by prompt: the first four bytes of its SHA-256 fall in the lowest fifth."""
    return int.from_bytes(prompt_digest[:4]) < HELD_OUT_SHARE * 2**32


def digest_of(prompt: str) -> bytes:
    """SHA-256 of a prompt; lone surrogates, which JSON can hold and UTF-8 cannot, are kept apart as they are."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()


def read_rows(
    path: Path,
    *,
    label: str = "task",
    skip_bad: bool = False,
    family: str | None = None,
    on_rows: Callable[[int], None],
) -> LengthRows:
    """Reads ``prompts.jsonl.gz`` or any file of its layout.

    A line is an object with ``prompt`` (text) and ``response_tokens`` (1 to 1e6). Optional: ``task``, ``app``,
    ``model``, ``family``, ``source`` (text), ``prompt_tokens``, ``max_tokens``, ``temperature``, ``tools``, ``stop``,
    ``turn`` (numbers; for ``tools`` and ``stop`` also lists) and ``thinking`` (true or false). Others are ignored.

    Args:
        path: the file; gzipped or not is told by its first bytes.
        label: the field that becomes the application label: ``task`` or ``app``.
        skip_bad: leave wrong lines out and count them, instead of an error.
        family: take the rows of this family alone.
        on_rows: called now and then with the rows read since.

    Raises:
        InvalidInputError: names the file, the line, the field and the bound; also where no row is left.
    """
    rows: list[LengthRow] = []
    skipped: Counter[str] = Counter()
    estimated = reported = 0
    tokens = PromptTokens()
    for number, line in _lines(path):
        try:
            row = _row(line, label=label)
        except _BadLineError as error:
            if not skip_bad:
                raise InvalidInputError(f"{path}, line {number}: {error}") from None
            skipped[error.reason] += 1
            continue
        if family is not None and row.family != family:
            continue
        if row.request.prompt_tokens is None:
            estimated += 1
            request = replace(row.request, prompt_tokens=tokens.estimate(row.request.prompt or ""))
            row = replace(row, request=request, counted=False)
        rows.append(row)
        if len(rows) - reported >= 1_000:  # noqa: PLR2004 - how often progress is told
            on_rows(len(rows) - reported)
            reported = len(rows)
    on_rows(len(rows) - reported)
    if not rows:
        of_family = "" if family is None else f" of the family {family!r}"
        raise InvalidInputError(f"{path}: holds no row{of_family}" + (f"; skipped: {dict(skipped)}" if skipped else ""))
    return LengthRows(tuple(rows), skipped, estimated)


class _BadLineError(ValueError):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            stream: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=plain) if zipped else plain
            number = 0
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise InvalidInputError(f"{path}, line {number}: has more than {MAX_LINE_BYTES:,} bytes")
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidInputError(f"{path}: cannot be read: {reason}") from error


def _row(line: bytes, *, label: str) -> LengthRow:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _BadLineError("not JSON", f"is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise _BadLineError("not an object", "is not a JSON object")
    prompt = _text(record, "prompt", required=True)
    prompt_tokens = _number(record, "prompt_tokens", low=0, high=MAX_PROMPT_TOKENS)
    output_tokens = _number(record, "response_tokens", low=1, high=MAX_TOKENS)
    if output_tokens is None:
        raise _BadLineError("response_tokens", "response_tokens is missing")
    return LengthRow(
        request=LengthRequest(
            prompt=prompt,
            prompt_tokens=None if prompt_tokens is None else int(prompt_tokens),
            application=_text(record, label),
            model=_text(record, "model"),
            max_output_tokens=_whole(record, "max_tokens", low=1),
            temperature=_number(record, "temperature", low=0, high=100),
            tools=_count(record, "tools"),
            stop=_count(record, "stop"),
            turn=_whole(record, "turn", low=0),
            thinking=_flag(record, "thinking"),
        ),
        output_tokens=int(output_tokens),
        task=_text(record, "task"),
        family=_text(record, "family"),
        source=_text(record, "source"),
        prompt_digest=digest_of(prompt),
        counted=record.get("prompt_truncated") is not True,
    )


def _text(record: dict[str, Any], field: str, *, required: bool = False) -> str:
    value = record.get(field)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise _BadLineError(
            field, f"{field} is missing" if value is None else f"{field} must be text, not {value!r:.60}"
        )
    return value


def _number(record: dict[str, Any], field: str, *, low: float, high: float) -> float | None:
    value = record.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _BadLineError(field, f"{field} must be a number, not {value!r:.60}")
    if not low <= value <= high:
        raise _BadLineError(field, f"{field} must be within {low:g} and {high:g}, not {value:g}")
    return value


def _whole(record: dict[str, Any], field: str, *, low: int) -> int | None:
    value = _number(record, field, low=low, high=1e9)
    return None if value is None else int(value)


def _count(record: dict[str, Any], field: str) -> int | None:
    value = record.get(field)
    if isinstance(value, list):
        return len(value)
    if isinstance(value, bool | str):
        return int(bool(value))
    return _whole(record, field, low=0)


def _flag(record: dict[str, Any], field: str) -> bool | None:
    value = record.get(field)
    if value is not None and not isinstance(value, bool):
        raise _BadLineError(field, f"{field} must be true or false, not {value!r:.60}")
    return value

"""The table that the output-length model is trained on: lengths and labels of rows whose licence allows shipping."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from dataclasses import astuple, dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

LICENCES: Mapping[str, str] = MappingProxyType(
    {
        "Azure/AzurePublicDataset": "CC-BY-4.0",
        "Re-Align/just-eval": "MIT",
        "ShishirPatil/gorilla": "Apache-2.0",
        "baoguangsheng/fast-detect-gpt": "MIT",
        "fe1ixxu/ALMA": "MIT",
        "lm-sys/FastChat(network)": "Apache-2.0",
        "lm-sys/RouteLLM": "Apache-2.0",
        "microsoft/gpt-MT": "MIT",
        "openai/grade-school-math": "MIT",
        "teknium1/GPTeacher": "MIT",
    }
)
"""Sources that may be shipped, with their licence (SPDX). What is not listed here never enters the table."""

SHIPPED_SUBSETS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "Re-Align/just-eval": frozenset(
            {"just_eval/MaliciousInstruct", "just_eval/hh-rlhf/red-team-attempts", "just_eval/mt"}
        )
    }
)
"""Of these sources only these applications: the rest of their prompts were compiled under a non-commercial licence."""

RENAMED: Mapping[str, str] = MappingProxyType({"code": "code_instruction"})
"""Task names of the data sets that would clash with the applications of the trace."""

TRACE_APPLICATIONS: Mapping[str, str] = MappingProxyType({"code.csv.gz": "code", "conv.csv.gz": "conversation"})
TRACE_END_S = 900.0
"""Only the trace's first 15 minutes are trained on; later ones stay unseen, for replays."""

TRACE_HELD_OUT_FROM_S = 675.0
HELD_OUT_SHARE = 0.2


@dataclass(frozen=True, slots=True, order=True)
class LengthRow:
    """One request. ``held_out`` rows score the model and never train it."""

    application: str
    source: str
    held_out: bool
    prompt_tokens: int
    output_tokens: int


def prompt_rows(lines: Iterable[str]) -> Iterator[LengthRow]:
    """Rows of a JSON-lines prompt set; all answers to one prompt fall on one side of the split."""
    for line in lines:
        record: dict[str, Any] = json.loads(line)
        source = record["source"]
        subsets = SHIPPED_SUBSETS.get(source)
        if source not in LICENCES or (subsets is not None and record["app"] not in subsets):
            continue
        digest = hashlib.sha256(record["prompt"].encode()).digest()
        yield LengthRow(
            application=RENAMED.get(record["task"], record["task"]),
            source=source,
            held_out=int.from_bytes(digest[:4]) < HELD_OUT_SHARE * 2**32,
            prompt_tokens=record["prompt_tokens"],
            output_tokens=record["response_tokens"],
        )


def trace_rows(lines: Iterable[str], application: str) -> Iterator[LengthRow]:
    """Rows of a trace (``arrival_s,input_tokens,output_tokens``) before ``TRACE_END_S``, split by time."""
    for record in csv.DictReader(lines):
        arrival_s = float(record["arrival_s"])
        if arrival_s < TRACE_END_S:
            yield LengthRow(
                application=application,
                source="Azure/AzurePublicDataset",
                held_out=arrival_s >= TRACE_HELD_OUT_FROM_S,
                prompt_tokens=int(record["input_tokens"]),
                output_tokens=int(record["output_tokens"]),
            )


def collect(prompts: Path, traces: Path) -> list[LengthRow]:
    """All rows that may be shipped, sorted, so that the table says nothing about their order."""
    with gzip.open(prompts, "rt", encoding="utf-8") as lines:
        rows = list(prompt_rows(lines))
    for file_name, application in TRACE_APPLICATIONS.items():
        with gzip.open(traces / file_name, "rt", encoding="utf-8") as lines:
            rows += trace_rows(lines, application)
    return sorted(row for row in rows if row.output_tokens >= 1)


def encode(rows: Sequence[LengthRow]) -> bytes:
    """The table as gzipped CSV, without a time stamp."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(LengthRow))
    writer.writerows((*astuple(row)[:2], int(row.held_out), row.prompt_tokens, row.output_tokens) for row in rows)
    return gzip.compress(text.getvalue().encode(), compresslevel=9, mtime=0)


def decode(table: bytes) -> list[LengthRow]:
    """Reads what ``encode`` wrote; raises ValueError on a row of a source that may not be shipped."""
    rows = []
    for record in csv.DictReader(io.StringIO(gzip.decompress(table).decode())):
        if record["source"] not in LICENCES:
            raise ValueError(f"the source {record['source']!r} may not be shipped")
        rows.append(
            LengthRow(
                application=record["application"],
                source=record["source"],
                held_out=record["held_out"] == "1",
                prompt_tokens=int(record["prompt_tokens"]),
                output_tokens=int(record["output_tokens"]),
            )
        )
    return rows

"""A recorded arrival sequence: loading, choosing a window, changing its rate."""

from __future__ import annotations

import csv
import gzip
import math
from dataclasses import dataclass, replace
from importlib import resources
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidInputError
from llmrouter.sim.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.resources.abc import Traversable

AZURE_2023 = "azure_llm_2023_excerpt.csv.gz"
COLUMNS = ("arrival_s", "application", "prompt_tokens", "output_tokens")
MAX_TOKENS = 10_000_000


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One recorded request. ``output_tokens`` is the recorded length: for the engine, never for a router."""

    arrived_at_s: float
    application: str
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival within ``duration_s`` seconds that start at 0."""

    requests: tuple[TraceRequest, ...]
    duration_s: float

    @property
    def rate_rps(self) -> float:
        """Requests per second over the whole duration."""
        return len(self.requests) / self.duration_s

    @property
    def mean_prompt_tokens(self) -> float:
        """Mean prompt length."""
        return sum(request.prompt_tokens for request in self.requests) / len(self.requests)

    @property
    def mean_output_tokens(self) -> float:
        """Mean output length."""
        return sum(request.output_tokens for request in self.requests) / len(self.requests)

    def window(self, start_s: float, duration_s: float) -> Trace:
        """The requests that arrive in [start, start + duration), moved to start at 0.

        Raises:
            InvalidInputError: the window is empty or not inside the trace.
        """
        if start_s < 0 or duration_s <= 0 or start_s + duration_s > self.duration_s * (1 + 1e-9):
            raise InvalidInputError(
                f"window of {duration_s} s from {start_s} s is not inside the trace's {self.duration_s:.3f} s"
            )
        chosen = tuple(
            replace(request, arrived_at_s=request.arrived_at_s - start_s)
            for request in self.requests
            if start_s <= request.arrived_at_s < start_s + duration_s
        )
        if not chosen:
            raise InvalidInputError(f"no request arrives in the {duration_s} s from {start_s} s")
        return Trace(chosen, duration_s)

    def scaled_to(self, rate_rps: float) -> Trace:
        """The same requests in the same order, all gaps stretched or shrunk alike to reach the rate.

        Raises:
            InvalidInputError: the rate is not a positive, finite number.
        """
        if not (math.isfinite(rate_rps) and rate_rps > 0):
            raise InvalidInputError(f"rate_rps must be positive and finite, not {rate_rps}")
        factor = self.rate_rps / rate_rps
        scaled = tuple(replace(request, arrived_at_s=request.arrived_at_s * factor) for request in self.requests)
        return Trace(scaled, self.duration_s * factor)


def workload(trace: Trace, model: str = "") -> Workload:
    """The trace for a simulated run, its lengths unpredicted."""
    names = sorted({request.application for request in trace.requests})
    return Workload.of(
        [request.arrived_at_s for request in trace.requests],
        [request.prompt_tokens for request in trace.requests],
        [request.output_tokens for request in trace.requests],
        application=[names.index(request.application) for request in trace.requests],
        applications=tuple(names),
        models=(model,),
    )


def azure_2023() -> Trace:
    """The packaged excerpt: 17 minutes of Azure's code and conversation services, merged (CC-BY-4.0)."""
    trace = load(resources.files(__package__) / "data" / AZURE_2023)
    return replace(trace, duration_s=1_020.0)


def load(path: Traversable) -> Trace:
    """Reads a trace from a gzipped CSV file with the columns of ``COLUMNS``; its duration ends with the last arrival.

    Raises:
        InvalidInputError: a column is missing or a value out of its bounds; the message names the row.
    """
    with path.open("rb") as raw, gzip.open(raw, "rt", encoding="utf-8", newline="") as lines:
        requests = parse(lines)
    return Trace(requests, max(requests[-1].arrived_at_s, 1e-3))


def parse(lines: Iterable[str]) -> tuple[TraceRequest, ...]:
    """Parses CSV lines with a header into requests, sorted by arrival; equal arrivals keep their order."""
    reader = csv.DictReader(lines)
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise InvalidInputError(f"the trace lacks the columns {', '.join(missing)}")
    requests = [_parse_row(number, row) for number, row in enumerate(reader, start=2)]
    if not requests:
        raise InvalidInputError("the trace has no rows")
    return tuple(sorted(requests, key=lambda request: request.arrived_at_s))


def _parse_row(number: int, row: dict[str, str]) -> TraceRequest:
    try:
        request = TraceRequest(
            float(row["arrival_s"]), row["application"], int(row["prompt_tokens"]), int(row["output_tokens"])
        )
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"line {number} of the trace: {error}") from error
    if not (math.isfinite(request.arrived_at_s) and request.arrived_at_s >= 0):
        raise InvalidInputError(f"line {number} of the trace: arrival_s must be at least 0, not {request.arrived_at_s}")
    for name in ("prompt_tokens", "output_tokens"):
        if not 1 <= (tokens := getattr(request, name)) <= MAX_TOKENS:
            raise InvalidInputError(f"line {number} of the trace: {name} must be 1 to {MAX_TOKENS}, not {tokens}")
    return request

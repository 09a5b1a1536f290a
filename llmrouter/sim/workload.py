"""A workload: many requests as columns, as long as a trace and as small as its numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

MAX_TOKENS = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests in order of arrival; every column has shape (N,).

    Attributes:
        arrived_at_s: seconds, not decreasing; of a later turn of a session, ignored.
        prompt_tokens: at least 1.
        output_tokens: true output lengths, at least 1: for engines, never for routers.
        predicted_output_tokens: what a predictor said, as ``Request`` carries it.
        application, model, tenant: indices into the tuples of names.
        after: for a later turn of a session the row of the turn before it, else -1 …
        think_s: … and the seconds from that answer's end to this arrival.
        cancelled_after_s: seconds from arrival after which the client gives up; infinite where it never does.
        priority: a higher one leaves a router's queue first; ``None``: all alike.
        deadline_s: seconds from arrival within which the answer should be whole, infinite where nobody said; ``None``:
            nobody said of any.
        batch: 1 where nobody waits for the answer and the request fills gaps, else 0; ``None``: nowhere.
        predicted_rank: lower is expected to be done sooner, above 0, NaN where nobody said; ``None``: nobody said of
            any.
        prefix_start: shape (N + 1,): where each prompt's blocks begin in ``prefix_blocks`` …
        prefix_blocks: … ids of the prompt's leading full blocks, 0 … B − 1; equal leading ids are shared prefixes.
        prefix_block_tokens: tokens of such a block; 0 where prefixes are unknown.
    """

    arrived_at_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    predicted_output_tokens: NDArray[np.float64]
    application: NDArray[np.int64]
    model: NDArray[np.int64]
    tenant: NDArray[np.int64]
    after: NDArray[np.int64]
    think_s: NDArray[np.float64]
    cancelled_after_s: NDArray[np.float64]
    prefix_start: NDArray[np.int64]
    prefix_blocks: NDArray[np.int64]
    priority: NDArray[np.int64] | None = None
    deadline_s: NDArray[np.float64] | None = None
    predicted_rank: NDArray[np.float64] | None = None
    batch: NDArray[np.int64] | None = None
    prefix_block_tokens: int = 0
    applications: tuple[str, ...] = ("",)
    models: tuple[str, ...] = ("",)
    tenants: tuple[str, ...] = ("",)
    name: str = field(default="")

    def __len__(self) -> int:
        return len(self.arrived_at_s)

    @classmethod
    def of(
        cls,
        arrived_at_s: Sequence[float] | NDArray[np.float64],
        prompt_tokens: Sequence[int] | NDArray[np.int64],
        output_tokens: Sequence[int] | NDArray[np.int64],
        **columns: object,
    ) -> Workload:
        """A checked workload from its three needed columns; those left out say nothing (predictions: 0).

        Raises:
            InvalidInputError: no row, columns of unequal length, times out of order, or a length out of its bounds.
        """
        count = len(arrived_at_s)
        defaults: dict[str, object] = {
            "predicted_output_tokens": np.zeros(count),
            "application": np.zeros(count, np.int64),
            "model": np.zeros(count, np.int64),
            "tenant": np.zeros(count, np.int64),
            "after": np.full(count, -1, np.int64),
            "think_s": np.zeros(count),
            "cancelled_after_s": np.full(count, np.inf),
            "prefix_start": np.zeros(count + 1, np.int64),
            "prefix_blocks": np.zeros(0, np.int64),
        }
        given = {
            **defaults,
            **columns,
            "arrived_at_s": arrived_at_s,
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
        }
        for name, kind in (_KINDS | _SAID_KINDS).items():
            if given.get(name) is not None:
                given[name] = np.ascontiguousarray(given[name], dtype=kind)
        workload = cls(**given)  # type: ignore[arg-type]
        _check(workload)
        return workload

    def with_predictions(self, predicted_output_tokens: NDArray[np.float64]) -> Workload:
        """The same requests, with what a predictor said of each: shape (N,), tokens."""
        return replace(self, predicted_output_tokens=np.ascontiguousarray(predicted_output_tokens, dtype=np.float64))

    def scaled_by(self, factor: float) -> Workload:
        """All arrival times multiplied by ``factor``: below 1 the load grows. Think times stay."""
        if not (np.isfinite(factor) and factor > 0):
            raise InvalidInputError(f"factor must be positive and finite, not {factor}")
        return replace(self, arrived_at_s=self.arrived_at_s * factor)

    @property
    def duration_s(self) -> float:
        """From 0 to the last arrival; later turns are left out."""
        return float(self.arrived_at_s[self.after < 0].max())

    @property
    def rate_rps(self) -> float:
        """Requests per second over the duration."""
        return len(self) / max(self.duration_s, 1e-9)


_KINDS: dict[str, type] = {
    "arrived_at_s": np.float64,
    "prompt_tokens": np.int64,
    "output_tokens": np.int64,
    "predicted_output_tokens": np.float64,
    "application": np.int64,
    "model": np.int64,
    "tenant": np.int64,
    "after": np.int64,
    "think_s": np.float64,
    "cancelled_after_s": np.float64,
    "prefix_start": np.int64,
    "prefix_blocks": np.int64,
}
SAID: Mapping[str, float] = MappingProxyType(
    {"priority": 0, "deadline_s": np.inf, "predicted_rank": np.nan, "batch": 0}
)
"""Columns that may be ``None``, and what says nothing in them."""

_SAID_KINDS: dict[str, type] = {
    "priority": np.int64,
    "deadline_s": np.float64,
    "predicted_rank": np.float64,
    "batch": np.int64,
}

MAX_PRIORITY = 100


def _check(workload: Workload) -> None:
    count = len(workload)
    if count == 0:
        raise InvalidInputError("the workload has no requests")
    for name in _KINDS:
        expected = {"prefix_start": count + 1, "prefix_blocks": int(workload.prefix_start[-1])}.get(name, count)
        if (found := len(getattr(workload, name))) != expected:
            raise InvalidInputError(f"column {name} has {found} rows, not {expected}")
    _refuse(workload.arrived_at_s, ~np.isfinite(workload.arrived_at_s) | (workload.arrived_at_s < 0), "arrived_at_s")
    first_turns = workload.arrived_at_s[workload.after < 0]
    if (np.diff(first_turns) < 0).any():
        row = int(np.argmax(np.diff(first_turns) < 0)) + 1
        raise InvalidInputError(f"arrived_at_s decreases at row {row}: arrivals must be in order")
    for name in ("prompt_tokens", "output_tokens"):
        tokens = getattr(workload, name)
        _refuse(tokens, (tokens < 1) | (tokens > MAX_TOKENS), name, f"1 to {MAX_TOKENS}")
    predicted = workload.predicted_output_tokens
    _refuse(predicted, ~np.isfinite(predicted) | (predicted < 0), "predicted_output_tokens")
    _refuse(workload.think_s, ~np.isfinite(workload.think_s) | (workload.think_s < 0), "think_s")
    _refuse(workload.after, workload.after >= np.arange(count), "after", "an earlier row")
    cancelled = workload.cancelled_after_s
    _refuse(cancelled, ~(cancelled >= 0), "cancelled_after_s", "at least 0")
    _check_prefixes(workload)
    _check_said(workload)
    for name, names in (("application", "applications"), ("model", "models"), ("tenant", "tenants")):
        index = getattr(workload, name)
        _refuse(index, (index < 0) | (index >= len(getattr(workload, names))), name, f"an index into {names}")


def _check_said(workload: Workload) -> None:
    for name in SAID:
        column = getattr(workload, name)
        if column is not None and len(column) != len(workload):
            raise InvalidInputError(f"column {name} has {len(column)} rows, not {len(workload)}")
    if workload.priority is not None:
        bound = f"{-MAX_PRIORITY} to {MAX_PRIORITY}"
        _refuse(workload.priority, np.abs(workload.priority) > MAX_PRIORITY, "priority", bound)
    if workload.batch is not None:
        _refuse(workload.batch, (workload.batch < 0) | (workload.batch > 1), "batch", "0 or 1")
    if workload.deadline_s is not None:
        _refuse(workload.deadline_s, np.isnan(workload.deadline_s), "deadline_s", "a number")
    if workload.predicted_rank is not None:
        _refuse(workload.predicted_rank, workload.predicted_rank <= 0, "predicted_rank", "above 0 or NaN")


def _check_prefixes(workload: Workload) -> None:
    blocks = np.diff(workload.prefix_start)
    if workload.prefix_start[0] != 0 or (blocks < 0).any():
        raise InvalidInputError("prefix_start must begin with 0 and not decrease")
    if len(workload.prefix_blocks) and not (workload.prefix_block_tokens >= 1 and workload.prefix_blocks.min() >= 0):
        raise InvalidInputError("prefix blocks need prefix_block_tokens of at least 1 and ids of at least 0")
    whole = blocks * workload.prefix_block_tokens
    _refuse(blocks, whole > workload.prompt_tokens, "prefix blocks", "no more than the prompt's whole blocks")


def _refuse(
    values: NDArray[np.generic], wrong: NDArray[np.bool_], name: str, bound: str = "finite and at least 0"
) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InvalidInputError(f"row {row}: {name} must be {bound}, not {values[row]}")

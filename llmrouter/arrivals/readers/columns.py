"""Columns of a workload as they grow, row by row, eight bytes a number."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrouter.arrivals.readers.lines import BadLine, Why
from llmrouter.arrivals.transform import in_order
from llmrouter.sim.workload import MAX_TOKENS, Workload

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from llmrouter.arrivals.readers.lines import Source

MAX_AT_S = 1e10
"""Latest arrival, in seconds from the first moment of a trace: three centuries."""


def seconds(value: object, name: str, *, high: float = MAX_AT_S) -> float:
    """A time or a span, 0 to ``high``, from text or from a JSON number; raises BadLine."""
    kind = type(value)
    try:
        number = float(value) if kind is str or kind is float or kind is int else None  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        number = None
    if number is None:
        raise BadLine(Why.NUMBER, f"{name} must be a number of seconds, not {_shown(value)}")
    if not 0 <= number <= high:
        raise BadLine(Why.BOUNDS, f"{name} must be 0 to {high:g}, not {_shown(value)}")
    return number


def tokens(value: object, name: str, *, high: int = MAX_TOKENS) -> int:
    """A length in tokens, 1 to ``high``, from text or from a JSON number; raises BadLine."""
    kind = type(value)
    try:
        number = int(value) if kind is str or kind is int else None  # type: ignore[call-overload]
    except ValueError:
        number = None
    if number is None:
        raise BadLine(Why.NUMBER, f"{name} must be a whole number, not {_shown(value)}")
    if not 1 <= number <= high:
        raise BadLine(Why.BOUNDS, f"{name} must be 1 to {high:,}, not {_shown(value)}")
    return number  # type: ignore[no-any-return]


def _shown(value: object) -> str:
    text = str(value).strip()
    return repr(text if len(text) <= 40 else f"{text[:37]}...")  # noqa: PLR2004


@dataclass(slots=True, kw_only=True)
class Row:
    """One request, checked. What a source does not say keeps its default."""

    arrived_at_s: float
    prompt_tokens: int
    output_tokens: int
    application: str = ""
    model: str = ""
    tenant: str = ""
    after: int = -1
    think_s: float = 0.0
    cancelled_after_s: float = math.inf
    predicted_output_tokens: float = 0.0
    blocks: Sequence[Hashable] = ()


@dataclass(slots=True)
class Columns:
    """A workload in the making.

    Attributes:
        block_tokens: tokens of a prefix block; 0 while unknown.
        ordered: whether first turns must come in order of arrival; else they are sorted at the end, each with its
            later turns.
    """

    block_tokens: int = 0
    ordered: bool = True
    arrived_at_s: array[float] = field(default_factory=lambda: array("d"))
    prompt_tokens: array[int] = field(default_factory=lambda: array("q"))
    output_tokens: array[int] = field(default_factory=lambda: array("q"))
    think_s: array[float] = field(default_factory=lambda: array("d"))
    cancelled_after_s: array[float] = field(default_factory=lambda: array("d"))
    predicted_output_tokens: array[float] = field(default_factory=lambda: array("d"))
    application: array[int] = field(default_factory=lambda: array("q"))
    model: array[int] = field(default_factory=lambda: array("q"))
    tenant: array[int] = field(default_factory=lambda: array("q"))
    after: array[int] = field(default_factory=lambda: array("q"))
    prefix_start: array[int] = field(default_factory=lambda: array("q", [0]))
    prefix_blocks: array[int] = field(default_factory=lambda: array("q"))
    latest_s: float = 0.0
    _applications: dict[str, int] = field(default_factory=dict)
    _models: dict[str, int] = field(default_factory=dict)
    _tenants: dict[str, int] = field(default_factory=dict)
    _blocks: dict[Hashable, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.arrived_at_s)

    def add(self, row: Row) -> None:
        """Appends a request; raises BadLine where it arrives before the one before it, or has too many blocks."""
        if row.after < 0:
            if self.ordered and row.arrived_at_s < self.latest_s:
                raise BadLine(
                    Why.UNSORTED,
                    f"arrives at {row.arrived_at_s:g} s, before the {self.latest_s:g} s of an earlier line: "
                    "arrivals must be in order",
                )
            self.latest_s = row.arrived_at_s
        self._add_blocks(row)
        self.arrived_at_s.append(row.arrived_at_s)
        self.prompt_tokens.append(row.prompt_tokens)
        self.output_tokens.append(row.output_tokens)
        self.think_s.append(row.think_s)
        self.cancelled_after_s.append(row.cancelled_after_s)
        self.predicted_output_tokens.append(row.predicted_output_tokens)
        self.application.append(self._applications.setdefault(row.application, len(self._applications)))
        self.model.append(self._models.setdefault(row.model, len(self._models)))
        self.tenant.append(self._tenants.setdefault(row.tenant, len(self._tenants)))
        self.after.append(row.after)
        self.prefix_start.append(len(self.prefix_blocks))

    def _add_blocks(self, row: Row) -> None:
        """Keeps the ids of whole blocks, made dense; the last, part-filled block of a prompt is no prefix to share."""
        if not row.blocks:
            return
        whole, rest = divmod(row.prompt_tokens, self.block_tokens)
        if len(row.blocks) > whole + (rest > 0):
            raise BadLine(
                Why.PREFIX,
                f"{len(row.blocks)} prefix blocks of {self.block_tokens} tokens are more than "
                f"the prompt's {row.prompt_tokens} tokens fill",
            )
        known = self._blocks
        self.prefix_blocks.extend([known.setdefault(block, len(known)) for block in row.blocks[:whole]])

    def workload(self, source: Source, name: str) -> Workload:
        """The workload, checked once more as a whole.

        Raises:
            InvalidInputError: there is no row.
        """
        source.line = 0
        if not len(self):
            left_out = f" (left out: {source.summary()})" if source.skipped else ""
            raise source.error(f"has no requests{left_out}")
        columns = self._arrays()
        if self.ordered:
            return Workload.of(**columns, name=name)
        return in_order(Workload(**columns, name=name))

    def _arrays(self) -> dict[str, Any]:
        """The columns without a copy, and what they refer to."""
        reals = ("arrived_at_s", "think_s", "cancelled_after_s", "predicted_output_tokens")
        wholes = ("prompt_tokens", "output_tokens", "application", "model", "tenant", "after", "prefix_start")
        return {
            **{name: np.frombuffer(getattr(self, name), np.float64) for name in reals},
            **{name: np.frombuffer(getattr(self, name), np.int64) for name in wholes},
            "prefix_blocks": np.array(self.prefix_blocks, np.int64),
            "prefix_block_tokens": self.block_tokens if len(self.prefix_blocks) else 0,
            "applications": tuple(self._applications),
            "models": tuple(self._models),
            "tenants": tuple(self._tenants),
        }

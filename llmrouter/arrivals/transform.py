"""Other workloads from one: a part of it, another rate, several merged."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrouter.errors import InvalidInputError
from llmrouter.sim.workload import SAID, Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray


def take(workload: Workload, rows: NDArray[np.int64]) -> Workload:
    """The given rows in the given order, with their blocks; times stay, so the rows must be in order of arrival.

    Raises:
        InvalidInputError: no row is left, or a later turn is taken without, or before, the turn that it follows.
    """
    if len(rows) == 0:
        raise InvalidInputError("no request is left")
    place = np.full(len(workload), -1, np.int64)
    place[rows] = np.arange(len(rows))
    before = workload.after[rows]
    after = np.where(before >= 0, place[before], -1)
    if ((before >= 0) & (after < 0)).any():
        raise InvalidInputError("a later turn of a session cannot be taken without the turn before it")
    starts, ends = workload.prefix_start[rows], workload.prefix_start[rows + 1]
    prefix_start = np.concatenate([np.zeros(1, np.int64), np.cumsum(ends - starts)])
    return Workload.of(
        workload.arrived_at_s[rows],
        workload.prompt_tokens[rows],
        workload.output_tokens[rows],
        predicted_output_tokens=workload.predicted_output_tokens[rows],
        application=workload.application[rows],
        model=workload.model[rows],
        tenant=workload.tenant[rows],
        after=after,
        think_s=workload.think_s[rows],
        cancelled_after_s=workload.cancelled_after_s[rows],
        **{name: column[rows] for name in SAID if (column := getattr(workload, name)) is not None},
        prefix_start=prefix_start,
        prefix_blocks=_spans(workload.prefix_blocks, starts, prefix_start),
        prefix_block_tokens=workload.prefix_block_tokens,
        applications=workload.applications,
        models=workload.models,
        tenants=workload.tenants,
        name=workload.name,
    )


def _spans(values: NDArray[np.int64], starts: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The spans of ``values`` that begin at ``starts``, one after the other; span i is as long as its offsets say."""
    shift = np.repeat(starts - offsets[:-1], np.diff(offsets))
    return np.asarray(values[np.arange(offsets[-1]) + shift])


def first_turns(workload: Workload) -> NDArray[np.int64]:
    """For every row the first turn of its session, itself where it stands alone; shape (N,)."""
    root = np.arange(len(workload))
    later = workload.after >= 0
    root[later] = workload.after[later]
    while (root != root[root]).any():
        root = root[root]
    return root


def window(workload: Workload, start_s: float, duration_s: float) -> Workload:
    """The requests that arrive in [start, start + duration), moved to start at 0; sessions go with their first turn.

    Raises:
        InvalidInputError: nothing arrives there, or a bound is no positive number.
    """
    if not (math.isfinite(start_s) and start_s >= 0 and duration_s > 0):
        raise InvalidInputError(f"a window starts at 0 s or later and lasts, not {duration_s} s from {start_s} s")
    begins = workload.arrived_at_s[first_turns(workload)]
    rows = np.nonzero((begins >= start_s) & (begins < start_s + duration_s))[0]
    if len(rows) == 0:
        raise InvalidInputError(
            f"no request arrives in the {duration_s:g} s from {start_s:g} s: "
            f"the workload lasts {workload.duration_s:g} s"
        )
    part = take(workload, rows)
    return replace(part, arrived_at_s=np.maximum(part.arrived_at_s - start_s, 0.0))


def scaled_to(workload: Workload, rate_rps: float) -> Workload:
    """The same requests with all gaps stretched or shrunk alike to reach the rate; think times stay.

    Raises:
        InvalidInputError: the rate is not a positive, finite number.
    """
    if not (math.isfinite(rate_rps) and rate_rps > 0):
        raise InvalidInputError(f"rate_rps must be positive and finite, not {rate_rps}")
    return workload.scaled_by(workload.rate_rps / rate_rps)


def merged(workloads: Sequence[Workload], name: str = "") -> Workload:
    """Several workloads on one clock; equal names are the same application, model or tenant, blocks stay apart.

    Raises:
        InvalidInputError: none is given, or their prefix blocks are of different sizes.
    """
    if not workloads:
        raise InvalidInputError("there is no workload to merge")
    sizes = {one.prefix_block_tokens for one in workloads if one.prefix_block_tokens}
    if len(sizes) > 1:
        raise InvalidInputError(f"prefix blocks of {sorted(sizes)} tokens cannot be merged")
    return replace(in_order(_joined(workloads, max(sizes, default=0))), name=name)


def in_order(unchecked: Workload) -> Workload:
    """The same requests with first turns in order of arrival, each with its later turns, and checked.

    Raises:
        InvalidInputError: a column breaks its bounds.
    """
    begins = unchecked.arrived_at_s[first_turns(unchecked)]
    return take(unchecked, np.argsort(begins, kind="stable"))


def _joined(workloads: Sequence[Workload], block_tokens: int) -> Workload:
    """All rows one after the other, unchecked: their arrivals are in order only once they are sorted."""
    columns: dict[str, Any] = {
        column: np.concatenate([getattr(one, column) for one in workloads])
        for column in (
            *("arrived_at_s", "prompt_tokens", "output_tokens", "predicted_output_tokens"),
            *("think_s", "cancelled_after_s"),
        )
    }
    names: dict[str, tuple[str, ...]] = {}
    for column, plural in (("application", "applications"), ("model", "models"), ("tenant", "tenants")):
        known: dict[str, int] = {}
        parts = []
        for one in workloads:
            index = np.array([known.setdefault(word, len(known)) for word in getattr(one, plural)])
            parts.append(index[getattr(one, column)])
        columns[column], names[plural] = np.concatenate(parts), tuple(known)
    for column, nothing in SAID.items():
        said = [getattr(one, column) for one in workloads]
        if any(part is not None for part in said):
            filled = [
                np.full(len(one), nothing) if part is None else part for one, part in zip(workloads, said, strict=True)
            ]
            columns[column] = np.concatenate(filled)
    row_offsets = np.cumsum([0, *(len(one) for one in workloads)])
    block_offsets = np.cumsum([0, *(_blocks(one) for one in workloads)])
    start_offsets = np.cumsum([0, *(len(one.prefix_blocks) for one in workloads)])
    columns["after"] = np.concatenate(
        [np.where(one.after >= 0, one.after + by, -1) for one, by in zip(workloads, row_offsets, strict=False)]
    )
    columns["prefix_blocks"] = np.concatenate(
        [one.prefix_blocks + by for one, by in zip(workloads, block_offsets, strict=False)]
    )
    columns["prefix_start"] = np.concatenate(
        [
            *(one.prefix_start[:-1] + by for one, by in zip(workloads, start_offsets, strict=False)),
            start_offsets[-1:],
        ]
    )
    return Workload(
        **columns,
        prefix_block_tokens=block_tokens,
        applications=names["applications"],
        models=names["models"],
        tenants=names["tenants"],
    )


def _blocks(workload: Workload) -> int:
    return int(workload.prefix_blocks.max()) + 1 if len(workload.prefix_blocks) else 0


def with_starts(workload: Workload, rate_rps: float, rng: Generator) -> Workload:
    """Sessions that start as a Poisson process of ``rate_rps`` sessions a second, in the order of their first rows.

    For recordings whose sessions each have a clock of their own.
    """
    if not (math.isfinite(rate_rps) and rate_rps > 0):
        raise InvalidInputError(f"rate_rps must be positive and finite, not {rate_rps}")
    root = first_turns(workload)
    firsts = np.nonzero(workload.after < 0)[0]
    starts = np.cumsum(rng.standard_exponential(len(firsts))) / rate_rps
    at_s = np.zeros(len(workload))
    at_s[firsts] = starts
    return replace(workload, arrived_at_s=at_s[root])

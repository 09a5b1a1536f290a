"""The statistics by which workloads are told apart."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.arrivals.transform import first_turns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrouter.sim.workload import Workload

_BIN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Mean and percentiles of one column of tokens."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a workload is like. ``None`` is unknown: too few requests, or nothing recorded.

    Attributes:
        requests: all rows.
        sessions: first turns that later turns follow.
        later_turns: rows that follow an answer.
        duration_s: from the first arrival to the last; later turns are left out, here and in the next three.
        rate_rps: arrivals per second.
        gap_cv: coefficient of variation of the gaps between arrivals.
        idc60: index of dispersion: variance over mean of the arrivals in whole spans of 60 s.
        prompt_tokens, output_tokens: lengths.
        length_correlation: Pearson's, of prompt and output tokens.
        shared_prefix_fraction: share of the prompt tokens in leading blocks that an earlier prompt had.
        requests_by_application, requests_by_model: counts.
        cancelled: requests whose client gives up at a known time.
    """

    requests: int
    sessions: int
    later_turns: int
    duration_s: float
    rate_rps: float | None
    gap_cv: float | None
    idc60: float | None
    prompt_tokens: Lengths
    output_tokens: Lengths
    length_correlation: float | None
    shared_prefix_fraction: float | None
    requests_by_application: dict[str, int]
    requests_by_model: dict[str, int]
    cancelled: int

    def as_mapping(self) -> dict[str, object]:
        """Names to plain values, for JSON."""
        return asdict(self)


def describe(workload: Workload) -> Description:
    """The statistics of a workload."""
    at_s = np.sort(workload.arrived_at_s[workload.after < 0])
    duration_s = float(at_s[-1] - at_s[0])
    later = int((workload.after >= 0).sum())
    return Description(
        requests=len(workload),
        sessions=len(np.unique(first_turns(workload)[workload.after >= 0])),
        later_turns=later,
        duration_s=duration_s,
        rate_rps=len(at_s) / duration_s if duration_s > 0 else None,
        gap_cv=_gap_cv(at_s),
        idc60=_idc(at_s),
        prompt_tokens=_lengths(workload.prompt_tokens),
        output_tokens=_lengths(workload.output_tokens),
        length_correlation=_correlation(workload.prompt_tokens, workload.output_tokens),
        shared_prefix_fraction=_shared(workload),
        requests_by_application=_counts(workload.application, workload.applications),
        requests_by_model=_counts(workload.model, workload.models),
        cancelled=int(np.isfinite(workload.cancelled_after_s).sum()),
    )


def _lengths(tokens: NDArray[np.int64]) -> Lengths:
    p50, p95, p99 = np.percentile(tokens, (50, 95, 99))
    return Lengths(mean=float(tokens.mean()), p50=float(p50), p95=float(p95), p99=float(p99), max=float(tokens.max()))


def _gap_cv(at_s: NDArray[np.float64]) -> float | None:
    gaps = np.diff(at_s)
    if len(gaps) < 2 or not gaps.mean() > 0:  # noqa: PLR2004
        return None
    return float(gaps.std() / gaps.mean())


def _idc(at_s: NDArray[np.float64]) -> float | None:
    spans = int((at_s[-1] - at_s[0]) // _BIN_S)
    if spans < 2:  # noqa: PLR2004
        return None
    counts = np.bincount(((at_s - at_s[0]) // _BIN_S).astype(np.int64))[:spans]
    return float(counts.var() / counts.mean())


def _correlation(prompts: NDArray[np.int64], outputs: NDArray[np.int64]) -> float | None:
    if len(prompts) < 2 or prompts.std() == 0 or outputs.std() == 0:  # noqa: PLR2004
        return None
    return float(np.corrcoef(prompts, outputs)[0, 1])


def _shared(workload: Workload) -> float | None:
    """A block is shared if it, at its place, came in an earlier prompt: equal ids follow equal leading ids."""
    if workload.prefix_block_tokens == 0:
        return None
    new = len(np.unique(workload.prefix_blocks))
    shared = len(workload.prefix_blocks) - new
    return shared * workload.prefix_block_tokens / float(workload.prompt_tokens.sum())


def _counts(index: NDArray[np.int64], names: tuple[str, ...]) -> dict[str, int]:
    counts = np.bincount(index, minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True)}

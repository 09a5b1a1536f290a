"""How good laws of lengths are, with paired bootstrap intervals over prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.distribution import LEVELS, MEDIAN, PAPER_EDGES_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from llmrouter.lengths.distribution import Lengths

    Floats = NDArray[np.float64]

METRICS = (
    "bucket_accuracy",
    "bucket_accuracy_of_mean",
    "kendall_tau",
    "somers_d",
    "pinball_loss",
    "pinball_loss_normalised",
    "coverage_80",
    "mae_tokens",
    "mae_tokens_of_mean",
)
"""What is said of a predictor:

- ``bucket_accuracy``: share of answers in the most probable of the paper's buckets; ``…_of_mean``: in that of the
  expected tokens;
- ``kendall_tau``: τ-b of rank and length;
- ``somers_d``: Somers' D of the rank given the length: a pair that the rank leaves undecided is a coin flip, where τ-b
  leaves it out of its denominator. A predictor that ties whole tasks compares by D with one that decides each pair;
- ``pinball_loss``: mean over ``LEVELS``, tokens; ``…_normalised``: ÷ mean length;
- ``coverage_80``: share of answers within the 10 % and the 90 % quantile, ends included;
- ``mae_tokens``: mean absolute error of the median; ``…_of_mean``: of the expected tokens.
"""

HIGHER_IS_BETTER = frozenset({"bucket_accuracy", "bucket_accuracy_of_mean", "kendall_tau", "somers_d"})
RESAMPLES = 300
INTERVAL = (2.5, 97.5)
_LOW, _HIGH = LEVELS.index(0.1), LEVELS.index(0.9)
_COLUMNS = 9
_HIT, _HIT_MEAN, _PINBALL, _ERROR, _ERROR_MEAN, _COVERED, _AGREE, _VARIED_RANK, _VARIED_LENGTH = range(_COLUMNS)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval; ``None`` where it is not defined (τ where all are the same)."""

    value: float | None
    low: float | None
    high: float | None

    def as_list(self) -> list[float | None]:
        """Value, low, high, to five digits."""
        return [None if part is None else float(f"{part:.5g}") for part in (self.value, self.low, self.high)]


@dataclass(frozen=True, slots=True, eq=False)
class RowScores:
    """What each row adds to every metric but τ, which is not a sum over rows: (N, 6), the rank (N,), the lengths."""

    parts: Floats
    rank: Floats
    actual: Floats

    def take(self, chosen: NDArray[np.intp]) -> RowScores:
        """The rows at these places."""
        return RowScores(self.parts[chosen], self.rank[chosen], self.actual[chosen])


def row_scores(laws: Lengths, actual_N: Floats) -> RowScores:
    """Scores of each row, from which the metrics of any group of rows follow."""
    quantiles_NQ = laws.quantiles
    over_NQ = actual_N[:, None] - quantiles_NQ
    levels_Q = np.array(LEVELS)
    pinball_N = np.maximum(levels_Q * over_NQ, (levels_Q - 1.0) * over_NQ).mean(axis=1)
    bucket_N = np.digitize(actual_N, PAPER_EDGES_TOKENS)
    probable_N = laws.bucket_probabilities(PAPER_EDGES_TOKENS).argmax(axis=1)
    parts = (
        probable_N == bucket_N,
        np.digitize(laws.expected_tokens, PAPER_EDGES_TOKENS) == bucket_N,
        pinball_N,
        np.abs(over_NQ[:, MEDIAN]),
        np.abs(actual_N - laws.expected_tokens),
        (quantiles_NQ[:, _LOW] <= actual_N) & (actual_N <= quantiles_NQ[:, _HIGH]),
    )
    return RowScores(np.stack(parts, axis=1).astype(np.float64), np.asarray(laws.rank), actual_N)


def estimates(
    scores: Mapping[str, RowScores],
    prompt_N: NDArray[np.intp],
    *,
    rng: np.random.Generator,
    against: str | None = None,
    resamples: int = RESAMPLES,
) -> tuple[dict[str, dict[str, Estimate]], dict[str, dict[str, Estimate]]]:
    """Every metric of every predictor, and its difference from the predictor ``against``, with intervals.

    Prompts are drawn with replacement, with all their answers, the same prompts for every predictor. τ is linearised
    in the resampled weights (Hájek's projection of its U-statistics), so that no resample needs a new sort.

    Args:
        scores: of each predictor, on the same rows.
        prompt_N: which prompt each row belongs to, from 0.
        rng: the stream the resamples are drawn from.
        against: name of the predictor to compare with.
        resamples: how many; 0 gives no intervals.
    """
    names = list(scores)
    actual_N = scores[names[0]].actual
    columns = [np.ones_like(actual_N), actual_N]
    for name in names:
        columns += [*scores[name].parts.T, *concordance(scores[name].rank, actual_N)]
    prompts = int(prompt_N.max()) + 1
    by_prompt_PM = np.stack([np.bincount(prompt_N, weights=column, minlength=prompts) for column in columns], axis=1)
    totals_M = by_prompt_PM.sum(axis=0)
    point = _metrics(totals_M[None], totals_M, names)
    drawn_BM = np.empty((resamples, len(columns)))
    for resample in range(resamples):
        weight_P = np.bincount(rng.integers(0, prompts, prompts), minlength=prompts)
        drawn_BM[resample] = weight_P @ by_prompt_PM
    drawn = _metrics(drawn_BM, totals_M, names)
    values = {name: _estimates(point[name], drawn[name]) for name in names}
    differences: dict[str, dict[str, Estimate]] = {}
    if against is not None:
        for name in names:
            if name != against:
                shift = {metric: point[name][metric] - point[against][metric] for metric in METRICS}
                shifts = {metric: drawn[name][metric] - drawn[against][metric] for metric in METRICS}
                differences[name] = _estimates(shift, shifts)
    return values, differences


def concordance(rank_N: Floats, actual_N: Floats) -> tuple[Floats, Floats, Floats]:
    """Of each row, the mean over the others of sign·sign (N,), and the shares that differ in rank and in length (N,).

    τ-b is the mean of the first ÷ the root of the product of the means of the others. O(N log N).
    """
    size = len(rank_N)
    if size < 2:  # noqa: PLR2004 - a pair
        return np.zeros(size), np.zeros(size), np.zeros(size)
    x_N = np.unique(rank_N, return_inverse=True)[1]
    y_N = np.unique(actual_N, return_inverse=True)[1]
    below_x_N, same_x_N = _marginal(x_N)
    below_y_N, same_y_N = _marginal(y_N)
    both_N = _dominated(x_N, y_N)
    left_level_N = _before_in_group(y_N, x_N)  # x smaller, y the same
    level_low_N = _before_in_group(x_N, y_N)  # y smaller, x the same
    left_high_N = below_x_N - both_N - left_level_N
    right_low_N = below_y_N - both_N - level_low_N
    same_both_N = _group_size(x_N, y_N)
    untied_N = size - same_x_N - same_y_N + same_both_N
    agree_N = untied_N - 2 * (left_high_N + right_low_N)
    others = size - 1.0
    return agree_N / others, (size - same_x_N) / others, (size - same_y_N) / others


def _marginal(dense_N: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    counts = np.bincount(dense_N)
    return (np.cumsum(counts) - counts)[dense_N], counts[dense_N]


def _group_size(x_N: NDArray[np.intp], y_N: NDArray[np.intp]) -> NDArray[np.intp]:
    _, group_N, counts = np.unique(x_N * (int(y_N.max()) + 1) + y_N, return_inverse=True, return_counts=True)
    return np.asarray(counts[group_N])


def _before_in_group(group_N: NDArray[np.intp], value_N: NDArray[np.intp]) -> NDArray[np.intp]:
    """Rows of the same group with a smaller value."""
    key_N = group_N * (int(value_N.max()) + 1) + value_N
    keys, place_N, counts = np.unique(key_N, return_inverse=True, return_counts=True)
    before = np.cumsum(counts) - counts
    group_of_key = keys // (int(value_N.max()) + 1)
    first = np.searchsorted(group_of_key, group_of_key)
    return np.asarray((before - before[first])[place_N])


def _dominated(x_N: NDArray[np.intp], y_N: NDArray[np.intp]) -> NDArray[np.intp]:
    """Rows that are smaller in both: a wavelet tree over the order of x, walked once for all rows."""
    size = len(x_N)
    by_x = np.lexsort((-y_N, x_N))  # of equal x the larger y first, so that they do not count
    ordered_y = y_N[by_x]
    place = np.lexsort((-np.arange(size), ordered_y))  # of equal y the later first, for the same reason
    count = np.zeros(size, dtype=np.intp)
    for bit in reversed(range(max(1, (size - 1).bit_length()))):
        block_start = place >> (bit + 1) << (bit + 1)
        right = (place >> bit & 1).astype(bool)
        lefts = np.concatenate([[0], np.cumsum(~right)])
        lefts_before = lefts[:-1] - lefts[block_start]
        count[place[right]] += lefts_before[right]
        in_left = np.minimum(1 << bit, size - block_start)
        inside = np.arange(size) - block_start
        target = block_start + np.where(right, in_left + inside - lefts_before, lefts_before)
        moved = np.empty_like(place)
        moved[target] = place
        place = moved
    result = np.empty(size, dtype=np.intp)
    result[by_x] = count
    return result


def _metrics(sums_BM: Floats, totals_M: Floats, names: list[str]) -> dict[str, dict[str, Floats]]:
    rows_B, lengths_B = sums_BM[:, 0], sums_BM[:, 1]
    metrics = {}
    for place, name in enumerate(names):
        start = 2 + place * _COLUMNS
        mean_BC = sums_BM[:, start : start + _COLUMNS] / rows_B[:, None]
        overall_C = totals_M[start : start + _COLUMNS] / totals_M[0]
        agree_B, rank_B, length_B = (
            2.0 * mean_BC[:, column] - overall_C[column] for column in (_AGREE, _VARIED_RANK, _VARIED_LENGTH)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            tau_B = agree_B / np.sqrt(rank_B * length_B)
            somers_B = agree_B / length_B
        metrics[name] = {
            "bucket_accuracy": mean_BC[:, _HIT],
            "bucket_accuracy_of_mean": mean_BC[:, _HIT_MEAN],
            "kendall_tau": np.clip(tau_B, -1.0, 1.0),
            "somers_d": np.clip(somers_B, -1.0, 1.0),
            "pinball_loss": mean_BC[:, _PINBALL],
            "pinball_loss_normalised": mean_BC[:, _PINBALL] * rows_B / lengths_B,
            "coverage_80": mean_BC[:, _COVERED],
            "mae_tokens": mean_BC[:, _ERROR],
            "mae_tokens_of_mean": mean_BC[:, _ERROR_MEAN],
        }
    return metrics


def _estimates(point: Mapping[str, Floats], drawn: Mapping[str, Floats]) -> dict[str, Estimate]:
    result = {}
    for metric in METRICS:
        value = float(point[metric][0])
        finite_B = drawn[metric][np.isfinite(drawn[metric])]
        if not np.isfinite(value):
            result[metric] = Estimate(None, None, None)
        elif len(finite_B) == 0:
            result[metric] = Estimate(value, None, None)
        else:
            low, high = np.percentile(finite_B, INTERVAL)
            result[metric] = Estimate(value, float(low), float(high))
    return result

"""How good length predictions are: absolute error, rank correlation, and the buckets of arXiv 2408.13510."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import kendalltau

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUCKET_EDGES_TOKENS = (250, 1_000)
"""Between short, medium and long answers (0-250, 250-1000, 1000-4000 tokens)."""


@dataclass(frozen=True, slots=True)
class LengthScore:
    """``tau`` is None where all predictions, or all lengths, are the same: there is no order to agree with."""

    mae_tokens: float
    bias_tokens: float
    tau: float | None
    bucket_accuracy: float


def score_lengths(predicted_N: NDArray[np.float64], actual_N: NDArray[np.float64]) -> LengthScore:
    """Scores one set of predictions."""
    varied = len(np.unique(predicted_N)) > 1 and len(np.unique(actual_N)) > 1
    tau = float(kendalltau(predicted_N, actual_N).statistic) if varied else None
    same_bucket_N = np.digitize(predicted_N, BUCKET_EDGES_TOKENS) == np.digitize(actual_N, BUCKET_EDGES_TOKENS)
    return LengthScore(
        mae_tokens=float(np.abs(predicted_N - actual_N).mean()),
        bias_tokens=float((predicted_N - actual_N).mean()),
        tau=tau,
        bucket_accuracy=float(same_bucket_N.mean()),
    )

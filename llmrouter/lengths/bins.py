"""Fixed bins of lengths, so that a law is a small vector of counts that adds up over routers."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.distribution import LEVELS, MAX_TOKENS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_EXACT = 16
_FINE_UP_TO = 8_192
_FINE, _COARSE = 1.08, 1.3
BINS_VERSION = 1
"""Counts of another version do not add up with these."""


def _starts() -> NDArray[np.int64]:
    starts = list(range(1, _EXACT + 1))
    while starts[-1] < MAX_TOKENS:
        growth = _FINE if starts[-1] < _FINE_UP_TO else _COARSE
        starts.append(max(starts[-1] + 1, round(starts[-1] * growth)))
    return np.array(starts[:-1])


STARTS_B = _starts()
"""First length of each bin: single tokens to 16, then 8 % wide to 8,192, then 30 % wide to 1e6."""

BINS = len(STARTS_B)
_STARTS = STARTS_B.tolist()
_LAST_B = np.append(STARTS_B[1:] - 1, int(MAX_TOKENS))
_LOG_START_B = np.log(STARTS_B)
_LOG_WIDTH_B = np.log(_LAST_B) - _LOG_START_B
_LEVELS_Q = np.array(LEVELS)
_REACHED_Q = _LEVELS_Q - 1e-12


def bin_of(tokens: float) -> int:
    """The bin of a length within 1 and 1e6."""
    return bisect_right(_STARTS, tokens) - 1


def quantiles_of(shares_NB: Floats) -> Floats:
    """Quantiles (N, levels) at ``LEVELS`` of laws given by the shares (N, bins) of the bins, which add up to 1.

    Within a bin, the logarithm of the length is linear in the level.
    """
    cumulated_NB = shares_NB.cumsum(axis=1)
    passed_NQ = np.array([row_B.searchsorted(_REACHED_Q) for row_B in cumulated_NB]).reshape(-1, len(LEVELS))
    bin_NQ = np.minimum(passed_NQ, BINS - 1).astype(np.intp)
    rows_N1 = np.arange(len(shares_NB))[:, None]
    share_NQ = shares_NB[rows_N1, bin_NQ]
    into_NQ = _LEVELS_Q - (cumulated_NB[rows_N1, bin_NQ] - share_NQ)
    inside_NQ = np.minimum(np.maximum(into_NQ / np.maximum(share_NQ, 1e-300), 0.0), 1.0)
    quantiles_NQ: Floats = np.exp(_LOG_START_B[bin_NQ] + inside_NQ * _LOG_WIDTH_B[bin_NQ])
    return quantiles_NQ


def broad_prior(median_tokens: float = 128.0, spread: float = 1.6) -> Floats:
    """Shares (bins) of a log-normal law, believed before any answer; ``spread`` is its standard deviation in ln."""
    middle_B = _LOG_START_B + 0.5 * np.log1p(1.0 / STARTS_B)
    width_B = np.diff(np.append(_LOG_START_B, np.log(MAX_TOKENS)))
    density_B = np.exp(-0.5 * ((middle_B - np.log(median_tokens)) / spread) ** 2) * np.maximum(width_B, 1e-9)
    shares_B: Floats = density_B / density_B.sum()
    return shares_B

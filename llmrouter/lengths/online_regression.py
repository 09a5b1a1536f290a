"""Three small learners of the logarithm of a length that forget: a ridge, weights of words, and residuals near by."""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.distribution import LEVELS
from llmrouter.lengths.laws import near_quantiles, word_sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


class RecentRidge:
    """Ridge regression on a few inputs; an example weighs half after ``half_life`` others, the penalty never fades.

    Sums are kept, and solved anew at each of the first ``EAGER`` examples and at every ``SPELL``-th from there on.
    """

    EAGER, SPELL = 64, 16

    def __init__(self, penalty_D: Floats, *, half_life: float) -> None:
        self._penalty_DD = np.diag(penalty_D)
        self._decay = 0.5 ** (1.0 / half_life)
        self._squares_DD = np.zeros((len(penalty_D), len(penalty_D)))
        self._products_D = np.zeros(len(penalty_D))
        self._weights_D: Floats = np.zeros(len(penalty_D))
        self._examples = 0

    def predict(self, inputs_ND: Floats) -> Floats:
        """Targets (N,)."""
        targets_N: Floats = inputs_ND @ self._weights_D
        return targets_N

    def learn(self, inputs_D: Floats, target: float) -> None:
        """Takes note of one example."""
        self._squares_DD *= self._decay
        self._squares_DD += inputs_D[:, None] * inputs_D
        self._products_D *= self._decay
        self._products_D += target * inputs_D
        self._examples += 1
        if self._examples <= self.EAGER or self._examples % self.SPELL == 0:
            self._weights_D = _solved(self._squares_DD + self._penalty_DD, self._products_D)


def _solved(matrix_DD: Floats, right_D: Floats) -> Floats:
    return np.asarray(np.linalg.solve(matrix_DD, right_D), dtype=np.float64)


class WordWeights:
    """A sum of weights of words, learned by normalised least mean squares (Widrow and Hoff, 1960).

    Each example brings its own sum nearer its target by ``step``. A word seen n times speaks with the strength
    1 ÷ √(1 + n ÷ ``common``), so that rare words say and learn more; strengths of one text have the norm 1. Id 0 is no
    word.
    """

    def __init__(self, words: int, *, step: float, common: float) -> None:
        self._step = step
        self._common = common
        self._seen_W = np.zeros(words, dtype=np.float32)
        self._weights_W = np.zeros(words, dtype=np.float32)
        self._strengths_W = np.ones(words, dtype=np.float32)
        self._strengths_W[0] = 0.0

    def predict(self, ids_NI: NDArray[np.int32]) -> Floats:
        """Sums (N,) of texts of I ids."""
        return word_sums(ids_NI, self._weights_W, self._strengths_W, _NO_WORD)

    def learn(self, ids_I: NDArray[np.int32], error: float) -> None:
        """Takes note of one text whose target exceeds its sum by ``error``."""
        strengths_I = self._strengths_W[ids_I]
        norm = max(float(np.sqrt(strengths_I @ strengths_I)), _NO_WORD)
        self._weights_W[ids_I] += self._step * error / norm * strengths_I
        self._seen_W[ids_I] += 1.0
        self._strengths_W[ids_I] = np.sqrt(self._common / (self._common + self._seen_W[ids_I]))
        self._strengths_W[0] = 0.0


class NearResiduals:
    """Quantiles of residuals, from those of the last ``capacity`` examples whose forecasts were about the same.

    An example weighs as a normal density of the difference of forecasts, with the standard deviation ``width``; one of
    another label ``foreign`` times that. A normal law of residuals stands before the first with ``prior`` examples.
    """

    def __init__(self, *, capacity: int, width: float, foreign: float, prior: float, spread: float) -> None:
        self._capacity = capacity
        self._sharpness = -0.5 / (width * width)
        self._foreign = foreign
        self._prior_weight = prior / _PRIOR_POINTS
        self._kept_3K = np.zeros((3, _PRIOR_POINTS + capacity))
        ranks = (np.arange(_PRIOR_POINTS) + 0.5) / _PRIOR_POINTS
        self._kept_3K[_RESIDUAL, :_PRIOR_POINTS] = [spread * NormalDist().inv_cdf(rank) for rank in ranks]
        self._examples = 0
        self._scratch_K = np.empty(_PRIOR_POINTS + capacity)
        self._said_by_label: dict[int, Floats] = {}
        self._sort()

    def quantiles(self, forecasts_N: Floats, labels_N: NDArray[np.int32]) -> Floats:
        """Residuals (N, levels) at ``LEVELS``."""
        found_NQ = np.empty((len(forecasts_N), len(LEVELS)))
        known = self._sharpness, _LEVELS_Q, self._sorted_3K
        for row, (forecast, label) in enumerate(zip(forecasts_N.tolist(), labels_N.tolist(), strict=True)):
            near_quantiles(forecast, *known, self._said(label), self._prior_K, self._scratch_K, found_NQ[row])
        return found_NQ

    def _said(self, label: int) -> Floats:
        """What each example (K) says of such a label, as a share; 0 of those before the first, which say the same."""
        said_K = self._said_by_label.get(label)
        if said_K is None:
            said_K = np.where(self._sorted_3K[_LABEL] == label, 1.0, self._foreign)
            said_K[self._prior_K > 0.0] = 0.0
            if len(self._said_by_label) >= _LABELS_KEPT:
                self._said_by_label.clear()
            self._said_by_label[label] = said_K
        return said_K

    def learn(self, forecast: float, label: int, residual: float) -> None:
        """Takes note of one example; the oldest gives way."""
        self._kept_3K[:, _PRIOR_POINTS + self._examples % self._capacity] = forecast, label, residual
        self._examples += 1
        self._sort()

    def _sort(self) -> None:
        filled_3K = self._kept_3K[:, : _PRIOR_POINTS + min(self._examples, self._capacity)]
        order_K = np.argsort(filled_3K[_RESIDUAL], kind="stable")
        self._sorted_3K = filled_3K.take(order_K, axis=1)
        self._prior_K = np.where(order_K < _PRIOR_POINTS, self._prior_weight, 0.0)
        self._said_by_label.clear()


_LABEL, _RESIDUAL = 1, 2
_LABELS_KEPT = 64
_PRIOR_POINTS = 15
_LEVELS_Q = np.array(LEVELS)
_NO_WORD = 1e-9

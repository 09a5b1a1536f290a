"""Learns from an operator's own answers what their prompts say of their length: hashed words, never text.

The logarithm of a length is forecast by a ridge on a few numbers (the text model's quantiles, the dense features,
hashed labels) plus a sum of weights of hashed words; the law around it is that of the residuals of recent answers whose
forecasts were about the same. All of it forgets, and is bounded, whatever clients send.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.distribution import LEVELS, Lengths, bounded
from llmrouter.lengths.laws import lay_out
from llmrouter.lengths.online_regression import NearResiduals, RecentRidge, WordWeights
from llmrouter.lengths.predictor import limits, refusal
from llmrouter.lengths.text import DENSE, DENSE_NAMES, FIELDS, HASH_BUCKETS, text_features

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from llmrouter.lengths.distribution import LengthDistribution
    from llmrouter.lengths.predictor import LengthPredictor, LengthRequest, UsageRefusal
    from llmrouter.lengths.text import TextFeatures

    Floats = NDArray[np.float64]
    Ids = NDArray[np.int32]
    _Forecast = tuple[Floats, Ids, Floats]

HALF_LIFE = 2_000.0
STEP, COMMON = 0.25, 10.0
ANSWERS, WIDTH, FOREIGN = 1_024, 0.3, 0.1
PRIOR_ANSWERS, PRIOR_SPREAD = 3.0, 1.2
MAX_WORD_ERROR, MAX_ERROR = 1.0, 3.0
LABEL_COLUMNS = np.array((16, 16, 32))
"""Inputs that stand for the application, the model and both: hashed, so that any number of labels fits."""

WORDS = FIELDS["pairs_tail"].stop
"""The first so many ids are read: labels, words and word pairs. Character 4-grams are not."""

_USUAL = math.log(128.0)
_PENALTY, _LEVEL_PENALTY, _LEVEL = 5.0, 0.1, 3.0
_DENSE = slice(1, 1 + DENSE)
_MODEL = slice(int(_DENSE.stop + LABEL_COLUMNS.sum()), int(_DENSE.stop + LABEL_COLUMNS.sum()) + len(LEVELS))
_DENSE_SCALE_D = np.array([0.3 if name.startswith("log_") else 1.0 for name in DENSE_NAMES])


class OnlineText:
    """A law from the text of the prompt, learned online.

    It needs no model and no training; with a model, that model's quantiles are among its inputs. Routers cannot add up
    what they learned: each learns alone. An answer that was cut at its own limit, below its forecast, changes nothing.
    A single report moves the forecasts by a bounded amount, and none leaves the range of the lengths that were learned.

    Args:
        read: features of requests: from their prompts, or kept since their prompts were there. Of ``ids``, the
            first ``WORDS`` columns are used.
        model: its laws are inputs, at prediction and again when the answer is learned.
        name: the source of its laws.
    """

    def __init__(
        self,
        *,
        read: Callable[[Sequence[LengthRequest]], TextFeatures] = text_features,
        model: LengthPredictor | None = None,
        name: str = "online-text",
    ) -> None:
        self.name = name
        self.digest = "" if model is None else model.digest
        self._read = read
        self._model = model
        self._inputs = _MODEL.start if model is None else _MODEL.stop
        penalty_D = np.full(self._inputs, _PENALTY)
        penalty_D[0] = _LEVEL_PENALTY
        self._ridge = RecentRidge(penalty_D, half_life=HALF_LIFE)
        self._words = WordWeights(HASH_BUCKETS, step=STEP, common=COMMON)
        self._residuals = NearResiduals(
            capacity=ANSWERS, width=WIDTH, foreign=FOREIGN, prior=PRIOR_ANSWERS, spread=PRIOR_SPREAD
        )
        self._shortest = self._longest = _USUAL
        self._last: tuple[LengthRequest, _Forecast] | None = None
        """What was asked for last, if it was asked for alone and nothing was learned since."""

    def predict(self, requests: Sequence[LengthRequest]) -> Lengths:
        """One law for each request; raises NotFiniteLengthsError where the model does."""
        _, ids_NW, forecast_N = forecast = self._forecast(requests)
        self._last = (requests[0], forecast) if len(requests) == 1 else None
        residual_NQ = self._residuals.quantiles(forecast_N, ids_NW[:, 0])
        return Lengths(
            bounded(np.exp(forecast_N[:, None] + residual_NQ)),
            limits(requests),
            self.name,
            self.digest,
            own_rank=np.exp(forecast_N),
        )

    def learn(
        self, request: LengthRequest, output_tokens: float, predicted: LengthDistribution | None = None
    ) -> UsageRefusal | None:
        """Moves the forecasts of such requests towards the answer, and keeps its residual."""
        del predicted
        reason = refusal(request, output_tokens)
        if reason is not None:
            return reason
        known, self._last = self._last, None
        inputs_ND, ids_NW, forecast_N = known[1] if known and known[0] is request else self._forecast([request])
        forecast, length = forecast_N.item(0), math.log(output_tokens)
        cut = request.max_output_tokens is not None and output_tokens >= request.max_output_tokens
        if cut and forecast >= length:
            return None
        error = length - forecast
        self._residuals.learn(forecast, ids_NW.item(0, 0), error)
        self._words.learn(ids_NW[0], _within(error, MAX_WORD_ERROR))
        self._ridge.learn(inputs_ND[0], forecast + _within(error, MAX_ERROR) - _USUAL)
        self._shortest, self._longest = min(self._shortest, length), max(self._longest, length)
        return None

    def _forecast(self, requests: Sequence[LengthRequest]) -> _Forecast:
        """Inputs (N, D), ids (N, words) and ln tokens (N,)."""
        features = self._read(requests)
        ids_NW = features.ids[:, :WORDS]
        inputs_ND = np.zeros((len(requests), self._inputs))
        latent = None if self._model is None else self._model.predict(requests).latent
        lay_out(inputs_ND, features.dense, _DENSE_SCALE_D, ids_NW, LABEL_COLUMNS, latent, _LEVEL, _USUAL)
        forecast_N = _USUAL + self._ridge.predict(inputs_ND) + self._words.predict(ids_NW)
        return inputs_ND, ids_NW, np.minimum(np.maximum(forecast_N, self._shortest), self._longest)


def _within(value: float, bound: float) -> float:
    return min(max(value, -bound), bound)

"""Predictors that learn nothing while they serve: a constant, the three-bucket rule, and a model's point forecast."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.distribution import LEVELS, MAX_TOKENS, MIN_TOKENS, lengths_of
from llmrouter.lengths.predictor import limits, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from llmrouter.lengths.distribution import LengthDistribution, Lengths
    from llmrouter.lengths.predictor import LengthRequest, UsageRefusal

    Scorer = Callable[[Sequence[LengthRequest]], NDArray[np.float64]]

SHORT_TOKENS, UNKNOWN_TOKENS, LONG_TOKENS = 100.0, 1_000.0, 4_096.0
"""Of llm-d-router's ``outlen-bucket``, whose rule ``ThreeBucketRule`` is."""


class Fixed:
    """Learns nothing from the answers it is told of."""

    digest = ""

    def learn(
        self, request: LengthRequest, output_tokens: float, predicted: LengthDistribution | None = None
    ) -> UsageRefusal | None:
        """Changes nothing."""
        del predicted
        return refusal(request, output_tokens)


class ConstantLengths(Fixed):
    """The same number for every request, as if it were certain; raises ValueError unless it is within 1 and 1e6."""

    def __init__(self, tokens: float, *, name: str = "constant") -> None:
        if not MIN_TOKENS <= tokens <= MAX_TOKENS:
            raise ValueError(f"tokens must be within 1 and 1e6, not {tokens}")
        self.name = name
        self._tokens = float(tokens)

    def predict(self, requests: Sequence[LengthRequest]) -> Lengths:
        """One law for each request."""
        return _points(np.full(len(requests), self._tokens), requests, source=self.name)


class ThreeBucketRule(Fixed):
    """Long where the request asks for thinking, short where it offers tools without, else unknown."""

    name = "three-buckets"

    def predict(self, requests: Sequence[LengthRequest]) -> Lengths:
        """One law for each request."""
        tokens = [LONG_TOKENS if one.thinking else SHORT_TOKENS if one.tools else UNKNOWN_TOKENS for one in requests]
        return _points(np.array(tokens), requests, source=self.name)


class PointModel(Fixed):
    """A model that forecasts one number for each request, with a spread that is given, not learned.

    Args:
        scorer: expected tokens (N,) of N requests.
        name: of the model.
        digest: of the model.
        spread: standard deviation of the logarithm of length ÷ forecast; 0 takes the forecast for certain.
    """

    def __init__(self, scorer: Scorer, *, name: str, digest: str = "", spread: float = 0.0) -> None:
        self.name = name
        self.digest = digest
        self._scorer = scorer
        self._factors_Q = np.exp(spread * NORMAL_QUANTILES_Q)

    def predict(self, requests: Sequence[LengthRequest]) -> Lengths:
        """One law for each request; the forecast is its mean and its median; raises NotFiniteLengthsError."""
        tokens_N = np.asarray(self._scorer(requests), dtype=np.float64).reshape(len(requests))
        return lengths_of(
            tokens_N[:, None] * self._factors_Q,
            source=self.name,
            limit_N=limits(requests),
            expected_N=tokens_N,
            digest=self.digest,
        )


class QuantileModel(Fixed):
    """A model that forecasts quantiles and a rank for each request.

    Args:
        scorer: of N requests, tokens (N, levels) at ``LEVELS`` and ranks (N,).
        name: of the model.
        digest: of the model.
    """

    def __init__(
        self,
        scorer: Callable[[Sequence[LengthRequest]], tuple[NDArray[np.float64], NDArray[np.float64]]],
        *,
        name: str,
        digest: str = "",
    ) -> None:
        self.name = name
        self.digest = digest
        self._scorer = scorer

    def predict(self, requests: Sequence[LengthRequest]) -> Lengths:
        """One law for each request; raises NotFiniteLengthsError."""
        if not requests:
            return lengths_of(np.zeros((0, len(LEVELS))), source=self.name, limit_N=np.zeros(0), digest=self.digest)
        quantiles_NQ, rank_N = self._scorer(requests)
        return lengths_of(
            np.asarray(quantiles_NQ, dtype=np.float64),
            source=self.name,
            limit_N=limits(requests),
            rank_N=rank_N,
            digest=self.digest,
        )


NORMAL_QUANTILES_Q = np.array([-1.6448536, -1.2815516, -0.6744898, 0.0, 0.6744898, 1.2815516, 1.6448536])
"""Of the standard normal law at ``LEVELS``."""


def _points(tokens_N: NDArray[np.float64], requests: Sequence[LengthRequest], *, source: str) -> Lengths:
    return lengths_of(np.repeat(tokens_N[:, None], len(LEVELS), axis=1), source=source, limit_N=limits(requests))

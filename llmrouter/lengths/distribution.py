"""What is expected of an answer's length before it exists: a law, given by seven quantiles, for one request or many.

Between two quantiles the logarithm of the length is linear in the level. Below the first and above the last, the line
of the neighbouring pair goes on for twice its length (on a normal law of log lengths that puts the middle of the last
5 % where it belongs). Everything else (mean, buckets, residual life) follows from this quantile function.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
MEDIAN = LEVELS.index(0.5)
MIN_TOKENS = 1.0
MAX_TOKENS = 1e6

PAPER_EDGES_TOKENS = (250.0, 1_000.0)
"""Between short, medium and long answers: the buckets of the length predictor of arXiv 2408.13510."""

AGENT_EDGES_TOKENS = (256.0, 2_048.0)
"""The buckets that the agent of arXiv 2408.13510 sees."""

_KNOT_LEVELS = np.array((0.0, *LEVELS, 1.0))
_KNOT_WIDTHS = np.diff(_KNOT_LEVELS)
_TAIL = 2.0
_LOG_MAX = float(np.log(MAX_TOKENS))


class NotFiniteLengthsError(ValueError):
    """A predictor answered NaN or infinity."""


@dataclass(frozen=True, slots=True)
class LengthDistribution:
    """The law of one answer's length. Tokens; ``quantiles`` stand at ``LEVELS``, ascending, within 1 and 1e6.

    A lower ``rank`` is expected to be done sooner. ``source`` names what said it; ``digest`` is its model's.
    """

    quantiles: tuple[float, ...]
    expected_tokens: float
    rank: float
    source: str
    digest: str = ""
    max_output_tokens: float = MAX_TOKENS

    def bucket_probabilities(self, edges_tokens: Sequence[float] = PAPER_EDGES_TOKENS) -> tuple[float, ...]:
        """Probability of each bucket; a length that equals an edge belongs to the bucket above it."""
        return tuple(self._batch().bucket_probabilities(edges_tokens)[0].tolist())

    def residual_tokens(self, generated_tokens: float) -> float:
        """Tokens still to come once ``generated_tokens`` exist: see ``Lengths.residual_tokens``."""
        return float(self._batch().residual_tokens(np.array([generated_tokens]))[0])

    def _batch(self) -> Lengths:
        return lengths_of(np.array([self.quantiles]), limit_N=np.array([self.max_output_tokens]), source=self.source)


@dataclass(frozen=True, eq=False)
class Lengths:
    """Laws of N answers: arrays (N,), ``latent`` (N, levels).

    ``latent`` are the quantiles without regard to ``limit_tokens``, the most each answer may have; properties and
    methods regard it. ``own_mean`` and ``own_rank`` are there where the predictor has its own. Made by ``lengths_of``.
    """

    latent: Floats
    limit_tokens: Floats
    source: str
    digest: str = ""
    own_mean: Floats | None = None
    own_rank: Floats | None = None

    def __len__(self) -> int:
        return len(self.latent)

    @property
    def quantiles(self) -> Floats:
        """Tokens (N, levels), ascending, at most the limit."""
        return np.minimum(self.latent, self.limit_tokens[:, None])

    @cached_property
    def expected_tokens(self) -> Floats:
        """Mean (N,): the predictor's own, else that of the quantile function; within 1 and the limit."""
        mean_N = self.own_mean
        if mean_N is None:
            mean_N = _mean_below(_knots(self.latent), np.log(self.limit_tokens))
        return np.minimum(np.maximum(mean_N, MIN_TOKENS), self.limit_tokens)

    @property
    def rank(self) -> Floats:
        """Rank scores (N,), a lower one is expected to be done sooner: the predictor's own, else the mean."""
        return self.expected_tokens if self.own_rank is None else self.own_rank

    def __getitem__(self, rows: slice) -> Lengths:
        """The laws of these rows."""
        return Lengths(
            self.latent[rows],
            self.limit_tokens[rows],
            self.source,
            self.digest,
            own_mean=None if self.own_mean is None else self.own_mean[rows],
            own_rank=None if self.own_rank is None else self.own_rank[rows],
        )

    def row(self, index: int) -> LengthDistribution:
        """The law of one request."""
        limit = self.limit_tokens.item(index)
        return LengthDistribution(
            quantiles=tuple([min(value, limit) for value in self.latent[index].tolist()]),
            expected_tokens=self.expected_tokens.item(index),
            rank=self.rank.item(index),
            source=self.source,
            digest=self.digest,
            max_output_tokens=limit,
        )

    def below(self, tokens_N: ArrayLike) -> Floats:
        """P(length < tokens) (N,) for one number of tokens or one for each row."""
        tokens_N = np.broadcast_to(np.asarray(tokens_N, dtype=np.float64), (len(self),))
        below_N = _below(_knots(self.latent), np.log(np.maximum(tokens_N, 1e-9)))
        return np.where(tokens_N > self.limit_tokens, 1.0, below_N)

    def bucket_probabilities(self, edges_tokens: Sequence[float] = PAPER_EDGES_TOKENS) -> Floats:
        """Probabilities (N, edges + 1); a length that equals an edge belongs to the bucket above it."""
        columns = [np.zeros(len(self)), *(self.below(edge) for edge in edges_tokens), np.ones(len(self))]
        return np.diff(np.stack(columns, axis=1), axis=1)

    def residual_tokens(self, generated_N: Floats) -> Floats:
        """Mean residual life (N,): E[length − g | length ≥ g], from the quantile function.

        Beyond the last quantile nothing is known but the limit: the residual life stays what it is at that quantile.
        At least 1 token while below the limit, never more than the limit leaves; 0 at the limit.
        """
        knots_NK = _knots(self.latent)
        reached_N = np.clip(generated_N, 0.0, np.minimum(self.latent[:, -1], self.limit_tokens))
        log_reached_N = np.log(np.maximum(reached_N, 1e-9))
        above_N = _mean_below(knots_NK, np.log(self.limit_tokens)) - _mean_below(knots_NK, log_reached_N)
        mean_N = above_N / np.maximum(1.0 - _below(knots_NK, log_reached_N), 1e-9)
        left_N = np.maximum(self.limit_tokens - np.maximum(generated_N, 0.0), 0.0)
        return np.minimum(np.maximum(mean_N, MIN_TOKENS), left_N)


def lengths_of(
    quantiles_NQ: Floats,
    *,
    source: str,
    limit_N: Floats | None = None,
    expected_N: Floats | None = None,
    rank_N: Floats | None = None,
    digest: str = "",
) -> Lengths:
    """Makes laws of what a predictor said: crossing quantiles are sorted, all values brought within 1 and 1e6.

    Args:
        quantiles_NQ: tokens (N, levels) at ``LEVELS``.
        source: name of the predictor.
        limit_N: the most tokens each answer may have (``max_output_tokens``); no answer is longer than 1e6.
        expected_N: mean tokens, where the predictor has one of its own; else the mean of the quantile function.
        rank_N: rank scores, where the predictor has its own; else the expected tokens.
        digest: of the model.

    Raises:
        NotFiniteLengthsError: any of the numbers is NaN or infinite.
        ValueError: the quantiles are not (N, levels).
    """
    if quantiles_NQ.ndim != 2 or quantiles_NQ.shape[1] != len(LEVELS):  # noqa: PLR2004 - rows and levels
        raise ValueError(f"quantiles have the shape {quantiles_NQ.shape}, not (N, {len(LEVELS)})")
    for given in (quantiles_NQ, expected_N, rank_N):
        if given is not None and not np.isfinite(given).all():
            raise NotFiniteLengthsError(f"{source}: a prediction is not finite")
    latent_NQ = _bounded(np.asarray(quantiles_NQ, dtype=np.float64))
    latent_NQ.sort(axis=1)
    limit_N = np.full(len(latent_NQ), MAX_TOKENS) if limit_N is None else _bounded(limit_N)
    return Lengths(latent_NQ, limit_N, source, digest, own_mean=expected_N, own_rank=rank_N)


def _bounded(tokens: Floats) -> Floats:
    return np.minimum(np.maximum(tokens, MIN_TOKENS), MAX_TOKENS)


def _knots(quantiles_NQ: Floats) -> Floats:
    """Logarithms of the quantile function at ``_KNOT_LEVELS``."""
    knots_NK = np.empty((len(quantiles_NQ), len(_KNOT_LEVELS)))
    np.log(quantiles_NQ, out=knots_NK[:, 1:-1])
    first_N, last_N = knots_NK[:, 1], knots_NK[:, -2]
    knots_NK[:, 0] = np.maximum(first_N - _TAIL * (knots_NK[:, 2] - first_N), 0.0)
    knots_NK[:, -1] = np.minimum(last_N + _TAIL * (last_N - knots_NK[:, -3]), _LOG_MAX)
    return knots_NK


def _below(knots_NK: Floats, log_tokens_N: Floats) -> Floats:
    """P(ln length < x): the quantile function turned round; from the left where it is flat."""
    passed_N = (knots_NK < log_tokens_N[:, None]).sum(axis=1)
    rows_N = np.arange(len(knots_NK))
    high_N = np.clip(passed_N, 1, len(_KNOT_LEVELS) - 1)
    low_N = high_N - 1
    start_N, end_N = knots_NK[rows_N, low_N], knots_NK[rows_N, high_N]
    width_N = end_N - start_N
    share_N = np.clip((log_tokens_N - start_N) / np.where(width_N > 0.0, width_N, 1.0), 0.0, 1.0)
    below_N = _KNOT_LEVELS[low_N] + share_N * (_KNOT_LEVELS[high_N] - _KNOT_LEVELS[low_N])
    return np.where(passed_N == 0, 0.0, np.where(passed_N == len(_KNOT_LEVELS), 1.0, below_N))


def _mean_below(knots_NK: Floats, log_limit_N: Floats) -> Floats:
    """E[min(length, limit)]: of each segment the logarithmic mean up to the limit, and the limit for the rest."""
    log_limit_N1 = log_limit_N[:, None]
    cut_NK = np.minimum(knots_NK, log_limit_N1)
    kept_NS = cut_NK[:, 1:] - cut_NK[:, :-1]
    start_NS = np.exp(cut_NK[:, :-1])
    flat_NS = kept_NS < 1e-9  # noqa: PLR2004 - below it the quotient loses its digits
    divisor_NS = np.where(flat_NS, 1.0, kept_NS)
    mean_NS = start_NS * np.where(flat_NS, 1.0, np.expm1(kept_NS) / divisor_NS)
    if (knots_NK[:, -1:] > log_limit_N1).any():
        width_NS = knots_NK[:, 1:] - knots_NK[:, :-1]
        share_NS = np.where(width_NS > 0.0, kept_NS / np.where(width_NS > 0.0, width_NS, 1.0), 1.0)
        mean_NS = share_NS * mean_NS + (1.0 - share_NS) * np.exp(log_limit_N1)
    mean_N: Floats = mean_NS @ _KNOT_WIDTHS
    return mean_N

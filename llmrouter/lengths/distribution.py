"""What is expected of an answer's length before it exists: a law, given by seven quantiles, for one request or many.

Between two quantiles the logarithm of the length is linear in the level. Below the first and above the last, the line
of the neighbouring pair goes on for twice its length (on a normal law of log lengths that puts the middle of the last
5 % where it belongs). Everything else (mean, buckets, residual life) follows from this quantile function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.laws import below, mean_below
from llmrouter.quick import quick

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
MEDIAN = LEVELS.index(0.5)
MIN_TOKENS = 1.0
MAX_TOKENS = 1e6

PAPER_EDGES_TOKENS = (250.0, 1_000.0)
"""Between short, medium and long answers: the buckets of the length predictor of arXiv 2408.13510."""

AGENT_EDGES_TOKENS = (256.0, 2_048.0)
"""The buckets that the agent of arXiv 2408.13510 sees."""


class NotFiniteLengthsError(ValueError):
    """A predictor answered NaN or infinity."""


@quick
@dataclass(frozen=True)
class LengthDistribution:
    """The law of one answer's length.

    ``latent`` are tokens at ``LEVELS``, ascending, within 1 and 1e6, without regard to ``max_output_tokens``, the most
    the answer may have; properties and methods regard it. ``own_mean`` and ``own_rank`` are there where the predictor
    has its own. ``source`` names what said it; ``digest`` is its model's. ``parts`` are the laws that this one was made
    of, in the order of the predictors that gave them, where somebody asked for them: to learn without asking again.
    """

    latent: tuple[float, ...]
    own_mean: float | None
    own_rank: float | None
    source: str
    digest: str = ""
    max_output_tokens: float = MAX_TOKENS
    parts: tuple[LengthDistribution, ...] = field(default=(), repr=False, compare=False)

    @cached_property
    def quantiles(self) -> tuple[float, ...]:
        """Tokens at ``LEVELS``, ascending, at most the limit."""
        limit = self.max_output_tokens
        return tuple([min(value, limit) for value in self.latent])

    @cached_property
    def expected_tokens(self) -> float:
        """The predictor's own mean, else that of the quantile function; within 1 and the limit."""
        return _mean(self.latent, self.own_mean, self.max_output_tokens)

    @property
    def rank(self) -> float:
        """A lower one is expected to be done sooner: the predictor's own, else the mean."""
        return self.expected_tokens if self.own_rank is None else self.own_rank

    def below(self, tokens: float) -> float:
        """P(length < tokens)."""
        return 1.0 if tokens > self.max_output_tokens else below(self.latent, tokens)

    def bucket_probabilities(self, edges_tokens: Sequence[float] = PAPER_EDGES_TOKENS) -> tuple[float, ...]:
        """Probability of each bucket; a length that equals an edge belongs to the bucket above it."""
        below = [0.0, *map(self.below, edges_tokens), 1.0]
        return tuple([high - low for low, high in pairwise(below)])

    def residual_tokens(self, generated_tokens: float) -> float:
        """Mean residual life: E[length − g | length ≥ g], from the quantile function.

        Beyond the last quantile nothing is known but the limit: the residual life stays what it is at that quantile.
        At least 1 token while below the limit, never more than the limit leaves; 0 at the limit.
        """
        limit, generated = self.max_output_tokens, max(generated_tokens, 0.0)
        reached = min(generated, self.latent[-1], limit)
        above = mean_below(self.latent, limit) - mean_below(self.latent, reached)
        mean = above / max(1.0 - below(self.latent, reached), 1e-9)
        return min(max(mean, MIN_TOKENS), max(limit - generated, 0.0))


@quick
@dataclass(frozen=True, eq=False)
class Lengths:
    """Laws of N answers, as ``LengthDistribution`` is of one: arrays (N,), ``latent`` (N, levels).

    Made by ``lengths_of`` of what a model said. Predictors that make new laws of such make them right themselves.
    """

    latent: Floats
    limit_tokens: Floats
    source: str
    digest: str = ""
    own_mean: Floats | None = None
    own_rank: Floats | None = None
    parts: tuple[Lengths, ...] = ()

    def __len__(self) -> int:
        return len(self.latent)

    @property
    def quantiles(self) -> Floats:
        """Tokens (N, levels), ascending, at most the limit."""
        return np.minimum(self.latent, self.limit_tokens[:, None])

    @cached_property
    def expected_tokens(self) -> Floats:
        """Means (N,)."""
        own = [None] * len(self) if self.own_mean is None else self.own_mean.tolist()
        return np.array([*map(_mean, map(tuple, self.latent.tolist()), own, self.limit_tokens.tolist())])

    @property
    def rank(self) -> Floats:
        """Rank scores (N,)."""
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
            parts=tuple([part[rows] for part in self.parts]),
        )

    def row(self, index: int, *, parts: bool = False) -> LengthDistribution:
        """The law of one request, with its ``parts`` or without; keeps nothing of the others."""
        return LengthDistribution(
            latent=tuple(self.latent[index].tolist()),
            own_mean=None if self.own_mean is None else self.own_mean.item(index),
            own_rank=None if self.own_rank is None else self.own_rank.item(index),
            source=self.source,
            digest=self.digest,
            max_output_tokens=self.limit_tokens.item(index),
            parts=tuple([part.row(index, parts=True) for part in self.parts]) if parts else (),
        )

    def rows(self) -> list[LengthDistribution]:
        """The law of each request, without parts."""
        unknown = [None] * len(self)
        means: Sequence[float | None] = unknown if self.own_mean is None else self.own_mean.tolist()
        ranks: Sequence[float | None] = unknown if self.own_rank is None else self.own_rank.tolist()
        source, digest = self.source, self.digest
        return [
            LengthDistribution(tuple(latent), mean, rank, source, digest, limit)
            for latent, mean, rank, limit in zip(
                self.latent.tolist(), means, ranks, self.limit_tokens.tolist(), strict=True
            )
        ]

    def bucket_probabilities(self, edges_tokens: Sequence[float] = PAPER_EDGES_TOKENS) -> Floats:
        """Probabilities (N, edges + 1); a length that equals an edge belongs to the bucket above it."""
        rows = [one.bucket_probabilities(edges_tokens) for one in self.rows()]
        return np.array(rows).reshape(len(self), -1)


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
        if given is not None and not math.isfinite(given.sum()):
            raise NotFiniteLengthsError(f"{source}: a prediction is not finite")
    latent_NQ = bounded(np.asarray(quantiles_NQ, dtype=np.float64))
    latent_NQ.sort(axis=1)
    limit_N = np.full(len(latent_NQ), MAX_TOKENS) if limit_N is None else bounded(limit_N)
    return Lengths(latent_NQ, limit_N, source, digest, own_mean=expected_N, own_rank=rank_N)


def bounded(tokens: Floats) -> Floats:
    """Tokens brought within 1 and 1e6."""
    return np.minimum(np.maximum(tokens, MIN_TOKENS), MAX_TOKENS)


def _mean(latent: tuple[float, ...], own: float | None, limit: float) -> float:
    """The predictor's own mean, else that of the quantile function; within 1 and the limit."""
    mean = mean_below(latent, limit) if own is None else own
    return min(max(mean, MIN_TOKENS), limit)

"""The network of a text model: bags of hashed n-grams, request fields, two layers, quantiles that cannot cross."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from llmrouter.lengths.distribution import LEVELS, MEDIAN, PAPER_EDGES_TOKENS
from llmrouter.lengths.text import DENSE, FIELD_WIDTHS, HASH_BUCKETS
from llmrouter.training.length_text_rows import LABELS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = Any
    Parameters = dict[str, Array]
    Floats = NDArray[np.float32]

BAGS = tuple(name for name in FIELD_WIDTHS if name != "labels")
OUTPUTS = len(LEVELS)
"""Columns of the last layer: median, steps below it from the lowest, steps above it."""

_LEVELS_Q = np.array(LEVELS, dtype=np.float32)
_KNOT_LEVELS = np.array((0.0, *LEVELS, 1.0), dtype=np.float32)
_TAIL = 2.0
_LEAST_PROBABILITY = 0.003


@dataclass(frozen=True, slots=True)
class Sizes:
    """Width of an embedding and of the two hidden layers."""

    embedding: int = 16
    first: int = 128
    second: int = 64


@dataclass(frozen=True, slots=True)
class Losses:
    """Weights of the parts of the loss: pinball on ln tokens, cross-entropy of the paper's buckets, ListMLE."""

    pinball: float = 1.0
    buckets: float = 0.3
    rank: float = 0.05


def segments() -> Floats:
    """Which columns of text ids belong to which bag (bags, T): ones and zeros."""
    widths = [FIELD_WIDTHS[name] for name in BAGS]
    return np.repeat(np.eye(len(BAGS), dtype=np.float32), widths, axis=1)


def first_parameters(seed: int, sizes: Sizes, log_quantiles_Q: NDArray[np.float64]) -> Parameters:
    """Random layers, and embeddings of zero, so that an n-gram never seen says nothing.

    Args:
        seed: of the random layers.
        sizes: of the layers.
        log_quantiles_Q: of all lengths: what the network says before it has learned anything.
    """
    rng = np.random.default_rng(seed)
    width = (LABELS + len(BAGS)) * sizes.embedding + DENSE

    def layer(rows: int, columns: int, scale: float) -> Floats:
        return (rng.standard_normal((rows, columns)) * scale).astype(np.float32)

    steps = np.log(np.expm1(np.maximum(np.diff(log_quantiles_Q), 0.02)))
    start = np.concatenate([[log_quantiles_Q[MEDIAN]], steps])
    return {
        "table": jnp.zeros((HASH_BUCKETS, sizes.embedding)),
        "first": jnp.asarray(layer(width, sizes.first, np.sqrt(2.0 / width))),
        "first_bias": jnp.zeros(sizes.first),
        "second": jnp.asarray(layer(sizes.first, sizes.second, np.sqrt(2.0 / sizes.first))),
        "second_bias": jnp.zeros(sizes.second),
        "last": jnp.asarray(layer(sizes.second, OUTPUTS, 0.01)),
        "last_bias": jnp.asarray(start, dtype=jnp.float32),
    }


def answers(
    parameters: Parameters,
    ids_NK: Array,
    dense_ND: Array,
    *,
    segments_FT: Array,
    kept_V: Array | None = None,
    dropout: Array | None = None,
) -> Array:
    """Quantiles in ln tokens at ``LEVELS`` (N, levels), ascending. The median is the rank, too.

    Args:
        parameters: of the network.
        ids_NK: labels, then text; 0 is nothing.
        dense_ND: standardised.
        segments_FT: of ``segments``.
        kept_V: ones where an embedding may differ from zero, in training; after it, the others are zero.
        dropout: factors (N, second) on the last hidden layer, in training.
    """
    table_VD = parameters["table"] if kept_V is None else parameters["table"] * kept_V[:, None]
    labels_NE = table_VD[ids_NK[:, :LABELS]].reshape(len(ids_NK), -1)
    text_NT = ids_NK[:, LABELS:]
    summed_NFD = jnp.einsum("ft,ntd->nfd", segments_FT, table_VD[text_NT])
    count_NF = (text_NT > 0).astype(jnp.float32) @ segments_FT.T
    mean_NFD = summed_NFD / jnp.maximum(count_NF, 1.0)[:, :, None]
    x = jnp.concatenate([labels_NE, mean_NFD.reshape(len(ids_NK), -1), dense_ND], axis=1)
    x = jax.nn.relu(x @ parameters["first"] + parameters["first_bias"])
    x = jax.nn.relu(x @ parameters["second"] + parameters["second_bias"])
    if dropout is not None:
        x = x * dropout
    out_NO = x @ parameters["last"] + parameters["last_bias"]
    median_N1 = out_NO[:, :1]
    steps_NS = jax.nn.softplus(out_NO[:, 1:])
    below_NS = jnp.cumsum(steps_NS[:, :MEDIAN][:, ::-1], axis=1)[:, ::-1]
    above_NS = jnp.cumsum(steps_NS[:, MEDIAN:], axis=1)
    return jnp.concatenate([median_N1 - below_NS, median_N1, median_N1 + above_NS], axis=1)


def loss(quantiles_NQ: Array, log_tokens_N: Array, *, list_size: int, weights: Losses) -> Array:
    """Mean over rows of the weighted parts; rows come list by list, ``list_size`` of them each."""
    over_NQ = log_tokens_N[:, None] - quantiles_NQ
    pinball = jnp.maximum(_LEVELS_Q * over_NQ, (_LEVELS_Q - 1.0) * over_NQ).sum(axis=1).mean()
    buckets = _bucket_loss(quantiles_NQ, log_tokens_N)
    ranks = _list_mle(quantiles_NQ[:, MEDIAN].reshape(-1, list_size), log_tokens_N.reshape(-1, list_size))
    return weights.pinball * pinball + weights.buckets * buckets + weights.rank * ranks


def _bucket_loss(quantiles_NQ: Array, log_tokens_N: Array) -> Array:
    """Cross-entropy of the bucket in the law that ``llmrouter.lengths.distribution`` reads from the quantiles."""
    first_N1 = quantiles_NQ[:, :1] - _TAIL * (quantiles_NQ[:, 1:2] - quantiles_NQ[:, :1])
    last_N1 = quantiles_NQ[:, -1:] + _TAIL * (quantiles_NQ[:, -1:] - quantiles_NQ[:, -2:-1])
    knots_NK = jnp.concatenate([first_N1, quantiles_NQ, last_N1], axis=1)
    edges = np.log(np.array(PAPER_EDGES_TOKENS, dtype=np.float32))
    below_NE = jnp.stack([jax.vmap(lambda k, e=edge: jnp.interp(e, k, _KNOT_LEVELS))(knots_NK) for edge in edges], 1)
    ends_N1 = jnp.zeros_like(first_N1)
    probability_NB = jnp.diff(jnp.concatenate([ends_N1, below_NE, ends_N1 + 1.0], axis=1), axis=1)
    bucket_N = (log_tokens_N[:, None] >= edges).sum(axis=1)
    likelihood_N = jnp.take_along_axis(probability_NB, bucket_N[:, None], axis=1)
    return -jnp.log(jnp.maximum(likelihood_N, _LEAST_PROBABILITY)).mean()


def _list_mle(median_LR: Array, log_tokens_LR: Array) -> Array:
    """ListMLE (Xia et al., 2008) of the order from short to long: Plackett-Luce with −median, a mean over rows."""
    order_LR = jnp.argsort(log_tokens_LR, axis=1)
    score_LR = -jnp.take_along_axis(median_LR, order_LR, axis=1)
    rest_LR = jax.lax.cumlogsumexp(score_LR, axis=1, reverse=True)
    return cast("Array", (rest_LR - score_LR).mean())

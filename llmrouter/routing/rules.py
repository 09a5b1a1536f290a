"""Rules: policies that are one formula over an instance's features, the smallest score first.

Every formula is written once, over a row ``x`` of features in the order of ``FEATURE_NAMES``; the router (``table``)
and the simulator compile it as it stands. So these functions use numbers and constants, and nothing else.

In the formulas the request has p prompt tokens, c of them in the instance's prefix cache, and d predicted output
tokens; the instance n requests in flight with C context tokens, Q of them still to prefill, and R predicted tokens to
decode; K tokens of KV; step time ``b + g3·n + g2·C``, prefill ``g1·p + g1b·p²``.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from llmrouter.domain import DECODE_RESERVE_FRACTION

if TYPE_CHECKING:
    from collections.abc import Sequence

REQUESTS = 0
CONTEXT = 1
QUEUED = 2
REMAINING = 3
PROMPT = 4
PREDICTED = 5
KV = 6
SLOTS = 7
BASE = 8
PREFILL = 9
PREFILL_SQUARED = 10
CONTEXT_S = 11
SEQUENCE_S = 12
PREFILL_FIRST = 13
CACHED = 14

TOKEN_LOAD_THRESHOLD = 4_194_304.0
"""Prompt tokens at which the token-load term is full: 128 requests of 32 Ki tokens, llm-d's default."""

MIXING_PREFILL_S = 3.2e-4
MIXING_CONTEXT_S = 3.3e-5
MIXING_ALPHA = 0.5
MIXING_EPSILON_S = 0.5
"""Constants of the mixing penalty for a V100 (arXiv 2408.13510); ε, which is not printed, is its heavy prompt."""

OWN_ALONE = (1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
"""Weights of the marginal cost that leave only the request's own seconds."""

IMPOSED_ALONE = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""Weights that leave only what the others lose: ``stall`` and ``slowdown``."""

COALESCE_ALONE = (0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)

LEAST_BASE_S = 1e-4
"""The shortest step of an empty batch that ``spread`` is divided by."""


class Rule(IntEnum):
    """The rules by number, as the compiled simulator knows them; the first three are no scores but procedures."""

    ROUND_ROBIN = 0
    RANDOM = 1
    POWER_OF_TWO = 2
    LEAST_IN_FLIGHT = 3
    MARGINAL_COST = 4
    LEAST_KV_TOKENS = 5
    LMETRIC = 6
    TOKEN_LOAD = 7
    PAPER_JSQ = 8
    MIN_MIN = 9
    MIXING_PENALTY = 10
    OWN_LATENCY = 11
    DECODE_BALANCER = 12
    PREFILL_LOAD = 13
    MIXING_PENALTY_SCALED = 14


def score(  # noqa: C901, PLR0911 - one line per rule
    rule: int, x: Sequence[float], weights: Sequence[float], backlog_s: float = 0.0
) -> float:
    """The score of one instance under a rule that has one; lower is better. Numbers are those of ``Rule``."""
    if rule == 4:  # noqa: PLR2004
        return marginal_cost_row(x, weights, backlog_s)
    if rule == 5:  # noqa: PLR2004
        return least_kv_tokens(x)
    if rule == 6:  # noqa: PLR2004
        return lmetric(x)
    if rule == 7:  # noqa: PLR2004
        return token_load(x)
    if rule == 8:  # noqa: PLR2004
        return tokens_left(x)
    if rule == 9:  # noqa: PLR2004
        return min_min(x)
    if rule == 10:  # noqa: PLR2004
        return mixing_penalty(x)
    if rule == 11:  # noqa: PLR2004
        return own_latency(x)
    if rule == 12:  # noqa: PLR2004
        return decode_left(x)
    if rule == 13:  # noqa: PLR2004
        return prefill_load(x)
    if rule == 14:  # noqa: PLR2004
        return mixing_penalty_scaled(x)
    return least_in_flight(x)


def least_in_flight(x: Sequence[float]) -> float:
    """Requests in flight: n."""
    return x[REQUESTS]


def least_kv_tokens(x: Sequence[float]) -> float:
    """Context tokens in flight, what the KV cache holds or is about to: C."""
    return x[CONTEXT]


def lmetric(x: Sequence[float]) -> float:
    """Prefill tokens including the request's own, times the batch size with it: ``(Q + p − c)·(n + 1)``.

    LMetric (arXiv 2603.15202): the new prefill tokens of an instance times its batch size. The request itself is
    counted in both, so that idle instances do not all score 0.
    """
    return (x[QUEUED] + x[PROMPT] - x[CACHED]) * (x[REQUESTS] + 1.0)


def prefill_load(x: Sequence[float]) -> float:
    """Prompt tokens still to prefill, the request's own with them, over a threshold: ``min(1, (Q + p − c)/T)``.

    llm-d's token-load-scorer (llm-d-router, ``scorer/tokenload``) over its in-flight-load producer, which by default
    counts the uncached prompt tokens until the first token of the answer.
    """
    return min(1.0, (x[QUEUED] + x[PROMPT] - x[CACHED]) / TOKEN_LOAD_THRESHOLD)


def token_load(x: Sequence[float]) -> float:
    """Prefix hits, token load and KV usage: ``3·(1 − c/p) + 2·min(1, (Q + p − c)/T) + 2·min(1, C/K)``.

    llm-d's weights for its prefix, token-load and KV-utilisation scorers are 3 : 2 : 2; its scores are high where these
    terms are low.
    """
    missed = 1.0 - x[CACHED] / max(x[PROMPT], 1.0)
    return 3.0 * missed + 2.0 * prefill_load(x) + 2.0 * min(1.0, x[CONTEXT] / x[KV])


def tokens_left(x: Sequence[float]) -> float:
    """Prompt and decode tokens left: ``Q + R``. The JSQ of arXiv 2408.13510."""
    return x[QUEUED] + x[REMAINING]


def decode_left(x: Sequence[float]) -> float:
    """Predicted tokens still to decode: R. The decode balancer of arXiv 2408.13510, which knows true lengths."""
    return x[REMAINING]


def bucket_bound(tokens: float) -> float:
    """Upper bound of the output-length bucket of arXiv 2408.13510 that holds ``tokens``: 250, 1000 or 4000."""
    if tokens <= 250.0:  # noqa: PLR2004
        return 250.0
    if tokens <= 1000.0:  # noqa: PLR2004
        return 1000.0
    return max(tokens, 4000.0)


def min_min(x: Sequence[float]) -> float:
    """Earliest completion: ``g1·(Q + p − c) + g1b·(p² − c²) + U(d)·(b + g3·(n + 1) + g2·(C + p))``.

    U is the upper bound of d's bucket.

    The min-min of arXiv 2408.13510, which estimates completion from the upper bound of the predicted bucket; how it
    counts those in flight is not printed: here they prefill first and then share every step.
    """
    p, cached = x[PROMPT], x[CACHED]
    step_s = x[BASE] + x[SEQUENCE_S] * (x[REQUESTS] + 1.0) + x[CONTEXT_S] * (x[CONTEXT] + p)
    prefill_s = x[PREFILL] * (x[QUEUED] + p - cached) + x[PREFILL_SQUARED] * (p * p - cached * cached)
    return prefill_s + bucket_bound(x[PREDICTED]) * step_s


def mixing_penalty(x: Sequence[float]) -> float:
    """The paper's penalty of mixing, as it prints it for a V100: see ``mixing``."""
    return mixing(x, MIXING_PREFILL_S, MIXING_CONTEXT_S)


def mixing_penalty_scaled(x: Sequence[float]) -> float:
    """The penalty of mixing with its two costs scaled to the engine's own prefill cost: see ``mixing``."""
    return mixing(x, x[PREFILL], x[PREFILL] * (MIXING_CONTEXT_S / MIXING_PREFILL_S))


def mixing(x: Sequence[float], prefill_token_s: float, context_token_s: float) -> float:
    """Minus the mixing reward of arXiv 2408.13510, greedily: ``α·[T > ε]·T + (1 − α)·g2·n·(p + d)``.

    ``T = g1·p + g2·Σ(p_j + d_j)``; the sum over those in flight is ``C + R``.
    """
    p = x[PROMPT]
    stall_s = prefill_token_s * p + context_token_s * (x[CONTEXT] + x[REMAINING])
    counted_s = stall_s if stall_s > MIXING_EPSILON_S else 0.0
    slowdown_s = context_token_s * x[REQUESTS] * (p + x[PREDICTED])
    return MIXING_ALPHA * counted_s + (1.0 - MIXING_ALPHA) * slowdown_s


def own_latency(x: Sequence[float]) -> float:
    """Predicted seconds of the request itself, whatever it costs others: ``own`` of the marginal cost."""
    return marginal_cost_row(x, OWN_ALONE)


def queued_prefill_s(x: Sequence[float]) -> float:
    """Seconds of prefill that wait on an instance: ``g1·Q``. Its mean over the candidates is the backlog."""
    return x[PREFILL] * x[QUEUED]


def marginal_cost_row(x: Sequence[float], weights: Sequence[float], backlog_s: float = 0.0) -> float:
    """Seconds that a request takes on an instance, and costs everyone else there.

    With weights w in the order of ``WEIGHT_NAMES``, c of the prompt's tokens in the instance's prefix cache, and a mean
    of B seconds of prefill that wait on the candidates, ``backlog_s``::

        crowd    = g3·n + g2·C
        drain    = (b + crowd) · R / n               seconds until the mean request in flight ends (0 if idle)
        overflow = drain · (max(0, C + p + r·(R + d) − K) / C + max(0, n + 1 − max) / n)
        prefill  = g1·(p − c) + g1b·(p² − c²)
        wait     = g1·Q
        decode   = prefill + d·(crowd + b + g3 + g2·p)
        stall    = n·prefill
        slowdown = n·d·(g3 + g2·(p + d/2))
        coalesce = n·b if the engine runs prefill-only steps and has no queued prefill, else 0
        spread   = d·(crowd + g3 + g2·p)² / b
        reuse    = −(g1·c + g1b·c²)
        cost     = w_wait·wait + w_decode·decode + w_stall·(1 + w_pressure·B)·stall + w_slowdown·slowdown
                   + w_coalesce·coalesce + w_overflow·overflow + w_spread·spread + w_reuse·reuse

    ``wait`` is the request's own time until its prefill begins, ``overflow`` that until it has KV and a place in the
    batch, ``decode`` its own time from there. ``stall`` and ``slowdown`` are what the n requests that share the batch
    lose: the prompt stalls each of them once, and for d steps every step is longer by the new sequence and its growing
    context (who ends is replaced by others). ``spread`` grows with the square of a step's length beyond that of an
    empty batch: it keeps long contexts apart. Where prefill is the bottleneck prompts wait everywhere, B grows, and
    ``stall`` with it: long prompts then queue behind each other, and short ones pass. Where decoding or KV is, B stays
    near 0. ``reuse`` is what a hit saves later prompts: one that is computed once more takes room in the cache from
    another that would have hit.
    """
    n, context, queued, remaining = x[REQUESTS], x[CONTEXT], x[QUEUED], x[REMAINING]
    p, d, cached = x[PROMPT], x[PREDICTED], x[CACHED]
    b, g1, g2, g3 = x[BASE], x[PREFILL], x[CONTEXT_S], x[SEQUENCE_S]
    n_or_1 = max(n, 1.0)
    crowd_s = g3 * n + g2 * context
    kv_deficit = context + p + DECODE_RESERVE_FRACTION * (remaining + d) - x[KV]
    slot_deficit = n + 1.0 - x[SLOTS]
    overflow_s = 0.0
    if kv_deficit > 0.0 or slot_deficit > 0.0:
        shares = max(0.0, kv_deficit) / max(context, 1.0) + max(0.0, slot_deficit) / n_or_1
        overflow_s = (b + crowd_s) * (remaining / n_or_1) * shares
    prefill_s = g1 * (p - cached) + x[PREFILL_SQUARED] * (p * p - cached * cached)
    crowded_s = crowd_s + g3 + g2 * p
    decode_s = prefill_s + d * (crowded_s + b)
    slowdown_s = n * d * (g3 + g2 * (p + 0.5 * d))
    coalesce_s = n * b * x[PREFILL_FIRST] if queued <= 0.0 else 0.0
    spread_s = d * crowded_s * crowded_s / max(b, LEAST_BASE_S)
    return (
        weights[0] * g1 * queued
        + weights[1] * decode_s
        + weights[2] * (1.0 + weights[7] * backlog_s) * n * prefill_s
        + weights[3] * slowdown_s
        + weights[4] * coalesce_s
        + weights[5] * overflow_s
        + weights[6] * spread_s
        - weights[8] * (g1 * cached + x[PREFILL_SQUARED] * cached * cached)
    )

"""The range of lengths that a class of requests has: what a model says beyond it is not believed.

An over-confident prediction that is far off does more harm than none where KV is reserved by it: see
``docs/guards.md``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmrouter.lengths.distribution import LEVELS, MAX_TOKENS, MIN_TOKENS

if TYPE_CHECKING:
    from llmrouter.lengths.distribution import LengthDistribution

LEAST_LEVEL = 0.01
"""The range is from this level to that as far from the other end: p1 to p99."""

ENOUGH_ANSWERS = 50
"""With fewer answers of a class nobody says what its range is."""

_BEYOND = 2.0 * (LEVELS[0] - LEAST_LEVEL) / LEVELS[0]
"""How often the line between the two outer quantiles is laid on: it goes on for twice its length to level 0."""


def class_range_tokens(law: LengthDistribution) -> tuple[float, float]:
    """Tokens at ``LEAST_LEVEL`` and at ``1 - LEAST_LEVEL`` of a class's law, by its outer quantiles."""
    first, second, *_, before, last = law.latent
    return max(MIN_TOKENS, first * (first / second) ** _BEYOND), min(MAX_TOKENS, last * (last / before) ** _BEYOND)


def within_class(law: LengthDistribution, of_class: LengthDistribution) -> LengthDistribution:
    """The same law, its expected tokens within the range of its class; itself where they are."""
    low, high = class_range_tokens(of_class)
    expected = law.expected_tokens
    clipped = min(max(expected, low), high, law.max_output_tokens)
    return law if clipped == expected else replace(law, own_mean=clipped, own_rank=law.rank)

"""Prefix hits as numbers: how many prompt tokens a hit is worth, and how far an instance's hits are to be believed.

Formulas over plain numbers: the router calls them as they stand, the simulator compiles them.
"""

from __future__ import annotations

WINDOW_REPORTS = 64.0
"""Reports after which an older one counts for a third."""

PRIOR_TOKENS = 2_000.0
"""Expected tokens that all came true, before the first report."""

LEAST_SHARE = 0.05
"""Below this share hits count as none: the engine seems to keep no prefixes."""

STALE_SHARE = 0.5
"""A report of less than this share of what was expected says that what was used before is gone as well."""


def hit_tokens(blocks: float, block_tokens: float, prompt_tokens: float) -> int:
    """Prompt tokens in so many cached blocks; the last token of a prompt is always computed, so its block is as well.

    Args:
        blocks: leading blocks that are cached.
        block_tokens: of each, above 0; no whole number where blocks are of text.
        prompt_tokens: of the prompt, at least 1.
    """
    return int(min(blocks, (prompt_tokens - 1) // block_tokens) * block_tokens)


def faded(total: float, tokens: float) -> float:
    """A sum over reports in which older ones fade, with one more."""
    return total * (1.0 - 1.0 / WINDOW_REPORTS) + tokens


def believed_share(expected_tokens: float, reported_tokens: float) -> float:
    """Share of the expected hits that came true on an instance, from its faded sums; 0 where it is next to nothing."""
    share = (reported_tokens + PRIOR_TOKENS) / (expected_tokens + PRIOR_TOKENS)
    return share if share >= LEAST_SHARE else 0.0


def is_stale(expected_tokens: float, reported_tokens: float) -> bool:
    """Whether a report is so far below what was expected that older entries of the instance must be gone."""
    return reported_tokens < STALE_SHARE * expected_tokens

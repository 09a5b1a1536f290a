"""The state that the agents of arXiv 2408.13510 see, scaled; numbers alone, so that a simulator can compile them.

Its prose names the parts, not the layout. Per instance: requests in the prompt phase (no first token yet), in the
decode phase by predicted bucket (3), capacity, earliest completion. Of the queue: its length up to 512, prompt tokens
of the head, predicted bucket of the head. ``llmrouter.training.agents.environment`` names what is inferred.
"""

from __future__ import annotations

import math

BUCKET_ENDS = (250.0, 1_000.0)
"""Predicted output tokens at which the second and the third bucket begin."""

PROMPTS = 10.0
DECODES = 50.0
COMPLETION_S = 10.0
HELD = 100.0
MOST_HELD = 512
PROMPT_TOKENS = 500.0
"""What the parts are divided by."""


def bucket_of(tokens: float) -> int:
    """The bucket of a predicted output length: 0, 1 or 2."""
    if tokens < BUCKET_ENDS[0]:
        return 0
    return 1 if tokens < BUCKET_ENDS[1] else 2


def tokens_left(predicted: float, generated: float) -> float:
    """Predicted tokens still to come of a request in flight, at least 1."""
    return max(1.0, predicted - generated)


def capacity(context_tokens: float, kv_tokens: float) -> float:
    """The share of an instance's KV that nothing in flight has, queued prompts included, to 2 decimals."""
    return math.floor(100.0 * (1.0 - context_tokens / kv_tokens) + 0.5) / 100.0


def completion(least_left: float, base_s: float, sequence_s: float, context_s: float) -> float:
    """When the first of those in flight ends: its tokens left times a step of them all; 0 where nothing is."""
    if least_left <= 0.0:
        return 0.0
    return least_left * (base_s + sequence_s + context_s) / COMPLETION_S


def queue_length(held: float) -> float:
    """Requests that wait at the router."""
    return min(held, MOST_HELD) / HELD

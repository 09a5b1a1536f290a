"""The feature set that models are made for: names and versions alone, so that an operator can check a manifest.

``llmrouter.routing.features`` and ``llmrouter.lengths.application`` compute the values.
"""

from __future__ import annotations

from llmrouter.domain import ObjectiveWeights

FEATURE_VERSION = 2
"""Part of every policy manifest; a router refuses a model made for another version."""

FEATURE_NAMES = (
    "requests",  # n, in flight
    "context_tokens",  # C, prompt and produced tokens of everything in flight
    "queued_prefill_tokens",  # Q, prompt tokens whose first token has not come yet
    "remaining_decode_tokens",  # R, predicted
    "prompt_tokens",  # p, of the request
    "predicted_output_tokens",  # d, of the request
    "kv_tokens",  # K
    "max_sequences",
    "base_s",  # b, of a decode step
    "prefill_s_per_token",  # g1
    "prefill_s_per_token_squared",  # g1b
    "context_s_per_token",  # g2
    "sequence_s",  # g3
    "prefill_first",  # 1 where the engine runs prefill-only steps, else 0
    "cached_prompt_tokens",  # c, of the request's prompt tokens, that the instance's prefix cache probably has
)

WEIGHT_NAMES = tuple(ObjectiveWeights().as_mapping())

LENGTH_FEATURE_VERSION = 1
"""Part of every output-length manifest."""

LOG_PROMPT_TOKENS = "log_prompt_tokens"
"""First feature of an output-length model: ln(1 + prompt tokens); a column per application of its manifest follows."""


def length_feature_names(applications: tuple[str, ...]) -> tuple[str, ...]:
    """Feature names of an output-length model that knows ``applications``."""
    return (LOG_PROMPT_TOKENS, *(f"application={name}" for name in applications))

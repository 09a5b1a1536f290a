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

PAPER_STATE_VERSION = 101
"""Of agents that see the state of arXiv 2408.13510; ``llmrouter.routing.paper_state`` computes it."""

PAPER_PER_INSTANCE = ("prompt_phase", "decode_short", "decode_medium", "decode_long", "capacity", "earliest_completion")
PAPER_QUEUE = ("queue/length", "queue/head_prompt_tokens", "queue/head_bucket")


def paper_state_names(instances: int) -> tuple[str, ...]:
    """The paper's state by name, in its order: 6·I + 3 numbers, 27 where there are four instances."""
    each = tuple(f"instance={e}/{name}" for e in range(instances) for name in PAPER_PER_INSTANCE)
    return (*each, *PAPER_QUEUE)


LEARNED_FEATURE_VERSION = 201
"""Of the learned networks that serve any number of instances; ``llmrouter.routing.sight`` has their signature."""

LEARNED_INSTANCE_NAMES = (*FEATURE_NAMES, "has_room")
"""Of each row of ``instances``; ``has_room`` is 1 where the KV gate would let the request in, else 0."""

LEARNED_LINE_NAMES = (
    "line/held",  # requests that wait in the line, the head included
    "line/head_age_s",  # since when the request is the head; 0 where it has just come
    "line/prefer_ttft",  # what matters: four shares that sum to 1
    "line/prefer_tpot",
    "line/prefer_e2e",
    "line/prefer_fairness",
)

LENGTH_FEATURE_VERSION = 1
"""Part of every output-length manifest."""

LOG_PROMPT_TOKENS = "log_prompt_tokens"
"""First feature of an output-length model: ln(1 + prompt tokens); a column per application of its manifest follows."""


def length_feature_names(applications: tuple[str, ...]) -> tuple[str, ...]:
    """Feature names of an output-length model that knows ``applications``."""
    return (LOG_PROMPT_TOKENS, *(f"application={name}" for name in applications))

"""What a policy model sees of each instance: written once, used by training, export, serving and simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmrouter.domain import EngineMode, ObjectiveWeights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.domain import InstanceView, Request

FEATURE_VERSION = 1
"""Part of every manifest; a router refuses a model made for another version."""

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
)

WEIGHT_NAMES = tuple(ObjectiveWeights().as_mapping())


def features_of(request: Request, views: Sequence[InstanceView]) -> NDArray[np.float32]:
    """Features of every instance for one request: shape (I, F), in the order of ``FEATURE_NAMES``, SI units."""
    rows = []
    for view in views:
        load, profile = view.total, view.instance.profile
        rows.append(
            (
                load.requests,
                load.context_tokens,
                load.queued_prefill_tokens,
                load.remaining_decode_tokens,
                request.prompt_tokens,
                request.predicted_output_tokens,
                profile.kv_tokens,
                profile.max_sequences,
                profile.base_decode_s,
                profile.prefill_s_per_token,
                profile.prefill_s_per_token_squared,
                profile.context_s_per_token,
                profile.sequence_s,
                1.0 if profile.mode is EngineMode.PREFILL_FIRST else 0.0,
            )
        )
    return np.array(rows, dtype=np.float32).reshape(len(rows), len(FEATURE_NAMES))


def weights_of(weights: ObjectiveWeights) -> NDArray[np.float32]:
    """Objective weights as models take them: shape (W,), in the order of ``WEIGHT_NAMES``."""
    return np.array(tuple(weights.as_mapping().values()), dtype=np.float32)

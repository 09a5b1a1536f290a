"""What a policy model sees of each instance: written once, used by training, export, serving and simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmrouter.domain import EngineMode
from llmrouter.errors import ModelRejectedError
from llmrouter.feature_set import FEATURE_NAMES, FEATURE_VERSION, WEIGHT_NAMES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.domain import InstanceView, ObjectiveWeights, Request

__all__ = ["FEATURE_NAMES", "FEATURE_VERSION", "WEIGHT_NAMES", "check_score_shapes", "features_of", "weights_of"]


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


def check_score_shapes(features_IF: NDArray[np.float32], weights_W: NDArray[np.float32]) -> None:
    """Raises ModelRejectedError (``ShapeMismatch``) unless the arrays are what a scorer takes: (I, F) and (W,)."""
    if features_IF.ndim != 2 or features_IF.shape[1] != len(FEATURE_NAMES):  # noqa: PLR2004 - rows and columns
        raise ModelRejectedError("ShapeMismatch", f"features are {features_IF.shape}, not (I, {len(FEATURE_NAMES)})")
    if weights_W.shape != (len(WEIGHT_NAMES),):
        raise ModelRejectedError("ShapeMismatch", f"weights are {weights_W.shape}, not ({len(WEIGHT_NAMES)},)")

"""What a policy model sees of each instance: written once, used by training, export, serving and simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmrouter.domain import EngineMode
from llmrouter.errors import ModelRejectedError
from llmrouter.feature_set import FEATURE_NAMES, FEATURE_VERSION, WEIGHT_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from llmrouter.domain import EngineProfile, InstanceView, Load, ObjectiveWeights, Request

__all__ = [
    "FEATURE_NAMES",
    "FEATURE_VERSION",
    "WEIGHT_NAMES",
    "FeatureTail",
    "check_score_shapes",
    "feature_row",
    "feature_rows",
    "features_of",
    "profile_features",
    "weights_of",
]


FeatureTail = tuple[float, float, float, float, float, float, float, float]
"""The features that an engine profile alone decides: ``kv_tokens`` to ``prefill_first``."""


def profile_features(profile: EngineProfile) -> FeatureTail:
    """The same features in every row of an instance with this profile."""
    return (
        profile.kv_tokens,
        profile.max_sequences,
        profile.base_decode_s,
        profile.prefill_s_per_token,
        profile.prefill_s_per_token_squared,
        profile.context_s_per_token,
        profile.sequence_s,
        1.0 if profile.mode is EngineMode.PREFILL_FIRST else 0.0,
    )


def feature_row(request: Request, load: Load, tail: FeatureTail, cached_tokens: int = 0) -> tuple[float, ...]:
    """Features of one instance for one request, in the order of ``FEATURE_NAMES``, SI units."""
    return (
        load.requests,
        load.context_tokens,
        load.queued_prefill_tokens,
        load.remaining_decode_tokens,
        request.prompt_tokens,
        request.predicted_output_tokens,
        *tail,
        cached_tokens,
    )


def feature_rows(
    request: Request, views: Sequence[InstanceView], tail_of: Callable[[InstanceView], FeatureTail]
) -> list[tuple[float, ...]]:
    """``feature_row`` of every instance for one request."""
    cached = request.cached_tokens
    if not cached:
        return [feature_row(request, view.total, tail_of(view)) for view in views]
    return [feature_row(request, view.total, tail_of(view), cached.get(view.instance.instance_id, 0)) for view in views]


def tail_of_view(view: InstanceView) -> FeatureTail:
    """``profile_features`` of an instance."""
    return profile_features(view.instance.profile)


def features_of(request: Request, views: Sequence[InstanceView]) -> NDArray[np.float32]:
    """Features of every instance for one request: shape (I, F), in the order of ``FEATURE_NAMES``, SI units."""
    rows = feature_rows(request, views, tail_of_view)
    return np.array(rows, dtype=np.float32).reshape(len(rows), len(FEATURE_NAMES))


def weights_of(weights: ObjectiveWeights) -> NDArray[np.float32]:
    """Objective weights as models take them: shape (W,), in the order of ``WEIGHT_NAMES``."""
    return np.array(weights.in_order, dtype=np.float32)


def check_score_shapes(features_IF: NDArray[np.float32], weights_W: NDArray[np.float32]) -> None:
    """Raises ModelRejectedError (``ShapeMismatch``) unless the arrays are what a scorer takes: (I, F) and (W,)."""
    if features_IF.ndim != 2 or features_IF.shape[1] != len(FEATURE_NAMES):  # noqa: PLR2004 - rows and columns
        raise ModelRejectedError("ShapeMismatch", f"features are {features_IF.shape}, not (I, {len(FEATURE_NAMES)})")
    if weights_W.shape != (len(WEIGHT_NAMES),):
        raise ModelRejectedError("ShapeMismatch", f"weights are {weights_W.shape}, not ({len(WEIGHT_NAMES)},)")

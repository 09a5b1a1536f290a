"""A length model from its manifest and a way to run its graph: what is fed, what comes back, in one place."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.application import application_columns, length_features
from llmrouter.lengths.predictor import Batch
from llmrouter.lengths.simple import PointModel, QuantileModel
from llmrouter.lengths.text import TEXT_FEATURE_VERSION, TextFeatures, text_features

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from llmrouter.lengths.predictor import LengthRequest
    from llmrouter.manifest import Manifest

    Run = Callable[[dict[str, NDArray[np.float32]]], Sequence[NDArray[np.float32]]]
    """Inputs by name in, outputs in the manifest's order out."""

POINT_SPREAD = 0.7
"""Standard deviation of ln(length ÷ forecast) that is given to a point forecast; recalibration mends it."""


def features_of(requests: Sequence[LengthRequest]) -> TextFeatures:
    """Text features of requests: those that are there already, else made of their prompts."""
    if isinstance(requests, Batch) and requests.features is not None:
        return requests.features
    made = [one.features for one in requests]
    known = [one for one in made if one is not None]
    if not known or len(known) < len(made):
        return text_features(requests)
    if len(known) == 1:
        return known[0]
    return TextFeatures(np.concatenate([one.ids for one in known]), np.concatenate([one.dense for one in known]))


def with_features(requests: Sequence[LengthRequest]) -> list[LengthRequest]:
    """The requests, each with its own row of text features: a part of the batch's would keep the whole batch."""
    own = rows_of(text_features(requests))
    return [replace(one, features=features) for one, features in zip(requests, own, strict=True)]


def rows_of(made: TextFeatures) -> list[TextFeatures]:
    """The features of each request of a batch by themselves."""
    ids_NK, dense_ND = made.ids, made.dense
    rows = range(len(ids_NK))
    return [TextFeatures(ids_NK[row : row + 1].copy(), dense_ND[row : row + 1].copy()) for row in rows]


def reads_prompts(manifest: Manifest) -> bool:
    """Whether the model is made for requests that carry their prompt."""
    return manifest.feature_version == TEXT_FEATURE_VERSION


def length_model(
    manifest: Manifest, run: Run, *, name: str | None = None, renamed: Mapping[str, str] | None = None
) -> PointModel | QuantileModel:
    """The model as a predictor.

    A manifest of feature version 1 is of a point forecast from prompt length and application (input ``features``,
    output ``output_tokens``). One of ``TEXT_FEATURE_VERSION`` is a text model's: inputs ``ids`` (N, IDS) and ``dense``
    (N, DENSE), outputs ``quantiles`` (N, levels) in tokens at ``LEVELS`` and ``rank`` (N,).

    Args:
        manifest: checked by ``check_manifest``.
        run: the graph.
        name: of the predictor; the manifest's where it is ``None``.
        renamed: what the model calls an application that requests call otherwise.
    """
    name = name or manifest.name
    if reads_prompts(manifest):
        order = {tensor.name: place for place, tensor in enumerate(manifest.outputs)}

        def quantiles(requests: Sequence[LengthRequest]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            features = features_of(requests)
            outputs = run({"ids": features.ids.astype(np.float32), "dense": features.dense})  # exact: ids are small
            return outputs[order["quantiles"]].astype(np.float64), outputs[order["rank"]].astype(np.float64)

        return QuantileModel(quantiles, name=name, digest=manifest.sha256)

    columns = application_columns(manifest.applications)
    bounds = manifest.bounds.get("output_tokens")

    def tokens(requests: Sequence[LengthRequest]) -> NDArray[np.float64]:
        labels = [(renamed or {}).get(one.application, one.application) for one in requests]
        features_NF = length_features([one.prompt_tokens or 0 for one in requests], labels, columns)
        tokens_N = run({"features": features_NF})[0].astype(np.float64)
        return tokens_N if bounds is None else np.clip(tokens_N, bounds.min, bounds.max)

    return PointModel(tokens, name=name, digest=manifest.sha256, spread=POINT_SPREAD)

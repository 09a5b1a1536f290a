"""The output-length model with its manifest and card, scored on the rows that were held out."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.feature_set import LENGTH_FEATURE_VERSION, LOG_PROMPT_TOKENS, length_feature_names
from llmrouter.manifest import Bounds, Manifest, ModelKind, Tensor, TrainingData
from llmrouter.training.cards import length_card
from llmrouter.training.length_forest import ML_OPSET, OPSET, SEED, LengthForest, export, fit
from llmrouter.training.length_scores import LengthScore, score_lengths
from llmrouter.training.length_table import LICENCES
from llmrouter.training.onnx_files import PRODUCER, Artefact, sha256_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from llmrouter.training.length_table import LengthRow

ALL = "all"
UNLABELLED = "unlabelled"

Scores = dict[str, dict[str, LengthScore]]
"""Predictor (``forest``, ``application-mean``, ``mean``), then application (or ALL, UNLABELLED), to its score."""


def export_output_length(rows: Sequence[LengthRow]) -> Artefact:
    """Fits on the rows that are not held out, scores on those that are."""
    training = [row for row in rows if not row.held_out]
    held_out = [row for row in rows if row.held_out]
    fitted = fit(training)
    model = export(fitted)
    scores = score(fitted, training=training, held_out=held_out)
    manifest = _manifest(fitted, training, scores=scores, model=model)
    return Artefact(model, manifest, length_card(manifest, scores, Counter(row.application for row in held_out)))


def score(fitted: LengthForest, *, training: Sequence[LengthRow], held_out: Sequence[LengthRow]) -> Scores:
    """The forest against the mean of each application and the mean of all."""
    means = application_means(training)
    overall = float(np.mean([row.output_tokens for row in training]))
    prompt_tokens = [row.prompt_tokens for row in held_out]
    labels = [row.application for row in held_out]
    actual_N = np.array([row.output_tokens for row in held_out], dtype=np.float64)
    predictions = {
        "forest": fitted.predict(prompt_tokens, labels),
        "application-mean": np.array([means[label] for label in labels]),
        "mean": np.full(len(held_out), overall),
    }
    scores = {name: _by_application(predicted_N, actual_N, labels) for name, predicted_N in predictions.items()}
    unlabelled_N = fitted.predict(prompt_tokens, [""] * len(held_out))
    scores["forest"][UNLABELLED] = score_lengths(unlabelled_N, actual_N)
    return scores


def application_means(rows: Sequence[LengthRow]) -> Mapping[str, float]:
    """Mean output tokens of each application."""
    totals: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for row in rows:
        totals[row.application] += row.output_tokens
        counts[row.application] += 1
    return {name: totals[name] / counts[name] for name in sorted(counts)}


def _by_application(
    predicted_N: NDArray[np.float64], actual_N: NDArray[np.float64], labels: Sequence[str]
) -> dict[str, LengthScore]:
    labels_N = np.array(labels)
    scores = {ALL: score_lengths(predicted_N, actual_N)}
    for name in sorted(set(labels)):
        scores[name] = score_lengths(predicted_N[labels_N == name], actual_N[labels_N == name])
    return scores


def _manifest(fitted: LengthForest, training: Sequence[LengthRow], *, scores: Scores, model: bytes) -> Manifest:
    names = length_feature_names(fitted.applications)
    longest = max(row.prompt_tokens for row in training)
    zero_or_one = Bounds(min=0.0, max=1.0)
    rows_by_source = Counter(row.source for row in training)
    return Manifest(
        name="random-forest",
        kind=ModelKind.OUTPUT_LENGTH,
        model_version="1.0.0",
        feature_version=LENGTH_FEATURE_VERSION,
        feature_names=names,
        applications=fitted.applications,
        inputs=(Tensor(name="features", dtype="float32", shape=(None, len(names))),),
        outputs=(Tensor(name="output_tokens", dtype="float32", shape=(None,)),),
        bounds={
            **dict.fromkeys(names, zero_or_one),
            LOG_PROMPT_TOKENS: Bounds(min=0.0, max=round(float(np.log1p(longest)), 4)),
            "output_tokens": Bounds(min=1.0, max=float(np.ceil(max(*fitted.caps, fitted.unknown_cap)))),
        },
        training_data=tuple(
            TrainingData(source=source, licence=LICENCES[source], rows=rows_by_source[source])
            for source in sorted(rows_by_source)
        ),
        seed=SEED,
        scores=_flat(scores),
        sha256=sha256_of(model),
        opset={"ai.onnx": OPSET, "ai.onnx.ml": ML_OPSET},
        producer=PRODUCER,
    )


def _flat(scores: Scores) -> dict[str, float]:
    flat = {}
    for predictor, by_application in scores.items():
        for application, one in by_application.items():
            prefix = f"{predictor}/{application}"
            flat[f"{prefix}/mae_tokens"] = round(one.mae_tokens, 2)
            flat[f"{prefix}/bucket_accuracy"] = round(one.bucket_accuracy, 4)
            if one.tau is not None:
                flat[f"{prefix}/kendall_tau"] = round(one.tau, 4)
    return flat

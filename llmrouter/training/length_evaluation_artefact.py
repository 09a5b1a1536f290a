"""Loads a length model from its folder, as evaluation runs it: one thread, in chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from llmrouter.artefacts import builtin_model
from llmrouter.errors import InvalidInputError, ModelRejectedError
from llmrouter.lengths.simple import PointModel, QuantileModel
from llmrouter.lengths.text import TEXT_FEATURE_VERSION, text_features
from llmrouter.manifest import ModelKind, Rejection, check_manifest, parse_manifest
from llmrouter.routing.lengths import application_columns, length_features
from llmrouter.training.length_table import RENAMED
from llmrouter.training.onnx_files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from llmrouter.lengths.predictor import LengthRequest
    from llmrouter.manifest import Manifest

MODEL_FILE, MANIFEST_FILE = "model.onnx", "manifest.json"
FOREST, TEXT = "random-forest", "text"
FOREST_SPREAD = 0.7
"""Standard deviation of ln(length ÷ forecast) that is given to the forest's point forecasts; recalibration mends it."""


def load_artefact(folder: Path) -> tuple[PointModel | QuantileModel, Manifest]:
    """The model in a folder with ``model.onnx`` and ``manifest.json``.

    A manifest of feature version 1 is a forest over prompt length and application (input ``features``, output
    ``output_tokens``). One of ``TEXT_FEATURE_VERSION`` is a text model: inputs ``ids`` (N, IDS) and ``dense``
    (N, DENSE), outputs ``quantiles`` (N, levels) in tokens at ``LEVELS`` and ``rank`` (N,).

    Raises:
        InvalidInputError: a file cannot be read.
        ModelRejectedError: the model is not what its manifest says, or not for these features.
    """
    try:
        model, manifest = (folder / MODEL_FILE).read_bytes(), (folder / MANIFEST_FILE).read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{folder}: not the folder of a model: {error.strerror}: {error.filename}") from error
    return load_model(model, manifest)


def shipped_forest() -> PointModel:
    """The forest that comes with the product."""
    loaded, _ = load_model(*builtin_model(ModelKind.OUTPUT_LENGTH, FOREST))
    assert isinstance(loaded, PointModel)  # noqa: S101 - the shipped forest is one
    return loaded


def load_model(model: bytes, manifest_bytes: bytes) -> tuple[PointModel | QuantileModel, Manifest]:
    """As ``load_artefact``, of bytes."""
    manifest = parse_manifest(manifest_bytes)
    digest = sha256_of(model)
    check_manifest(manifest, expected_kind=ModelKind.OUTPUT_LENGTH, model_sha256=digest, expected_sha256=None)
    session = _session(model)
    if manifest.feature_version == TEXT_FEATURE_VERSION:
        return QuantileModel(_TextScorer(session), name=manifest.name, digest=digest), manifest
    name = "forest" if manifest.name == FOREST else manifest.name
    return PointModel(_ForestScorer(session, manifest), name=name, digest=digest, spread=FOREST_SPREAD), manifest


def shipped_text() -> tuple[QuantileModel, Manifest]:
    """The text model that comes with the product."""
    loaded, manifest = load_model(*builtin_model(ModelKind.OUTPUT_LENGTH, TEXT))
    assert isinstance(loaded, QuantileModel)  # noqa: S101 - the shipped text model is one
    return loaded, manifest


class _ForestScorer:
    def __init__(self, session: onnxruntime.InferenceSession, manifest: Manifest) -> None:
        self._session = session
        self._columns = application_columns(manifest.applications)

    def __call__(self, requests: Sequence[LengthRequest]) -> NDArray[np.float64]:
        labels = [RENAMED.get(one.application, one.application) for one in requests]
        features_NF = length_features([one.prompt_tokens or 0 for one in requests], labels, self._columns)
        tokens_N: NDArray[np.float64] = self._session.run(None, {"features": features_NF})[0].astype(np.float64)
        return tokens_N


class _TextScorer:
    """Casts the ids to what the graph takes: float32 holds them exactly."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        kinds = {one.name: one.type for one in session.get_inputs()}
        self._ids_kind = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}.get(kinds["ids"], np.float32)

    def __call__(self, requests: Sequence[LengthRequest]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        features = text_features(requests)
        inputs = {"ids": features.ids.astype(self._ids_kind), "dense": features.dense}
        quantiles_NQ, rank_N = self._session.run(["quantiles", "rank"], inputs)
        return quantiles_NQ.astype(np.float64), rank_N.astype(np.float64)


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelRejectedError(Rejection.MODEL_CORRUPT, f"the runtime cannot read the model: {error}") from error

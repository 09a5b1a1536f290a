"""Loads a length model from its folder, as evaluation runs it: one thread, in chunks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import onnxruntime

from llmrouter.artefacts import builtin_model
from llmrouter.errors import InvalidInputError, ModelRejectedError
from llmrouter.lengths.artefact import length_model
from llmrouter.lengths.simple import PointModel, QuantileModel
from llmrouter.manifest import ModelKind, Rejection, check_manifest, parse_manifest
from llmrouter.training.length_table import RENAMED
from llmrouter.training.onnx_files import sha256_of

if TYPE_CHECKING:
    from pathlib import Path

    from llmrouter.manifest import Manifest

MODEL_FILE, MANIFEST_FILE = "model.onnx", "manifest.json"
FOREST, TEXT = "random-forest", "text"


def load_artefact(folder: Path) -> tuple[PointModel | QuantileModel, Manifest]:
    """The model in a folder with ``model.onnx`` and ``manifest.json``.

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
    names = [tensor.name for tensor in manifest.outputs]
    name = "forest" if manifest.name == FOREST else manifest.name
    return length_model(manifest, partial(session.run, names), name=name, renamed=RENAMED), manifest


def shipped_text() -> tuple[QuantileModel, Manifest]:
    """The text model that comes with the product."""
    loaded, manifest = load_model(*builtin_model(ModelKind.OUTPUT_LENGTH, TEXT))
    assert isinstance(loaded, QuantileModel)  # noqa: S101 - the shipped text model is one
    return loaded, manifest


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelRejectedError(Rejection.MODEL_CORRUPT, f"the runtime cannot read the model: {error}") from error

"""What both exports share: bytes that never vary, a plain runtime session, and the folder of a model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnxruntime

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto

    from llmrouter.manifest import Manifest

PRODUCER = "llmrouter.training"


class ExportDisagreesError(Exception):
    """The exported graph and what it was made from answer differently; nothing is written."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """A model as it is shipped."""

    model: bytes
    manifest: Manifest
    card: str

    def write(self, folder: Path) -> None:
        """Writes the three files, making the folder where it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(self.model)
        (folder / "manifest.json").write_bytes(self.manifest.to_json())
        (folder / "MODEL_CARD.md").write_text(self.card, encoding="utf-8")


def stable_bytes(model: ModelProto) -> bytes:
    """Serialises a graph; equal graphs give equal bytes."""
    serialised: bytes = model.SerializeToString(deterministic=True)
    return serialised


def sha256_of(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def run_on_cpu(model: bytes, inputs: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """The first output of a model."""
    return runner_on_cpu(model)(inputs)


def runner_on_cpu(model: bytes) -> Callable[[dict[str, NDArray[np.float32]]], NDArray[np.float32]]:
    """Runs a model on one core: from its inputs to its first output."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = session.run(None, inputs)[0]
        return output

    return run

"""Output-length models: checked bytes in, laws of lengths out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.lengths.artefact import length_model, reads_prompts
from llmrouter.manifest import ModelKind
from router_grpc.adapters.onnx_model import load_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.lengths.distribution import Lengths
    from llmrouter.lengths.predictor import LengthRequest
    from router_grpc.adapters.onnx_model import OnnxModel


class OnnxLengths:
    """A loaded model: see the ``LengthModel`` port. ``provider`` is what it runs on."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = length_model(model.manifest, model.run)
        self.name = self._model.name
        self.digest = self._model.digest
        self.provider = model.provider
        self.reads_prompts = reads_prompts(model.manifest)

    def laws(self, requests: Sequence[LengthRequest]) -> Lengths:
        """One law for each request; raises NotFiniteLengthsError where the model answers NaN."""
        return self._model.predict(requests)


def load_lengths(model: bytes, manifest: bytes, *, expected_sha256: str | None) -> OnnxLengths:
    """Checks and loads an output-length model; raises ModelRejectedError as ``load_scorer`` does."""
    return OnnxLengths(load_model(model, manifest, kind=ModelKind.OUTPUT_LENGTH, expected_sha256=expected_sha256))

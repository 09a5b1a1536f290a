"""How long answers will be: a constant, a model, or a model that a constant stands in for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmrouter.domain import Prediction
from llmrouter.manifest import ModelKind
from llmrouter.routing.lateness import Lateness
from llmrouter.lengths.application import application_columns, length_features
from router_grpc.adapters.onnx_model import load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from router_grpc.adapters.onnx_model import OnnxModel
    from router_grpc.ports import Predictor


class NonFinitePredictionError(ValueError):
    """A model answered NaN or infinity."""


class ConstantPredictor:
    """Says the same number for every request."""

    name = "constant"
    digest = ""
    resting = False
    provider = "none"

    def __init__(self, tokens: float) -> None:
        if not 1.0 <= tokens <= 1e9:  # noqa: PLR2004 - the bound of a token count
            raise ValueError(f"tokens must be within 1 and 1e9, not {tokens}")
        self._prediction = Prediction(expected_tokens=float(tokens), source=self.name)

    def predict(self, prompt_tokens: Sequence[int], applications: Sequence[str]) -> list[Prediction]:
        """One prediction per request."""
        return [self._prediction for _ in zip(prompt_tokens, applications, strict=True)]


class OnnxPredictor:
    """An output-length model. An application that the manifest does not list is predicted from the prompt alone."""

    resting = False

    def __init__(self, model: OnnxModel) -> None:
        self.manifest = model.manifest
        self.name = model.manifest.name
        self.digest = model.digest
        self.provider = model.provider
        self._model = model
        self._columns = application_columns(model.manifest.applications)
        bounds = model.manifest.bounds.get("output_tokens")
        self._min_tokens = max(1.0, bounds.min) if bounds else 1.0
        self._max_tokens = max(1.0, bounds.max) if bounds else np.inf

    def predict(self, prompt_tokens: Sequence[int], applications: Sequence[str]) -> list[Prediction]:
        """One prediction per request, at least 1 token and within the manifest's bounds of ``output_tokens``.

        Raises:
            NonFinitePredictionError: the model answered NaN or infinity.
            ValueError: the two sequences differ in length.
        """
        features_NF = length_features(prompt_tokens, applications, self._columns)
        if len(features_NF) == 0:
            return []
        tokens_N = self._model.run({"features": features_NF})
        if not np.isfinite(tokens_N).all():
            raise NonFinitePredictionError(f"{self.name}: a prediction is not finite")
        clipped_N = np.clip(tokens_N, self._min_tokens, self._max_tokens)
        return [Prediction(tokens, self.name, self.digest) for tokens in clipped_N.tolist()]


class FallbackPredictor:
    """Asks ``primary``; where it raises, or rests because it was too slow, ``fallback`` answers.

    ``on_failure`` is called with ``Error``, ``NotFinite`` or ``Late`` and a message once per batch that the primary did
    not answer in time. A batch cannot be interrupted: a late answer is still used, but several in a row rest the
    primary for a while: see ``Lateness``. ``name`` and ``digest`` are the primary's; each prediction names its source.
    """

    def __init__(
        self,
        primary: Predictor,
        fallback: Predictor,
        *,
        budget_s: float,
        clock: Callable[[], float],
        on_failure: Callable[[str, str], None],
    ) -> None:
        self.name = primary.name
        self.digest = primary.digest
        self._primary = primary
        self._fallback = fallback
        self._clock = clock
        self._on_failure = on_failure
        self._lateness = Lateness(budget_s=budget_s, clock=clock)

    @property
    def resting(self) -> bool:
        """Whether the primary rests now because it was too slow."""
        return self._lateness.resting

    def predict(self, prompt_tokens: Sequence[int], applications: Sequence[str]) -> list[Prediction]:
        """One prediction per request; never raises for what the primary does."""
        if self.resting:
            self._on_failure("Late", "resting after late answers")
            return self._fallback.predict(prompt_tokens, applications)
        started_s = self._clock()
        try:
            predictions = self._primary.predict(prompt_tokens, applications)
        except NonFinitePredictionError as error:
            self._on_failure("NotFinite", str(error))
            return self._fallback.predict(prompt_tokens, applications)
        except Exception as error:  # noqa: BLE001 - whatever a model does, the request is routed; counted by reason
            self._on_failure("Error", f"{type(error).__name__}: {error}")
            return self._fallback.predict(prompt_tokens, applications)
        elapsed_s = self._clock() - started_s
        if self._lateness.note(elapsed_s):
            self._on_failure("Late", f"took {elapsed_s:.4f} s of {self._lateness.budget_s:.4f} s")
        return predictions


def load_predictor(model: bytes, manifest: bytes, *, expected_sha256: str | None) -> OnnxPredictor:
    """Checks and loads an output-length model; raises ModelRejectedError as ``load_scorer`` does."""
    return OnnxPredictor(load_model(model, manifest, kind=ModelKind.OUTPUT_LENGTH, expected_sha256=expected_sha256))

"""Loads policy and output-length models: checked bytes in, a model ready to run out, or a reason why not."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from llmrouter.domain import ObjectiveWeights
from llmrouter.errors import ModelRejectedError
from llmrouter.feature_set import LEARNED_INSTANCE_NAMES
from llmrouter.lengths.artefact import reads_prompts
from llmrouter.lengths.text import DENSE, HASH_BUCKETS, IDS
from llmrouter.manifest import (
    MAX_MODEL_BYTES,
    ModelKind,
    PolicyForm,
    Rejection,
    check_manifest,
    check_type,
    form_of,
    parse_manifest,
)
from llmrouter.routing.features import check_score_shapes, weights_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrouter.manifest import Manifest

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
PROBE_SIZES = (1, 3)
"""Rows of the probe batches: one, and another number, so that a fixed batch size is found out."""

_NOWHERE = "/dev/null/none"
"""Where weights that a model keeps outside its bytes are looked for: no such folder, so no model reads files here."""

_FATAL = 4
_LOG = logging.getLogger(__name__)


class OnnxModel:
    """A checked model in a session of its own. ``provider`` is ``cuda`` or ``cpu``: what it really runs on."""

    def __init__(self, manifest: Manifest, session: onnxruntime.InferenceSession) -> None:
        self.manifest = manifest
        self.digest = manifest.sha256
        self.provider = "cuda" if CUDA in session.get_providers() else "cpu"
        self._session = session
        self._outputs = [tensor.name for tensor in manifest.outputs]

    def run(self, inputs: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """All outputs, in the manifest's order."""
        outputs: list[NDArray[np.float32]] = self._session.run(self._outputs, inputs)
        return outputs


class OnnxScorer:
    """A policy model: see the ``Scorer`` port."""

    def __init__(self, model: OnnxModel) -> None:
        self.manifest = model.manifest
        self.digest = model.digest
        self.provider = model.provider
        self._model = model

    def score(self, features_IF: NDArray[np.float32], weights_W: NDArray[np.float32]) -> NDArray[np.float32]:
        """Costs in seconds (I,); raises ModelRejectedError on a wrong shape. Finiteness is the caller's to check."""
        check_score_shapes(features_IF, weights_W)
        return self._model.run({"features": features_IF, "weights": weights_W})[0]


class OnnxSharedNetwork:
    """An agent's network for any number of instances: see ``llmrouter.routing.learned.SharedNetwork``."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model

    def scores(self, instances_IF: NDArray[np.float32], line_H: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores (I + 1,), hold's last."""
        return self._model.run({"instances": instances_IF, "line": line_H})[0]


class OnnxPaperNetwork:
    """An agent's network for the paper's state: see ``llmrouter.routing.learned.PaperNetwork``."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self.instances = (model.manifest.outputs[0].shape[1] or 1) - 1

    def values(self, state_S: NDArray[np.float32]) -> NDArray[np.float32]:
        """Action values (I + 1,), hold's last."""
        values_A: NDArray[np.float32] = self._model.run({"state": state_S[None, :]})[0][0]
        return values_A


def load_network(
    model: bytes, manifest: bytes, *, expected_sha256: str | None
) -> tuple[OnnxSharedNetwork | OnnxPaperNetwork, OnnxModel]:
    """Checks and loads an agent's network; raises as ``load_scorer`` does."""
    loaded = load_model(model, manifest, kind=ModelKind.POLICY, expected_sha256=expected_sha256)
    check_type(loaded.manifest, "Learned")
    if form_of(loaded.manifest) is PolicyForm.SHARED_AGENT:
        return OnnxSharedNetwork(loaded), loaded
    return OnnxPaperNetwork(loaded), loaded


def load_scorer(model: bytes, manifest: bytes, *, expected_sha256: str | None) -> OnnxScorer:
    """Checks and loads a policy model.

    Args:
        model: bytes of ``model.onnx``.
        manifest: bytes of ``manifest.json``.
        expected_sha256: the digest that the configuration asks for; ``None`` where it asks for none.

    Raises:
        ModelRejectedError: with the reason, one of ``llmrouter.manifest.Rejection``.
    """
    loaded = load_model(model, manifest, kind=ModelKind.POLICY, expected_sha256=expected_sha256)
    check_type(loaded.manifest, "Onnx")
    return OnnxScorer(loaded)


def load_model(model: bytes, manifest: bytes, *, kind: ModelKind, expected_sha256: str | None) -> OnnxModel:
    """Checks bytes, manifest and graph, then runs a probe; raises as ``load_scorer`` does."""
    if len(model) > MAX_MODEL_BYTES:
        raise ModelRejectedError(
            Rejection.MODEL_CORRUPT, f"the model has {len(model)} bytes, more than {MAX_MODEL_BYTES}"
        )
    parsed = parse_manifest(manifest)
    digest = hashlib.sha256(model).hexdigest()
    check_manifest(parsed, expected_kind=kind, model_sha256=digest, expected_sha256=expected_sha256)
    session = _open(model)
    _check_graph(parsed, session)
    loaded = OnnxModel(parsed, session)
    _probe(loaded)
    return loaded


@functools.cache
def cuda_usable() -> bool:
    """Whether this process can reach a GPU: the runtime has the provider, and the driver counts a device.

    Asks the driver itself, because the runtime lists the provider wherever it was built in and complains on stderr
    where there is no GPU.
    """
    if CUDA not in onnxruntime.get_available_providers():
        return False
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False  # no driver, no GPU
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _open(model: bytes) -> onnxruntime.InferenceSession:
    if cuda_usable():
        try:
            return _session(model, [CUDA, CPU])
        except Exception as error:  # noqa: BLE001 - the CPU runs every model; ``provider`` says which it was
            _LOG.warning("the GPU cannot run the model, the CPU will: %s", error)
    try:
        return _session(model, [CPU])
    except Exception as error:
        # The runtime's exceptions share no public base class.
        raise ModelRejectedError(Rejection.MODEL_CORRUPT, f"the runtime cannot load the model: {error}") from error


def _session(model: bytes, providers: list[str]) -> onnxruntime.InferenceSession:
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
    return onnxruntime.InferenceSession(model, options, providers=providers)


def _check_graph(manifest: Manifest, session: onnxruntime.InferenceSession) -> None:
    wanted_inputs = {tensor.name: tensor.shape for tensor in manifest.inputs}
    _check_ports("inputs", _ports(session.get_inputs()), wanted_inputs)
    wanted_outputs = {tensor.name: tensor.shape for tensor in manifest.outputs}
    _check_ports("outputs", _ports(session.get_outputs()), wanted_outputs)


def _ports(arguments: list[Any]) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    return {
        one.name: (one.type, tuple(size if isinstance(size, int) else None for size in one.shape)) for one in arguments
    }


def _check_ports(
    what: str, got: dict[str, tuple[str, tuple[int | None, ...]]], wanted: dict[str, tuple[int | None, ...]]
) -> None:
    floats = {name: ("tensor(float)", shape) for name, shape in wanted.items()}
    if got != floats:
        raise ModelRejectedError(Rejection.SHAPE_MISMATCH, f"the graph's {what} are {got}, the manifest says {floats}")


def _probe(model: OnnxModel) -> None:
    """Runs the model inside its declared bounds: the answer must be finite and of the declared shape."""
    for rows in PROBE_SIZES:
        try:
            outputs = model.run(_probe_inputs(model.manifest, rows))
        except Exception as error:
            raise ModelRejectedError(Rejection.SHAPE_MISMATCH, f"the model fails on {rows} rows: {error}") from error
        for tensor, output in zip(model.manifest.outputs, outputs, strict=True):
            free = rows + 1 if tensor.name == "scores" else rows  # an agent's: hold beside the instances
            shape = tuple(free if size is None else size for size in tensor.shape)
            if output.shape != shape:
                raise ModelRejectedError(
                    Rejection.SHAPE_MISMATCH, f"the model answers {output.shape} to {rows} rows, not {shape}"
                )
            if not np.isfinite(output).all():
                raise ModelRejectedError(Rejection.NOT_FINITE, "the model's answer to a probe is not finite")


def _probe_inputs(manifest: Manifest, rows: int) -> dict[str, NDArray[np.float32]]:
    """Rows from the lower bounds of all features to the upper ones; ids of text as far apart as they can be."""
    bounds = [manifest.bounds[name] for name in manifest.feature_names]
    place_R1 = np.linspace(0.0, 1.0, rows)[:, None]
    low_F, high_F = np.array([one.min for one in bounds]), np.array([one.max for one in bounds])
    features_RF: NDArray[np.float32] = (low_F + place_R1 * (high_F - low_F)).astype(np.float32)
    if manifest.kind is ModelKind.POLICY:
        form = form_of(manifest)
        if form is PolicyForm.PAPER_AGENT:
            return {"state": features_RF}
        if form is PolicyForm.SHARED_AGENT:
            cut = len(LEARNED_INSTANCE_NAMES)
            return {"instances": features_RF[:, :cut], "line": features_RF[rows // 2, cut:]}
        return {"features": features_RF, "weights": weights_of(ObjectiveWeights())}
    if not reads_prompts(manifest):
        return {"features": features_RF}
    ids_RK = np.broadcast_to(np.rint(place_R1 * (HASH_BUCKETS - 1)), (rows, IDS))
    return {"ids": ids_RK.astype(np.float32), "dense": features_RF[:, -DENSE:]}

"""Who says how long an answer will be, by the name that ``--predictor`` takes."""

from __future__ import annotations

import functools
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.arrivals import predictions
from llmrouter.artefacts import builtin_model
from llmrouter.errors import InvalidInputError
from llmrouter.lengths.artefact import length_model
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.manifest import ModelKind, parse_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from llmrouter.lengths.predictor import LengthPredictor
    from llmrouter.sim.workload import Workload

FOREST = "random-forest"
_ERRORS = 0x6572
"""The random stream of a run's prediction errors."""


class Predictor(StrEnum):
    """Who says how long an answer will be.

    ``NONE``: one mean for everybody. ``TASK_MEAN``: the mean of the request's application; both learned from the cell's
    history. ``BUCKET``: a classifier into the buckets of arXiv 2408.13510 that is right as often as the paper's was, by
    application where it says so. ``FOREST``: the shipped model, from prompt length and application. ``ORACLE``: the
    truth, for bounds. ``RECORDED``: what the trace says was predicted.
    """

    NONE = "none"
    TASK_MEAN = "task-mean"
    BUCKET = "bucket"
    FOREST = "forest"
    ORACLE = "oracle"
    RECORDED = "recorded"


def predicted(
    workload: Workload,
    predictor: Predictor,
    history: Workload,
    *,
    seed: int,
    bucket_accuracy: Mapping[str, float] = MappingProxyType({}),
) -> Workload:
    """The workload with its predictions.

    Args:
        workload: the requests.
        predictor: who predicts.
        history: what means are learned from.
        seed: of the bucket classifier's errors.
        bucket_accuracy: how often it is right, by application.

    Raises:
        InvalidInputError: recorded predictions are asked for, and a request has none.
    """
    if predictor is Predictor.RECORDED:
        if not (workload.predicted_output_tokens > 0).all():
            raise InvalidInputError("--predictor recorded needs a prediction for every request of the trace")
        return workload
    if predictor is Predictor.ORACLE:
        tokens_N = predictions.oracle(workload)
    elif predictor is Predictor.TASK_MEAN:
        tokens_N = predictions.task_mean(workload, history)
    elif predictor is Predictor.BUCKET:
        classifier = predictions.BucketClassifier(accuracy=bucket_accuracy, values=predictions.bucket_values(history))
        tokens_N = predictions.paper_bucket(workload, np.random.default_rng((seed, _ERRORS)), classifier)
    elif predictor is Predictor.FOREST:
        tokens_N = predictions.forest(workload, forest_tokens)
    else:
        tokens_N = predictions.none(workload, history)
    return workload.with_predictions(tokens_N)


def forest_tokens(workload: Workload) -> NDArray[np.float64]:
    """What the shipped output-length model says, shape (N,), clipped to its manifest's bounds as routers do.

    Raises:
        InvalidInputError: onnxruntime is not installed.
    """
    names = workload.applications
    asked = [
        LengthRequest(prompt_tokens=tokens, application=names[index])
        for tokens, index in zip(workload.prompt_tokens.tolist(), workload.application.tolist(), strict=True)
    ]
    return _forest().predict(asked).expected_tokens


@functools.cache
def _forest() -> LengthPredictor:
    try:
        import onnxruntime  # noqa: PLC0415 - heavy, and only this predictor needs it
    except ImportError as error:
        raise InvalidInputError("--predictor forest needs onnxruntime: pip install 'llmrouter[router]'") from error
    model, manifest_bytes = builtin_model(ModelKind.OUTPUT_LENGTH, FOREST)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    manifest = parse_manifest(manifest_bytes)
    return length_model(manifest, functools.partial(session.run, [tensor.name for tensor in manifest.outputs]))


def usual_predictor(trace: Workload) -> Predictor:
    """Who predicts for a trace where nobody is asked for: the trace itself where it says so for every request."""
    return Predictor.RECORDED if (trace.predicted_output_tokens > 0).all() else Predictor.TASK_MEAN


def unknown_applications(workload: Workload) -> list[str]:
    """Applications of the workload that the shipped model has no column for: it reads their prompt length alone."""
    _, manifest_bytes = builtin_model(ModelKind.OUTPUT_LENGTH, FOREST)
    return sorted(set(workload.applications) - set(parse_manifest(manifest_bytes).applications))

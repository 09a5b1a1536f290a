"""Fits the output-length forest and exports it, after holding the graph against the forest on a grid of inputs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import RandomForestRegressor

from llmrouter.lengths.application import application_columns, length_features
from llmrouter.training.onnx_files import ExportDisagreesError, run_on_cpu, stable_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.training.length_table import LengthRow

SEED = 20_261_121
TREES = 40
MAX_LEAVES = 128
MIN_ROWS_PER_LEAF = 40
UNLABELLED_ROWS_PER_APPLICATION = 400
"""So many rows of each application are shown a second time without their label: what *unknown application* means."""

CAP_QUANTILE = 0.99
OPSET = 17
ML_OPSET = 3
IR_VERSION = 9
RELATIVE_TOLERANCE = 1e-4
GRID_PROMPT_TOKENS = (0, 1, 2, 4, 7, 15, 30, 64, 130, 250, 512, 900, 1_400, 2_100, 4_096, 7_500, 16_384, 10**6, 10**9)


@dataclass(frozen=True, slots=True)
class LengthForest:
    """A fitted forest. ``caps`` are each application's p99 output tokens; ``unknown_cap`` holds for all others."""

    forest: RandomForestRegressor
    applications: tuple[str, ...]
    caps: tuple[float, ...]
    unknown_cap: float

    def features(self, prompt_tokens: Sequence[int], applications: Sequence[str]) -> NDArray[np.float32]:
        """As the router computes them."""
        return length_features(prompt_tokens, applications, application_columns(self.applications))

    def predict(self, prompt_tokens: Sequence[int], applications: Sequence[str]) -> NDArray[np.float64]:
        """Expected output tokens (N,), within 1 and the cap of the application."""
        expected_N = self.forest.predict(self.features(prompt_tokens, applications))
        known = dict(zip(self.applications, self.caps, strict=True))
        caps_N = np.array([known.get(name, self.unknown_cap) for name in applications])
        clipped_N: NDArray[np.float64] = np.minimum(np.maximum(expected_N, 1.0), caps_N)
        return clipped_N


def fit(rows: Sequence[LengthRow]) -> LengthForest:
    """Fits on ``rows``, none of which may be held out."""
    if any(row.held_out for row in rows):
        raise ValueError("held-out rows must not train the model")
    by_application = {name: list(group) for name, group in groupby(sorted(rows), key=lambda row: row.application)}
    applications = tuple(by_application)
    caps = tuple(_cap(group) for group in by_application.values())
    cap_of = dict(zip(applications, caps, strict=True))

    rng = np.random.default_rng(SEED)
    unlabelled = [row for group in by_application.values() for row in _sample(group, rng)]
    shown = [*rows, *unlabelled]
    labels = [row.application for row in rows] + [""] * len(unlabelled)
    features_NF = length_features([row.prompt_tokens for row in shown], labels, application_columns(applications))
    target_N = np.array([min(row.output_tokens, cap_of[row.application]) for row in shown], dtype=np.float64)
    forest = RandomForestRegressor(
        n_estimators=TREES,
        max_leaf_nodes=MAX_LEAVES,
        min_samples_leaf=MIN_ROWS_PER_LEAF,
        random_state=SEED,
        n_jobs=1,
    )
    forest.fit(features_NF, target_N)
    return LengthForest(forest, applications, caps, _cap(unlabelled))


def export(fitted: LengthForest) -> bytes:
    """ONNX bytes: ``features`` float32 (N, 1 + A) to ``output_tokens`` float32 (N,).

    Raises:
        ExportDisagreesError: graph and forest differ on the grid of prompt lengths and applications.
    """
    model = stable_bytes(_graph(fitted))
    applications = [*fitted.applications, "an application nobody named"]
    prompt_tokens = [tokens for tokens in GRID_PROMPT_TOKENS for _ in applications]
    labels = applications * len(GRID_PROMPT_TOKENS)
    got_N = run_on_cpu(model, {"features": fitted.features(prompt_tokens, labels)})
    want_N = fitted.predict(prompt_tokens, labels)
    if got_N.shape != want_N.shape or not np.allclose(got_N, want_N, rtol=RELATIVE_TOLERANCE, atol=0.0):
        raise ExportDisagreesError(f"graph and forest differ by up to {np.max(np.abs(got_N - want_N))} tokens")
    return model


def _cap(rows: Sequence[LengthRow]) -> float:
    return float(np.quantile([row.output_tokens for row in rows], CAP_QUANTILE))


def _sample(rows: Sequence[LengthRow], rng: np.random.Generator) -> list[LengthRow]:
    count = min(len(rows), UNLABELLED_ROWS_PER_APPLICATION)
    return [rows[index] for index in rng.choice(len(rows), count, replace=False)]


def _graph(fitted: LengthForest) -> ModelProto:
    width = 1 + len(fitted.applications)
    converted = convert_sklearn(
        fitted.forest,
        name="output-length",
        initial_types=[("features", FloatTensorType([None, width]))],
        target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
    )
    trees = next(node for node in converted.graph.node if node.op_type == "TreeEnsembleRegressor")
    trees.name = "forest"
    trees.input[:], trees.output[:] = ["features"], ["mean"]
    caps_FO = np.array([[0.0], *([cap - fitted.unknown_cap] for cap in fitted.caps)], dtype=np.float32)
    nodes = [
        trees,
        helper.make_node("Gemm", ["features", "caps", "unknown_cap"], ["cap"], name="cap-of-application"),
        helper.make_node("Max", ["mean", "one"], ["at_least_one"], name="at-least-one"),
        helper.make_node("Min", ["at_least_one", "cap"], ["clipped"], name="at-most-cap"),
        helper.make_node("Squeeze", ["clipped", "axis1"], ["output_tokens"], name="flat"),
    ]
    initializers = [
        numpy_helper.from_array(caps_FO, "caps"),
        numpy_helper.from_array(np.array([fitted.unknown_cap], dtype=np.float32), "unknown_cap"),
        numpy_helper.from_array(np.array([1.0], dtype=np.float32), "one"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "axis1"),
    ]
    body = helper.make_graph(
        nodes,
        "output-length",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("output_tokens", TensorProto.FLOAT, ["N"])],
        initializers,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model: ModelProto = helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION, producer_name="llmrouter")
    checker.check_model(model, full_check=True)
    return model

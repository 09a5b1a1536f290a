"""Small ONNX models, good and bad, with manifests to match."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from llmrouter.artefacts import builtin_model
from llmrouter.feature_set import FEATURE_NAMES, WEIGHT_NAMES
from llmrouter.manifest import Manifest, parse_manifest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

OPSET = 17


def shipped_manifest(kind: str = "policy", name: str = "marginal-cost") -> Manifest:
    return parse_manifest(builtin_model(kind, name)[1])


def manifest_for(model: bytes, base: Manifest, **changes: Any) -> bytes:  # noqa: ANN401 - any field
    changed = base.model_copy(update={"sha256": hashlib.sha256(model).hexdigest(), **changes})
    return changed.to_json()


def scorer_graph(
    nodes: Sequence[NodeProto],
    *,
    features: int = len(FEATURE_NAMES),
    output_shape: Sequence[int | str] = ("I",),
    constants: dict[str, NDArray[Any]] | None = None,
    rows: int | str = "I",
) -> bytes:
    body = helper.make_graph(
        list(nodes),
        "test",
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, [rows, features]),
            helper.make_tensor_value_info("weights", TensorProto.FLOAT, [len(WEIGHT_NAMES)]),
        ],
        [helper.make_tensor_value_info("costs", TensorProto.FLOAT, list(output_shape))],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    return serialised(helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9))


def serialised(model: ModelProto) -> bytes:
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def summing_scorer(*, features: int = len(FEATURE_NAMES), rows: int | str = "I") -> bytes:
    """Costs are the sums of the features."""
    nodes = [helper.make_node("ReduceSum", ["features", "axis"], ["costs"], keepdims=0)]
    axis = {"axis": np.array([1], dtype=np.int64)}
    return scorer_graph(nodes, features=features, constants=axis, rows=rows, output_shape=(rows,))


def nan_scorer() -> bytes:
    nodes = [
        helper.make_node("ReduceSum", ["features", "axis"], ["sums"], keepdims=0),
        helper.make_node("Mul", ["sums", "nan"], ["costs"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "axis": np.array([1], dtype=np.int64),
        "nan": np.array(np.nan, dtype=np.float32),
    }
    return scorer_graph(nodes, constants=constants)


def two_column_scorer() -> bytes:
    nodes = [helper.make_node("Slice", ["features", "start", "end", "axis"], ["costs"])]
    constants = {
        "start": np.array([0], dtype=np.int64),
        "end": np.array([2], dtype=np.int64),
        "axis": np.array([1], dtype=np.int64),
    }
    return scorer_graph(nodes, constants=constants, output_shape=("I", 2))


def hungry_scorer() -> bytes:
    """Takes 32 GiB to answer."""
    nodes = [
        helper.make_node("ReduceSum", ["features", "axis"], ["sums"], keepdims=0),
        helper.make_node("Shape", ["sums"], ["rows"]),
        helper.make_node("Mul", ["rows", "many"], ["much"]),
        helper.make_node("ConstantOfShape", ["much"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros", "first"], ["zero"], keepdims=0),
        helper.make_node("Add", ["sums", "zero"], ["costs"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "axis": np.array([1], dtype=np.int64),
        "first": np.array([0], dtype=np.int64),
        "many": np.array([2**33], dtype=np.int64),
    }
    return scorer_graph(nodes, constants=constants)


def endless_scorer() -> bytes:
    """Adds and adds, some centuries long."""
    step = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still"]),
            helper.make_node("Add", ["before", "before"], ["after"]),
        ],
        "step",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, ["I"]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, ["I"]),
        ],
    )
    nodes = [
        helper.make_node("ReduceSum", ["features", "axis"], ["sums"], keepdims=0),
        helper.make_node("Loop", ["turns", "go", "sums"], ["costs"], body=step),
    ]
    constants: dict[str, NDArray[Any]] = {
        "axis": np.array([1], dtype=np.int64),
        "turns": np.array(2**60, dtype=np.int64),
        "go": np.array(True),  # noqa: FBT003 - a tensor's value
    }
    return scorer_graph(nodes, constants=constants)


def lying_scorer() -> bytes:
    """Declares one cost per row and answers a single one."""
    nodes = [
        helper.make_node("ReduceSum", ["features", "axes"], ["one"], keepdims=0),
        helper.make_node("Reshape", ["one", "shape"], ["costs"]),
    ]
    constants = {"axes": np.array([0, 1], dtype=np.int64), "shape": np.array([1], dtype=np.int64)}
    return scorer_graph(nodes, constants=constants)


def file_reading_scorer(location: str) -> bytes:
    """Keeps its weights in a file outside its bytes."""
    outside = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[len(FEATURE_NAMES)], data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * len(FEATURE_NAMES)))):
        entry = outside.external_data.add()
        entry.key, entry.value = key, value
    body = helper.make_graph(
        [helper.make_node("MatMul", ["features", "w"], ["costs"])],
        "test",
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["I", len(FEATURE_NAMES)]),
            helper.make_tensor_value_info("weights", TensorProto.FLOAT, [len(WEIGHT_NAMES)]),
        ],
        [helper.make_tensor_value_info("costs", TensorProto.FLOAT, ["I"])],
        [outside],
    )
    return serialised(helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9))

"""Small learned agents as ONNX models with manifests: a line over what they see, so that answers are known by hand."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper
from support.models import OPSET, serialised

from llmrouter.feature_set import (
    LEARNED_FEATURE_VERSION,
    LEARNED_INSTANCE_NAMES,
    LEARNED_LINE_NAMES,
    PAPER_STATE_VERSION,
    paper_state_names,
)
from llmrouter.manifest import Bounds, Manifest, ModelKind, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


def shared_agent(
    instance: Mapping[str, float], line: Mapping[str, float], *, hold: float = 0.0, name: str = "line"
) -> tuple[bytes, bytes]:
    """Model and manifest: an instance's score is a weighted sum of its row, hold's of the line and a constant."""
    rows, columns = len(LEARNED_INSTANCE_NAMES), len(LEARNED_LINE_NAMES)
    constants: dict[str, NDArray[Any]] = {
        "each": _column(LEARNED_INSTANCE_NAMES, instance),
        "line_weights": _column(LEARNED_LINE_NAMES, line),
        "constant": np.array([hold], np.float32),
        "flat": np.array([-1], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["instances", "each"], ["column"]),
        helper.make_node("Reshape", ["column", "flat"], ["values"]),
        helper.make_node("MatMul", ["line", "line_weights"], ["sum"]),
        helper.make_node("Add", ["sum", "constant"], ["hold"]),
        helper.make_node("Concat", ["values", "hold"], ["scores"], axis=0),
    ]
    model = _model(nodes, constants, inputs={"instances": ["I", rows], "line": [columns]}, outputs={"scores": ["A"]})
    manifest = _manifest(
        model,
        name=name,
        version=LEARNED_FEATURE_VERSION,
        names=(*LEARNED_INSTANCE_NAMES, *LEARNED_LINE_NAMES),
        inputs=(_tensor("instances", None, rows), _tensor("line", columns)),
        outputs=(_tensor("scores", None),),
    )
    return model, manifest


def paper_agent(values: Mapping[str, Mapping[str, float]], *, instances: int = 2) -> tuple[bytes, bytes]:
    """Model and manifest: each action's value is a weighted sum of the state; actions by number, hold's last."""
    names = paper_state_names(instances)
    columns = [_column(names, values.get(str(action), {})) for action in range(instances + 1)]
    nodes = [helper.make_node("MatMul", ["state", "matrix"], ["values"])]
    model = _model(
        nodes,
        {"matrix": np.concatenate(columns, axis=1)},
        inputs={"state": ["N", len(names)]},
        outputs={"values": ["N", instances + 1]},
    )
    manifest = _manifest(
        model,
        name="paper",
        version=PAPER_STATE_VERSION,
        names=names,
        inputs=(_tensor("state", None, len(names)),),
        outputs=(_tensor("values", None, instances + 1),),
    )
    return model, manifest


def _column(names: tuple[str, ...], weights: Mapping[str, float]) -> NDArray[np.float32]:
    assert set(weights) <= set(names), weights
    return np.array([[weights.get(name, 0.0)] for name in names], np.float32)


def _tensor(name: str, *shape: int | None) -> Tensor:
    return Tensor(name=name, dtype="float32", shape=shape)


def _model(
    nodes: list[NodeProto],
    constants: dict[str, NDArray[Any]],
    *,
    inputs: dict[str, list[str | int]],
    outputs: dict[str, list[str | int]],
) -> bytes:
    body = helper.make_graph(
        nodes,
        "agent",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return serialised(helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9))


def _manifest(
    model: bytes,
    *,
    name: str,
    version: int,
    names: tuple[str, ...],
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
) -> bytes:
    return Manifest(
        name=name,
        kind=ModelKind.POLICY,
        model_version="1.0.0",
        feature_version=version,
        feature_names=names,
        inputs=inputs,
        outputs=outputs,
        bounds={one: Bounds(min=0.0, max=1e9) for one in names},
        training_data=(),
        seed=0,
        scores={},
        sha256=hashlib.sha256(model).hexdigest(),
        opset={"ai.onnx": OPSET},
        producer="test",
    ).to_json()

"""The paper's network as an ONNX graph, in single precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from llmrouter.training.agents.network import Shape, paper_shape
from llmrouter.training.agents.told_graph import IR_VERSION, OPSET

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def paper_model(weights_W: Floats, instances: int) -> ModelProto:
    """Input ``state`` float32 (N, 6·I + 3); output ``values`` float32 (N, I + 1), hold's last."""
    shape = paper_shape(instances)
    nodes, constants = _perceptron("q", shape, weights_W, source="state", result="values", between="Relu")
    return _model(
        nodes,
        constants,
        inputs={"state": ["N", shape.widths[0]]},
        outputs={"values": ["N", shape.widths[-1]]},
    )


def _perceptron(
    name: str, shape: Shape, weights_W: Floats, *, source: str, result: str, between: str
) -> tuple[list[NodeProto], list[TensorProto]]:
    nodes, constants = [], []
    last, value = len(shape.widths) - 2, source
    for number, (matrix, bias) in enumerate(shape.layers(weights_W)):
        names = f"{name}.matrix{number}", f"{name}.bias{number}"
        constants += [
            numpy_helper.from_array(part.astype(np.float32), called)
            for part, called in zip((matrix, bias), names, strict=True)
        ]
        summed = result if number == last else f"{name}.sum{number}"
        nodes.append(helper.make_node("Gemm", [value, *names], [summed], name=f"{name}.Gemm{number}"))
        if number != last:
            value = f"{name}.layer{number}"
            nodes.append(helper.make_node(between, [summed], [value], name=f"{name}.{between}{number}"))
    return nodes, constants


def _model(
    nodes: list[NodeProto],
    constants: list[TensorProto],
    *,
    inputs: dict[str, list[str | int]],
    outputs: dict[str, list[str | int]],
) -> ModelProto:
    body = helper.make_graph(
        nodes,
        "agent",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        constants,
    )
    model: ModelProto = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="llmrouter"
    )
    checker.check_model(model, full_check=True)
    return model

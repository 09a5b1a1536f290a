"""Networks that see what ``llmrouter.routing.sight`` tells, as ONNX graphs: nodes, cost terms and the signature."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from llmrouter.feature_set import LEARNED_INSTANCE_NAMES, LEARNED_LINE_NAMES
from llmrouter.training.agents import product_network as network

OPSET = 17
IR_VERSION = 9
LOWEST = -1e30
"""Stands for nothing in a maximum."""


class Graph:
    """Collects nodes; every method returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}

    def op(self, kind: str, *inputs: str | float, **attributes: Any) -> str:  # noqa: ANN401 - as ONNX takes them
        """Adds an operator over names and numbers."""
        output = f"t{len(self.nodes)}"
        names = [value if isinstance(value, str) else self.number(value) for value in inputs]
        self.nodes.append(helper.make_node(kind, names, [output], name=f"{kind}-{output}", **attributes))
        return output

    def sum(self, *terms: str | float) -> str:
        """Left to right."""
        return self._chain("Add", terms)

    def product(self, *factors: str | float) -> str:
        """Left to right."""
        return self._chain("Mul", factors)

    def split(self, source: str, names: tuple[str, ...]) -> dict[str, str]:
        """A float32 tensor (names, …) as one double tensor for each name, its first axis 1."""
        wide = self.op("Cast", source, to=TensorProto.DOUBLE)
        outputs = [f"{source}.{name}" for name in names]
        self.nodes.append(helper.make_node("Split", [wide], outputs, name=f"Split-{source}", axis=0))
        return dict(zip(names, outputs, strict=True))

    def number(self, value: float) -> str:
        """A constant."""
        return self.array(f"c{value:g}", np.array(value, dtype=np.float64))

    def array(self, name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
        """A constant array, in double."""
        self.constants[name] = numpy_helper.from_array(values, name)
        return name

    def mean(self, row: str) -> str:
        """Of a (1, I): (1, 1)."""
        return self.op("ReduceMean", row, axes=[1], keepdims=1)

    def most(self, row: str) -> str:
        """Of a (1, I): (1, 1)."""
        return self.op("ReduceMax", row, axes=[1], keepdims=1)

    def _chain(self, kind: str, parts: tuple[str | float, ...]) -> str:
        first, *others = parts
        result = first if isinstance(first, str) else self.number(first)
        for part in others:
            result = self.op(kind, result, part)
        return result

    def perceptron(self, name: str, source: str, layers: list[tuple[Any, Any]]) -> str:
        """Matrices and biases over a (rows, inputs), tanh between them."""
        value = source
        for number, (matrix, bias) in enumerate(layers):
            value = self.op("Tanh", value) if number else value
            value = self.op("MatMul", value, self.array(f"{name}.matrix{number}", matrix))
            value = self.op("Add", value, self.array(f"{name}.bias{number}", bias))
        return value

    def finish(self, scores: str, held: str) -> ModelProto:
        """The graph whose ``scores`` are those of instances (1, I), then that of hold (1, 1)."""
        flat = self.op("Squeeze", self.op("Concat", scores, held, axis=1), "axis0")
        self.constants["axis0"] = numpy_helper.from_array(np.array([0], dtype=np.int64), "axis0")
        self.nodes.append(helper.make_node("Cast", [flat], ["scores"], name="Cast-scores", to=TensorProto.FLOAT))
        return _model(self)


def terms_of(graph: Graph, f: dict[str, str]) -> list[str]:
    """The terms in their order, each (1, I): ``product_network.write_terms``."""
    n, context, queued = f["requests"], f["context_tokens"], f["queued_prefill_tokens"]
    p, d, cached = f["prompt_tokens"], f["predicted_output_tokens"], f["cached_prompt_tokens"]
    b, g1, g2, g3 = f["base_s"], f["prefill_s_per_token"], f["context_s_per_token"], f["sequence_s"]
    n_or_1 = graph.op("Max", n, 1.0)
    left = graph.op("Div", f["remaining_decode_tokens"], n_or_1)
    crowd = graph.sum(graph.product(g3, n), graph.product(g2, context))
    to_come = graph.product(graph.sum(f["remaining_decode_tokens"], d), network.RESERVE)
    running = graph.op("Sub", context, queued)
    free = graph.op("LessOrEqual", running, graph.product(f["kv_tokens"], network.FREE_KV))
    holding = graph.op("Where", free, running, context)
    kv_deficit = graph.op("Max", graph.op("Sub", graph.sum(holding, p, to_come), f["kv_tokens"]), 0.0)
    slot_deficit = graph.op("Max", graph.op("Sub", graph.sum(n, 1.0), f["max_sequences"]), 0.0)
    shares = graph.sum(
        graph.op("Div", kv_deficit, graph.op("Max", context, 1.0)), graph.op("Div", slot_deficit, n_or_1)
    )
    crowded = graph.sum(crowd, g3, graph.product(g2, p))
    squares = graph.op("Sub", graph.product(p, p), graph.product(cached, cached))
    prefill = graph.sum(
        graph.product(g1, graph.op("Sub", p, cached)), graph.product(f["prefill_s_per_token_squared"], squares)
    )
    overlap = graph.op("Min", d, left)
    longer = graph.sum(g3, graph.product(g2, graph.sum(p, graph.product(overlap, 0.5))))
    number = graph.product(n, b)
    wait = graph.product(g1, queued)
    nothing_queued = graph.op("LessOrEqual", queued, 0.0)
    return [
        graph.product(graph.sum(b, crowd), left, shares),
        wait,
        prefill,
        graph.product(d, crowded),
        graph.product(d, b),
        graph.product(n, prefill),
        graph.product(n, overlap, longer),
        graph.op("Where", nothing_queued, graph.product(number, f["prefill_first"]), 0.0),
        graph.op("Div", graph.product(d, crowded, crowded), graph.op("Max", b, network.LEAST_BASE_S)),
        graph.product(n, wait),
        number,
    ]


def _model(graph: Graph) -> ModelProto:
    inputs = [
        helper.make_tensor_value_info("instances", TensorProto.FLOAT, ["I", len(LEARNED_INSTANCE_NAMES)]),
        helper.make_tensor_value_info("line", TensorProto.FLOAT, [len(LEARNED_LINE_NAMES)]),
    ]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["A"])]
    body = helper.make_graph(graph.nodes, "learned", inputs, outputs, list(graph.constants.values()))
    model: ModelProto = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="llmrouter"
    )
    checker.check_model(model, full_check=True)
    return model

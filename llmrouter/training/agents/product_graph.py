"""The product's network as an ONNX graph: ``product_network``, operator by operator, in double inside."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from llmrouter.feature_set import LEARNED_INSTANCE_NAMES, LEARNED_LINE_NAMES
from llmrouter.training.agents import product_network as network
from llmrouter.training.agents.graph import IR_VERSION, OPSET

LOWEST = -1e30


class _Graph:
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


def product_model(weights_W: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> ModelProto:
    """Inputs ``instances`` float32 (I, 16) and ``line`` (6,); output ``scores`` (I + 1,), hold's last; any I."""
    graph = _Graph()
    f = graph.split(graph.op("Transpose", "instances"), LEARNED_INSTANCE_NAMES)
    line = graph.split("line", LEARNED_LINE_NAMES)
    room = graph.op("Greater", f["has_room"], 0.0)
    terms = _terms(graph, f)
    shared, hold = _picture(graph, f, line, terms, room)
    linear = graph.array("weights.linear", weights_W[: network.HOLD_AT].reshape(network.PICTURE, network.TERMS))
    most = network.MOST_LOG_WEIGHT
    power = graph.op("Min", graph.op("Max", graph.op("MatMul", shared, linear), -most), most)
    usual = graph.array("weights.usual", np.array([network.USUAL]))
    weights = graph.product(usual, graph.op("Exp", power))
    scores = graph.op("Neg", graph.op("MatMul", weights, graph.op("Concat", *terms, axis=0)))
    held = _hold(graph, f, scores=scores, room=room, bonus=_bonus(graph, hold, weights_W[network.HOLD_AT :]))
    flat = graph.op("Squeeze", graph.op("Concat", scores, held, axis=1), "axis0")
    graph.constants["axis0"] = numpy_helper.from_array(np.array([0], dtype=np.int64), "axis0")
    graph.nodes.append(helper.make_node("Cast", [flat], ["scores"], name="Cast-scores", to=TensorProto.FLOAT))
    return _model(graph)


def _terms(graph: _Graph, f: dict[str, str]) -> list[str]:
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


def _picture(graph: _Graph, f: dict[str, str], line: dict[str, str], terms: list[str], room: str) -> tuple[str, str]:
    """What the weights depend on (1, 10) and what hold depends on (1, 13): ``product_network.write_picture``."""
    reserve = network.RESERVE
    taken = graph.sum(f["context_tokens"], graph.product(f["remaining_decode_tokens"], reserve))
    kv = graph.mean(graph.op("Min", graph.op("Div", taken, f["kv_tokens"]), 1.5))
    slots = graph.mean(graph.op("Div", f["requests"], f["max_sequences"]))
    queued = graph.op("Log", graph.sum(graph.product(graph.mean(terms[1]), 10.0), 1.0))
    decode = graph.mean(graph.sum(terms[3], terms[4]))
    size = _squashed(graph, graph.sum(graph.mean(terms[2]), 1e-3), 0.1)
    length = _squashed(graph, graph.sum(decode, 1e-2), 2.0)
    preferences = [
        graph.op("Unsqueeze", line[name], "axis0") for name in LEARNED_LINE_NAMES if name.startswith("line/prefer")
    ]
    shared = [kv, graph.op("Div", queued, 3.0), slots, graph.mean(f["prefill_first"]), size, length]
    asked = graph.sum(f["prompt_tokens"], graph.product(f["predicted_output_tokens"], reserve))
    free = graph.op("Sub", 1.0, graph.op("Div", graph.sum(taken, asked), f["kv_tokens"]))
    free = graph.op("Min", graph.product(free, network.ROOM_SCALE), network.MOST_ROOM)
    most_room = graph.op("Max", graph.most(graph.op("Where", room, free, LOWEST)), -network.MOST_ROOM)
    coalesce = graph.op("Neg", graph.most(graph.op("Where", room, graph.op("Neg", terms[7]), LOWEST)))
    busy = graph.op("And", room, graph.op("Greater", f["queued_prefill_tokens"], 0.0))
    count = graph.op("Cast", graph.op("Shape", f["requests"], start=1), to=TensorProto.DOUBLE)
    held = graph.op("Div", graph.op("Log", graph.sum(line["line/held"], 1.0)), 3.0)
    hold = [
        graph.op("Unsqueeze", held, "axis0"),
        graph.op("Unsqueeze", graph.op("Min", line["line/head_age_s"], 5.0), "axis0"),
        graph.mean(graph.op("Cast", room, to=TensorProto.DOUBLE)),
        graph.mean(graph.op("Cast", busy, to=TensorProto.DOUBLE)),
        graph.op("Min", coalesce, 5.0),
        most_room,
        slots,
        graph.op("Min", graph.op("Div", decode, 10.0), 5.0),
        *preferences,
        graph.op("Unsqueeze", graph.op("Div", graph.op("Log", count), 3.0), "axis0"),
    ]
    return graph.op("Concat", *preferences, *shared, axis=1), graph.op("Concat", *hold, axis=1)


def _squashed(graph: _Graph, seconds: str, middle_s: float) -> str:
    """``tanh(ln(seconds / middle)/3)``."""
    return graph.op("Tanh", graph.op("Div", graph.op("Log", graph.op("Div", seconds, middle_s)), 3.0))


def _bonus(graph: _Graph, seen: str, hold_W: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    """The hold network's answer (1, 1): ``product_network.hold_bonus``."""
    inputs, hidden = network.HOLD_INPUTS, network.HOLD_HIDDEN
    cut = inputs * hidden
    first = graph.array("hold.matrix0", hold_W[:cut].reshape(inputs, hidden))
    second = graph.array("hold.matrix1", hold_W[cut + hidden : cut + 2 * hidden].reshape(hidden, 1))
    biases = graph.array("hold.bias0", hold_W[cut : cut + hidden]), graph.array("hold.bias1", hold_W[-1:])
    layer = graph.op("Tanh", graph.op("Add", graph.op("MatMul", seen, first), biases[0]))
    return graph.op("Add", graph.op("MatMul", layer, second), biases[1])


def _hold(graph: _Graph, f: dict[str, str], *, scores: str, room: str, bonus: str) -> str:
    """Hold's score (1, 1): the best one's and the bonus; far less where the request would not open the best one."""
    masked = graph.op("Where", room, scores, LOWEST)
    best = graph.most(masked)
    openable = graph.op("Where", graph.op("LessOrEqual", f["queued_prefill_tokens"], 0.0), f["prefill_first"], 0.0)
    opens = graph.most(graph.op("Where", graph.op("And", room, graph.op("Equal", masked, best)), openable, 0.0))
    forbidden = graph.op("Where", graph.op("Greater", opens, 0.0), 0.0, network.FORBIDDEN)
    return graph.op("Sub", graph.sum(best, bonus), forbidden)


def _model(graph: _Graph) -> ModelProto:
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

"""The marginal cost as an ONNX graph: ``routing.rules.marginal_cost_row``, operator by operator, in double inside."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from llmrouter.domain import DECODE_RESERVE_FRACTION
from llmrouter.feature_set import FEATURE_NAMES, WEIGHT_NAMES
from llmrouter.routing.rules import LEAST_BASE_S

OPSET = 17
IR_VERSION = 9


class _Graph:
    """Collects nodes; every method returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.numbers: dict[str, float] = {}

    def op(self, kind: str, *inputs: str | float) -> str:
        """Adds an operator over names and numbers."""
        output = f"t{len(self.nodes)}"
        names = [self._number(value) if isinstance(value, float) else value for value in inputs]
        self.nodes.append(helper.make_node(kind, names, [output], name=f"{kind}-{output}"))
        return output

    def add(self, *terms: str | float) -> str:
        """Sum, left to right."""
        return self._chain("Add", terms)

    def mul(self, *factors: str | float) -> str:
        """Product, left to right."""
        return self._chain("Mul", factors)

    def mean(self, source: str) -> str:
        """Of a (1, I): (1, 1)."""
        return self.op("ReduceMean", source)

    def rows(self, source: str, names: tuple[str, ...]) -> dict[str, str]:
        """A float32 tensor (names, I) or (names,) as one double tensor per name, (1, I) or (1,)."""
        wide = f"{source}64"
        outputs = [f"{source}.{name}" for name in names]
        self.nodes += [
            helper.make_node("Cast", [source], [wide], name=f"Cast-{source}", to=TensorProto.DOUBLE),
            helper.make_node("Split", [wide], outputs, name=f"Split-{source}", axis=0),
        ]
        return dict(zip(names, outputs, strict=True))

    def finish(self, source: str, output: str) -> None:
        """A double (1, I) as the float32 (I,) output."""
        flat = self.op("Squeeze", source, "axis0")
        self.nodes.append(helper.make_node("Cast", [flat], [output], name=f"Cast-{output}", to=TensorProto.FLOAT))

    def initializers(self) -> list[TensorProto]:
        """The constants, in order of first use."""
        numbers = [
            numpy_helper.from_array(np.array(value, dtype=np.float64), name) for name, value in self.numbers.items()
        ]
        return [*numbers, numpy_helper.from_array(np.array([0], dtype=np.int64), "axis0")]

    def _chain(self, kind: str, parts: tuple[str | float, ...]) -> str:
        first, *others = parts
        result = first if isinstance(first, str) else self._number(first)
        for part in others:
            result = self.op(kind, result, part)
        return result

    def _number(self, value: float) -> str:
        name = f"c{value:g}"
        self.numbers[name] = value
        return name


def marginal_cost_model() -> ModelProto:
    """Inputs ``features`` float32 (I, F) and ``weights`` float32 (W,); output ``costs`` float32 (I,)."""
    graph = _Graph()
    f = graph.rows(graph.op("Transpose", "features"), FEATURE_NAMES)
    w = graph.rows("weights", WEIGHT_NAMES)
    wait_s = graph.mul(f["prefill_s_per_token"], f["queued_prefill_tokens"])
    backlog_s = graph.mean(wait_s)
    pressed = graph.add(graph.mul(w["pressure"], backlog_s), 1.0)
    n, p, d = f["requests"], f["prompt_tokens"], f["predicted_output_tokens"]
    crowd_s = graph.add(graph.mul(f["sequence_s"], n), graph.mul(f["context_s_per_token"], f["context_tokens"]))
    overflow_s = _overflow(graph, f, crowd_s)
    prefill_s = _prefill(graph, f)
    crowded_s = graph.add(crowd_s, f["sequence_s"], graph.mul(f["context_s_per_token"], p))
    longer_step_s = graph.add(f["sequence_s"], graph.mul(f["context_s_per_token"], graph.add(p, graph.mul(d, 0.5))))
    nothing_queued = graph.op("LessOrEqual", f["queued_prefill_tokens"], 0.0)
    coalesce_s = graph.op("Where", nothing_queued, graph.mul(n, graph.mul(f["base_s"], f["prefill_first"])), 0.0)
    spread_s = graph.op("Div", graph.mul(d, crowded_s, crowded_s), graph.op("Max", f["base_s"], LEAST_BASE_S))
    cost_s = graph.add(
        graph.mul(wait_s, w["wait"]),
        graph.mul(graph.add(prefill_s, graph.mul(d, graph.add(crowded_s, f["base_s"]))), w["decode"]),
        graph.mul(n, prefill_s, w["stall"], pressed),
        graph.mul(n, d, longer_step_s, w["slowdown"]),
        graph.mul(coalesce_s, w["coalesce"]),
        graph.mul(overflow_s, w["overflow"]),
        graph.mul(spread_s, w["spread"]),
        graph.mul(_saved(graph, f), w["reuse"], -1.0),
    )
    graph.finish(cost_s, "costs")
    return _model(graph)


def _prefill(graph: _Graph, f: dict[str, str]) -> str:
    p, cached = f["prompt_tokens"], f["cached_prompt_tokens"]
    squares = graph.op("Sub", graph.mul(p, p), graph.mul(cached, cached))
    return graph.add(
        graph.mul(f["prefill_s_per_token"], graph.op("Sub", p, cached)),
        graph.mul(f["prefill_s_per_token_squared"], squares),
    )


def _saved(graph: _Graph, f: dict[str, str]) -> str:
    cached = f["cached_prompt_tokens"]
    return graph.add(
        graph.mul(f["prefill_s_per_token"], cached), graph.mul(f["prefill_s_per_token_squared"], cached, cached)
    )


def _overflow(graph: _Graph, f: dict[str, str], crowd_s: str) -> str:
    n, context = f["requests"], f["context_tokens"]
    n_or_1 = graph.op("Max", n, 1.0)
    left = graph.op("Div", f["remaining_decode_tokens"], n_or_1)
    drain_s = graph.mul(graph.add(f["base_s"], crowd_s), left)
    to_come = graph.add(f["remaining_decode_tokens"], f["predicted_output_tokens"])
    wanted = graph.add(context, f["prompt_tokens"], graph.mul(to_come, DECODE_RESERVE_FRACTION))
    kv_deficit = graph.op("Max", graph.op("Sub", wanted, f["kv_tokens"]), 0.0)
    slot_deficit = graph.op("Max", graph.op("Sub", graph.add(n, 1.0), f["max_sequences"]), 0.0)
    kv_share = graph.op("Div", kv_deficit, graph.op("Max", context, 1.0))
    return graph.mul(drain_s, graph.add(kv_share, graph.op("Div", slot_deficit, n_or_1)))


def _model(graph: _Graph) -> ModelProto:
    inputs = [
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["I", len(FEATURE_NAMES)]),
        helper.make_tensor_value_info("weights", TensorProto.FLOAT, [len(WEIGHT_NAMES)]),
    ]
    outputs = [helper.make_tensor_value_info("costs", TensorProto.FLOAT, ["I"])]
    body = helper.make_graph(graph.nodes, "marginal-cost", inputs, outputs, graph.initializers())
    model: ModelProto = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="llmrouter"
    )
    checker.check_model(model, full_check=True)
    return model

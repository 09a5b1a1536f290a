"""The product's network as an ONNX graph: ``product_network``, operator by operator, in double inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from llmrouter.feature_set import LEARNED_INSTANCE_NAMES, LEARNED_LINE_NAMES
from llmrouter.training.agents import product_network as network
from llmrouter.training.agents.told_graph import LOWEST, Graph, terms_of

if TYPE_CHECKING:
    from onnx import ModelProto


def product_model(weights_W: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> ModelProto:
    """Inputs ``instances`` float32 (I, 16) and ``line`` (6,); output ``scores`` (I + 1,), hold's last; any I."""
    graph = Graph()
    f = graph.split(graph.op("Transpose", "instances"), LEARNED_INSTANCE_NAMES)
    line = graph.split("line", LEARNED_LINE_NAMES)
    room = graph.op("Greater", f["has_room"], 0.0)
    terms = terms_of(graph, f)
    shared, hold = _picture(graph, f, line, terms, room)
    linear = graph.array("weights.linear", weights_W[: network.HOLD_AT].reshape(network.PICTURE, network.TERMS))
    most = network.MOST_LOG_WEIGHT
    power = graph.op("Min", graph.op("Max", graph.op("MatMul", shared, linear), -most), most)
    usual = graph.array("weights.usual", np.array([network.USUAL]))
    weights = graph.product(usual, graph.op("Exp", power))
    scores = graph.op("Neg", graph.op("MatMul", weights, graph.op("Concat", *terms, axis=0)))
    held = _hold(graph, f, scores=scores, room=room, bonus=_bonus(graph, hold, weights_W[network.HOLD_AT :]))
    return graph.finish(scores, held)


def _picture(graph: Graph, f: dict[str, str], line: dict[str, str], terms: list[str], room: str) -> tuple[str, str]:
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


def _squashed(graph: Graph, seconds: str, middle_s: float) -> str:
    """``tanh(ln(seconds / middle)/3)``."""
    return graph.op("Tanh", graph.op("Div", graph.op("Log", graph.op("Div", seconds, middle_s)), 3.0))


def _bonus(graph: Graph, seen: str, hold_W: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    """The hold network's answer (1, 1): ``product_network.hold_bonus``."""
    inputs, hidden = network.HOLD_INPUTS, network.HOLD_HIDDEN
    cut = inputs * hidden
    first = hold_W[:cut].reshape(inputs, hidden), hold_W[cut : cut + hidden]
    second = hold_W[cut + hidden : cut + 2 * hidden].reshape(hidden, 1), hold_W[-1:]
    return graph.perceptron("hold", seen, [first, second])


def _hold(graph: Graph, f: dict[str, str], *, scores: str, room: str, bonus: str) -> str:
    """Hold's score (1, 1): the best one's and the bonus; far less where the request would not open the best one."""
    masked = graph.op("Where", room, scores, LOWEST)
    best = graph.most(masked)
    openable = graph.op("Where", graph.op("LessOrEqual", f["queued_prefill_tokens"], 0.0), f["prefill_first"], 0.0)
    opens = graph.most(graph.op("Where", graph.op("And", room, graph.op("Equal", masked, best)), openable, 0.0))
    forbidden = graph.op("Where", graph.op("Greater", opens, 0.0), 0.0, network.FORBIDDEN)
    return graph.op("Sub", graph.sum(best, bonus), forbidden)

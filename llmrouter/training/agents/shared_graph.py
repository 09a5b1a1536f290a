"""The network of ``evolution`` as an ONNX graph: ``shared_network``, operator by operator, in double inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto

from llmrouter.feature_set import LEARNED_INSTANCE_NAMES, LEARNED_LINE_NAMES
from llmrouter.training.agents import shared_network as network
from llmrouter.training.agents.network import HOLD_SHAPE, SCORE_SHAPE
from llmrouter.training.agents.product_network import RESERVE
from llmrouter.training.agents.told_graph import LOWEST, Graph, terms_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import ModelProto


def shared_model(weights_W: NDArray[np.float64]) -> ModelProto:
    """Inputs ``instances`` float32 (I, 16) and ``line`` (6,); output ``scores`` (I + 1,), hold's last; any I."""
    graph = Graph()
    f = graph.split(graph.op("Transpose", "instances"), LEARNED_INSTANCE_NAMES)
    line = graph.split("line", LEARNED_LINE_NAMES)
    terms = terms_of(graph, f)
    open_ = graph.op("Greater", f["has_room"], 0.0)
    room = _room(graph, f)
    hold = _hold(graph, f, line, open_=open_, room=room, coalesce=terms[7])
    seen = graph.op("Transpose", graph.op("Concat", *_instances(graph, f, terms, open_, room, hold), axis=0))
    cut = SCORE_SHAPE.count
    scores = graph.op("Transpose", graph.perceptron("score", seen, list(SCORE_SHAPE.layers(weights_W[:cut]))))
    asked = graph.op("Concat", *hold, axis=1)
    return graph.finish(scores, graph.perceptron("hold", asked, list(HOLD_SHAPE.layers(weights_W[cut:]))))


def _room(graph: Graph, f: dict[str, str]) -> str:
    to_come = graph.product(graph.sum(f["remaining_decode_tokens"], f["predicted_output_tokens"]), RESERVE)
    wanted = graph.sum(f["context_tokens"], f["prompt_tokens"], to_come)
    room = graph.product(graph.op("Sub", 1.0, graph.op("Div", wanted, f["kv_tokens"])), network.ROOM_SCALE)
    return graph.op("Max", graph.op("Min", room, network.MOST_ROOM), -network.MOST_ROOM)


def _hold(graph: Graph, f: dict[str, str], line: dict[str, str], *, open_: str, room: str, coalesce: str) -> list[str]:
    """What hold sees, each (1, 1)."""
    busy = graph.op("And", open_, graph.op("Greater", f["queued_prefill_tokens"], 0.0))
    held = graph.op("Div", graph.op("Log", graph.sum(line["line/held"], 1.0)), 5.0)
    return [
        graph.op("Unsqueeze", held, "axis0"),
        graph.op("Unsqueeze", graph.op("Min", line["line/head_age_s"], 5.0), "axis0"),
        graph.mean(graph.op("Cast", open_, to=TensorProto.DOUBLE)),
        graph.mean(graph.op("Cast", busy, to=TensorProto.DOUBLE)),
        _least(graph, coalesce, open_),
        graph.mean(room),
        graph.op("Max", graph.most(graph.op("Where", open_, room, LOWEST)), -network.MOST_ROOM),
        graph.mean(graph.op("Div", f["requests"], f["max_sequences"])),
        graph.mean(graph.op("Div", f["predicted_output_tokens"], 500.0)),
    ]


def _instances(  # noqa: PLR0917 - private, called once
    graph: Graph, f: dict[str, str], terms: list[str], open_: str, room: str, hold: list[str]
) -> list[str]:
    """What is seen of instances, each (1, I)."""
    n, b = f["requests"], f["base_s"]
    own, imposed, coalesce = graph.sum(*terms[:5]), graph.sum(terms[5], terms[6]), terms[7]
    cost = graph.sum(own, imposed, graph.product(coalesce, 2.0))
    step = graph.sum(b, graph.product(f["sequence_s"], n), graph.product(f["context_s_per_token"], f["context_tokens"]))
    left = graph.op("Div", f["remaining_decode_tokens"], graph.op("Max", n, 1.0))
    queued = graph.op("Greater", f["queued_prefill_tokens"], 0.0)
    ones = graph.op("Add", graph.product(n, 0.0), 1.0)
    return [
        graph.op("Div", n, f["max_sequences"]),
        graph.op("Div", f["context_tokens"], f["kv_tokens"]),
        terms[1],
        graph.op("Div", f["remaining_decode_tokens"], f["kv_tokens"]),
        room,
        graph.product(step, 10.0),
        graph.op("Div", left, 500.0),
        graph.op("Div", own, 20.0),
        graph.op("Div", imposed, 20.0),
        coalesce,
        graph.op("Cast", queued, to=TensorProto.DOUBLE),
        *(_above_least(graph, seconds, open_) for seconds in (own, imposed, cost)),
        graph.product(f["prefill_s_per_token"], f["prompt_tokens"], 5.0),
        graph.op("Div", f["predicted_output_tokens"], 500.0),
        *(graph.product(ones, shown) for shown in hold[:4]),
    ]


def _least(graph: Graph, seconds: str, open_: str) -> str:
    """The least of those that have room, (1, 1)."""
    return graph.op("Neg", graph.most(graph.op("Where", open_, graph.op("Neg", seconds), LOWEST)))


def _above_least(graph: Graph, seconds: str, open_: str) -> str:
    """How far above the least, in fifths of a second, at most 5."""
    above = graph.op("Sub", seconds, _least(graph, seconds, open_))
    return graph.op("Min", graph.op("Div", above, 5.0), 5.0)

"""A text model as an ONNX graph with 8-bit embeddings, held against the network it was made from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from llmrouter.lengths.distribution import LEVELS, MEDIAN, MIN_TOKENS
from llmrouter.lengths.text import DENSE, HASH_BUCKETS, IDS
from llmrouter.training.length_text_network import BAGS, segments
from llmrouter.training.length_text_rows import LABELS
from llmrouter.training.length_text_training import DENSE_LIMIT
from llmrouter.training.onnx_files import ExportDisagreesError, stable_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrouter.training.length_text_training import TextModel

    Floats = NDArray[np.float32]

OPSET = 17
IR_VERSION = 9
TOLERANCE = 1e-4
"""Largest difference between graph and network, in ln tokens."""

_INT8_MAX = 127.0
_CHUNK = 512


def rounded(model: TextModel) -> TextModel:
    """The model with the embeddings that the graph holds: 8 bits and one scale for each column."""
    small_VD, scale_D = _quantised(model.parameters["table"])
    table_VD = (small_VD.astype(np.float32) * scale_D).astype(np.float32)
    return replace(model, parameters={**model.parameters, "table": table_VD})


def export(model: TextModel, ids_NK: NDArray[np.int32], dense_ND: Floats) -> tuple[bytes, float]:
    """ONNX bytes, and how far they are from the network at most, in ln tokens.

    The graph takes ``ids`` float32 (N, IDS) and ``dense`` float32 (N, DENSE) and gives ``quantiles`` float32
    (N, levels) and ``rank`` float32 (N,), both in tokens within 1 and the model's largest.

    Args:
        model: of ``rounded``.
        ids_NK: rows to hold graph and network against each other on.
        dense_ND: their dense features.

    Raises:
        ExportDisagreesError: they differ by more than TOLERANCE.
    """
    exported = stable_bytes(_graph(model))
    session = _session(exported)
    quantiles_NQ = model.predict(ids_NK, dense_ND)
    highest = np.log(np.float32(model.max_tokens))
    worst = 0.0
    for start in range(0, len(ids_NK), _CHUNK):
        rows = slice(start, start + _CHUNK)
        inputs = {"ids": ids_NK[rows].astype(np.float32), "dense": dense_ND[rows]}
        got_NQ, got_N = session.run(["quantiles", "rank"], inputs)
        for got, want in ((got_NQ, quantiles_NQ[rows]), (got_N, quantiles_NQ[rows, MEDIAN])):
            if got.shape != want.shape or not np.isfinite(got).all():
                raise ExportDisagreesError(f"the graph answers {got.shape}, or what is not finite, to {want.shape}")
            difference = np.abs(np.log(got) - np.clip(want, np.log(MIN_TOKENS), highest))
            worst = max(worst, float(difference.max(initial=0.0)))
    if worst > TOLERANCE:
        raise ExportDisagreesError(f"graph and network differ by up to {worst:g} in ln tokens")
    return exported, worst


def _quantised(table_VD: Floats) -> tuple[NDArray[np.int8], Floats]:
    largest_D = np.abs(table_VD).max(axis=0)
    scale_D = (np.where(largest_D > 0.0, largest_D, 1.0) / _INT8_MAX).astype(np.float32)
    return np.rint(table_VD / scale_D).astype(np.int8), scale_D


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: int) -> str:
        """Adds an operator; the name of its result."""
        output = output or f"t{len(self.nodes)}"
        node = helper.make_node(kind, list(inputs), [output], name=f"{kind}-{output}")
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        self.nodes.append(node)
        return output

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Adds a constant; its name."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def columns(self, source: str, start: int, stop: int) -> str:
        """Columns of a matrix."""
        bounds = [self._index(start), self._index(stop), self._index(1)]
        return self.op("Slice", source, bounds[0], bounds[1], bounds[2])

    def _index(self, value: int) -> str:
        name = f"index{value}"
        if name not in {one.name for one in self.constants}:
            self.constant(name, np.array([value], dtype=np.int64))
        return name


def _graph(model: TextModel) -> ModelProto:
    graph = _Graph()
    hidden = _inputs(graph, model)
    for layer in ("first", "second"):
        hidden = graph.op("Relu", _dense(graph, hidden, layer, model))
    out = _dense(graph, hidden, "last", model)
    median = graph.columns(out, 0, 1)
    steps = graph.op("Softplus", graph.columns(out, 1, len(LEVELS)))
    sums = graph.constant("sums", _sums(model))
    quantiles = graph.op("Add", median, graph.op("MatMul", steps, sums))
    low = graph.constant("low", np.array(np.log(MIN_TOKENS), dtype=np.float32))
    high = graph.constant("high", np.array(np.log(np.float32(model.max_tokens)), dtype=np.float32))
    graph.op("Exp", graph.op("Clip", quantiles, low, high), output="quantiles")
    flat = graph.op("Squeeze", graph.op("Clip", median, low, high), "index1")
    graph.op("Exp", flat, output="rank")
    return _model(graph)


def _inputs(graph: _Graph, model: TextModel) -> str:
    """The first layer's input: embeddings of the labels, the mean embedding of each bag, dense features."""
    table_VD, scale_D = _quantised(model.parameters["table"])
    width = table_VD.shape[1]
    zero = graph.constant("zero", np.array(0, dtype=np.int32))
    last = graph.constant("last_id", np.array(HASH_BUCKETS - 1, dtype=np.int32))
    ids = graph.op("Clip", graph.op("Cast", "ids", to=TensorProto.INT32), zero, last)
    small = graph.op("Gather", graph.constant("table", table_VD), ids, axis=0)
    scale = graph.constant("table_scale", scale_D)
    wide = graph.op("Cast", small, to=TensorProto.FLOAT)
    labels = graph.op("Mul", graph.columns(wide, 0, LABELS), scale)
    shape = graph.constant("flat_labels", np.array([-1, LABELS * width], dtype=np.int64))
    parts = [graph.op("Reshape", labels, shape)]
    which = graph.constant("bags", segments())
    summed = graph.op("MatMul", which, graph.columns(wide, LABELS, IDS))
    known = graph.op("Cast", graph.op("Greater", graph.columns(ids, LABELS, IDS), zero), to=TensorProto.FLOAT)
    count = graph.op("MatMul", known, graph.constant("bags_turned", segments().T))
    one = graph.constant("one", np.array(1.0, dtype=np.float32))
    count = graph.op("Unsqueeze", graph.op("Max", count, one), graph.constant("axis2", np.array([2], dtype=np.int64)))
    mean = graph.op("Mul", graph.op("Div", summed, count), scale)
    shape = graph.constant("flat_bags", np.array([-1, len(BAGS) * width], dtype=np.int64))
    parts.append(graph.op("Reshape", mean, shape))
    centred = graph.op("Sub", "dense", graph.constant("dense_mean", model.mean))
    scaled = graph.op("Mul", centred, graph.constant("dense_scale", model.scale))
    limits = [graph.constant(f"limit{sign:+.0f}", np.array(sign * DENSE_LIMIT, dtype=np.float32)) for sign in (-1, 1)]
    parts.append(graph.op("Clip", scaled, *limits))
    return graph.op("Concat", *parts, axis=1)


def _dense(graph: _Graph, source: str, layer: str, model: TextModel) -> str:
    weights = graph.constant(layer, model.parameters[layer])
    bias = graph.constant(f"{layer}_bias", model.parameters[f"{layer}_bias"])
    return graph.op("Gemm", source, weights, bias)


def _sums(model: TextModel) -> Floats:
    """Which steps (rows) lie between the median and each level (columns), with their sign and the model's spread."""
    steps = len(LEVELS) - 1
    sums = np.zeros((steps, len(LEVELS)), dtype=np.float32)
    for level in range(len(LEVELS)):
        sums[level:MEDIAN, level] = -model.spread_below
        sums[MEDIAN:level, level] = model.spread_above
    return sums


def _model(graph: _Graph) -> ModelProto:
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.FLOAT, ["N", IDS]),
        helper.make_tensor_value_info("dense", TensorProto.FLOAT, ["N", DENSE]),
    ]
    outputs = [
        helper.make_tensor_value_info("quantiles", TensorProto.FLOAT, ["N", len(LEVELS)]),
        helper.make_tensor_value_info("rank", TensorProto.FLOAT, ["N"]),
    ]
    body = helper.make_graph(graph.nodes, "output-length-text", inputs, outputs, graph.constants)
    opsets = [helper.make_opsetid("", OPSET)]
    model: ModelProto = helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION, producer_name="llmrouter")
    checker.check_model(model, full_check=True)
    return model


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

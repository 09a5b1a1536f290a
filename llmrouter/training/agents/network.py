"""Multilayer perceptrons as one vector of weights: layer after layer, its matrix (inputs, outputs) by rows, its biases.

``rollout`` reads the same vector; export writes it as a graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.training.agents import rollout, shared_network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.random import Generator
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths of a perceptron, from its inputs to its outputs."""

    widths: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many weights it has."""
        return sum(rows * columns + columns for rows, columns in self._pairs())

    def layers(self, weights_W: Floats) -> Iterator[tuple[Floats, Floats]]:
        """Matrix and biases of each layer, as views."""
        at = 0
        for rows, columns in self._pairs():
            bias = at + rows * columns
            yield weights_W[at:bias].reshape(rows, columns), weights_W[bias : bias + columns]
            at = bias + columns

    def first_weights(self, rng: Generator, *, last_scale: float = 1.0) -> Floats:
        """Matrices from N(0, 2/inputs) (He et al., 2015), the last one times ``last_scale``; biases 0."""
        parts, pairs = [], list(self._pairs())
        for number, (rows, columns) in enumerate(pairs):
            scale = last_scale if number == len(pairs) - 1 else 1.0
            parts += [scale * np.sqrt(2.0 / rows) * rng.standard_normal(rows * columns), np.zeros(columns)]
        return np.concatenate(parts)

    def _pairs(self) -> list[tuple[int, int]]:
        return list(zip(self.widths, self.widths[1:], strict=False))


def paper_shape(instances: int = 4) -> Shape:
    """27-64-64-5 where there are four instances."""
    inputs = rollout.PAPER_PER_INSTANCE * instances + rollout.PAPER_QUEUE
    return Shape((inputs, rollout.HIDDEN, rollout.HIDDEN, instances + 1))


SCORE_SHAPE = Shape((shared_network.PER_INSTANCE, shared_network.HIDDEN, 1))
HOLD_SHAPE = Shape((shared_network.HOLD, shared_network.HOLD_HIDDEN, 1))
SHARED_WEIGHTS = SCORE_SHAPE.count + HOLD_SHAPE.count
"""Of the network that all instances share: a score for each, and one for hold."""


def paper_values(weights_W: Floats, states_NS: Floats, instances: int = 4) -> Floats:
    """Action values (N, I + 1) of states."""
    return _forward(paper_shape(instances), weights_W, states_NS, tanh=False)


def shared_scores(weights_W: Floats, states_NS: Floats, instances: int = 4) -> Floats:
    """Scores (N, I + 1), hold's last."""
    cut = SCORE_SHAPE.count
    rows = states_NS[:, : shared_network.PER_INSTANCE * instances].reshape(len(states_NS), instances, -1)
    scores_NI = _forward(SCORE_SHAPE, weights_W[:cut], rows, tanh=True)[..., 0]
    hold_N = _forward(HOLD_SHAPE, weights_W[cut:], states_NS[:, -shared_network.HOLD :], tanh=True)
    return np.concatenate([scores_NI, hold_N], axis=1)


def _forward(shape: Shape, weights_W: Floats, inputs: Floats, *, tanh: bool) -> Floats:
    value = inputs
    layers = list(shape.layers(weights_W))
    for number, (matrix, bias) in enumerate(layers):
        value = value @ matrix + bias
        if number < len(layers) - 1:
            value = np.tanh(value) if tanh else np.maximum(value, 0.0)
    return value

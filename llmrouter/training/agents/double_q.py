"""Double Q-learning (van Hasselt et al., 2016) over transitions that last: the update and memory of two learners."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llmrouter.training.agents.rollout import PAPER_PER_INSTANCE

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    from llmrouter.training.agents.environment import Steps
    from llmrouter.training.agents.network import Shape
    from llmrouter.training.agents.rewards import Transitions

    Array = Any
    Batches = dict[str, NDArray[np.generic]]

COMPILED = {"xla_cpu_multi_thread_eigen": False}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Numbers of the update. ``polyak`` is the share of the network that its target takes over after every update."""

    learning_rate: float
    polyak: float
    batch: int = 512
    updates: int = 200
    """Per episode."""


class Memory:
    """The transitions of the last episodes."""

    def __init__(self, episodes: int, instances: int) -> None:
        self._episodes: deque[Batches] = deque(maxlen=episodes)
        self._instances = instances

    def add(self, steps: Steps, transitions: Transitions) -> None:
        """Takes in an episode."""
        self._episodes.append(
            {
                "state": steps.state,
                "action": steps.action,
                "reward": transitions.reward.astype(np.float32),
                "discount": transitions.discount.astype(np.float32),
                "next_state": np.concatenate([steps.state[1:], np.zeros_like(steps.state[:1])]),
                "next_allowed": np.concatenate([steps.allowed[1:], np.ones_like(steps.allowed[:1])]),
            }
        )

    def draw(self, recipe: Recipe, rng: Generator, *, permuted: bool) -> Batches:
        """Batches (updates, batch, …), with the instances of each transition in random order if ``permuted``."""
        columns = {name: np.concatenate([one[name] for one in self._episodes]) for name in self._episodes[0]}
        picked_N = rng.integers(0, len(columns["action"]), recipe.updates * recipe.batch)
        drawn = {name: column[picked_N] for name, column in columns.items()}
        if permuted:
            drawn = reordered(drawn, rng.permuted(np.tile(np.arange(self._instances), (len(picked_N), 1)), axis=1))
        return {name: column.reshape(recipe.updates, recipe.batch, *column.shape[1:]) for name, column in drawn.items()}


def reordered(drawn: Batches, order_NI: NDArray[np.int64]) -> Batches:
    """The same rows where instance ``order[i]`` stands at place i: equal instances are interchangeable."""
    count, instances = order_NI.shape
    places_NA = np.concatenate([order_NI, np.full((count, 1), instances)], axis=1)
    cut = PAPER_PER_INSTANCE * instances
    moved: Batches = {}
    for name, column in drawn.items():
        if name.endswith("state"):
            blocks = column[:, :cut].reshape(count, instances, PAPER_PER_INSTANCE)
            first = np.take_along_axis(blocks, order_NI[:, :, None], axis=1).reshape(count, cut)
            moved[name] = np.concatenate([first, column[:, cut:]], axis=1)
        elif name.endswith("allowed"):
            moved[name] = np.take_along_axis(column, places_NA, axis=1)
        elif name == "action":
            moved[name] = np.argmax(places_NA == column[:, None], axis=1)
        else:
            moved[name] = column
    return moved


class Learner:
    """A network, its slow target and its optimiser."""

    def __init__(self, shape: Shape, recipe: Recipe, rng: Generator) -> None:
        self._shape, self._recipe = shape, recipe
        first_W = jnp.asarray(shape.first_weights(rng), jnp.float32)
        self._online: Array = first_W
        self._target: Array = first_W
        self._state: Any = _optimiser(recipe).init(first_W)

    @property
    def weights(self) -> NDArray[np.float64]:
        """Of the network, as it decides."""
        return np.asarray(self._online, np.float64)

    def update(self, batches: Batches) -> float:
        """One update for every batch; returns their mean loss."""
        given = {name: jnp.asarray(column) for name, column in batches.items()}
        self._online, self._target, self._state, loss = _updates(
            self._online, self._target, self._state, given, shape=self._shape, recipe=self._recipe
        )
        return float(loss)


def values(weights_W: Array, states_NS: Array, shape: Shape) -> Array:
    """Action values (N, A): ReLU between the layers."""
    value = states_NS
    at, last = 0, len(shape.widths) - 2
    for number, (rows, columns) in enumerate(zip(shape.widths, shape.widths[1:], strict=False)):
        bias = at + rows * columns
        value = value @ weights_W[at:bias].reshape(rows, columns) + weights_W[bias : bias + columns]
        value = value if number == last else jax.nn.relu(value)
        at = bias + columns
    return value


def _optimiser(recipe: Recipe) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(10.0), optax.adam(recipe.learning_rate))


@partial(jax.jit, static_argnames=("shape", "recipe"), compiler_options=COMPILED)
def _updates(
    online: Array,
    target: Array,
    state: Any,  # noqa: ANN401 - the optimiser's own
    batches: dict[str, Array],
    *,
    shape: Shape,
    recipe: Recipe,
) -> tuple[Array, Array, Any, Array]:
    """The updates of an episode."""

    def loss(weights: Array, target: Array, batch: dict[str, Array]) -> Array:
        next_NA = values(jax.lax.stop_gradient(weights), batch["next_state"], shape)
        best_N = jnp.argmax(jnp.where(batch["next_allowed"], next_NA, -jnp.inf), axis=1)
        next_N = jnp.take_along_axis(values(target, batch["next_state"], shape), best_N[:, None], axis=1)[:, 0]
        wanted_N = batch["reward"] + batch["discount"] * jax.lax.stop_gradient(next_N)
        said_N = jnp.take_along_axis(values(weights, batch["state"], shape), batch["action"][:, None], axis=1)[:, 0]
        return optax.huber_loss(said_N, wanted_N).mean()

    def one(carry: tuple[Array, Array, Any], batch: dict[str, Array]) -> tuple[tuple[Array, Array, Any], Array]:
        online, target, state = carry
        found, slope = jax.value_and_grad(loss)(online, target, batch)
        change, state = _optimiser(recipe).update(slope, state, online)
        online = optax.apply_updates(online, change)
        return (online, optax.incremental_update(online, target, recipe.polyak), state), found

    (online, target, state), losses = jax.lax.scan(one, (online, target, state), batches)
    return online, target, state, losses.mean()

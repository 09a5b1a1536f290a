"""Distillation: a shared network that evolution found, taught to the paper's 27-64-64-5.

DAgger (Ross et al., 2011): the teacher decides in the first episodes and the student in all later ones, the teacher
says of every state what it would have done, and the student learns that from all episodes so far, by cross-entropy over
the allowed actions and with the instances in random order. Teacher and student look at the same instants through
different states, so the student can only follow as far as the paper's 27 numbers tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llmrouter.training.agents import rollout
from llmrouter.training.agents.double_q import COMPILED, reordered, values
from llmrouter.training.agents.environment import Decider, Environment
from llmrouter.training.agents.learning import TRAINING_SEEDS, Learned, OnPoint, course_in, nobody
from llmrouter.training.agents.network import Shape, paper_shape, shared_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrouter.training.agents.environment import Steps

    Array = Any
    Columns = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Numbers of the learner."""

    episodes_per_round: int = 5
    updates: int = 400
    """Per round."""
    batch: int = 512
    learning_rate: float = 1e-3


def train(
    teacher: Learned,
    *,
    seed: int,
    episodes: int = 50,
    environment: Environment | None = None,
    recipe: Recipe | None = None,
    on_point: OnPoint = nobody,
) -> Learned:
    """Learns from ``episodes`` episodes; the same arguments give the same agent."""
    environment, recipe = environment or Environment(), recipe or Recipe()
    rng = np.random.default_rng([seed, 4])
    shape = paper_shape(environment.instances)
    weights_W = jnp.asarray(shape.first_weights(rng, last_scale=0.1), jnp.float32)
    state = optax.adam(recipe.learning_rate).init(weights_W)
    known: list[Columns] = []
    course = course_in(environment, _decider(weights_W))
    done = 0
    for done in range(
        recipe.episodes_per_round, max(episodes, recipe.episodes_per_round) + 1, recipe.episodes_per_round
    ):
        actor = _decider(weights_W) if known else teacher.decider
        met = rng.choice(TRAINING_SEEDS, recipe.episodes_per_round).tolist()
        known.extend(_labelled(environment.steps(actor, one), teacher) for one in met)
        batches = _draw(known, environment.instances, recipe, rng)
        weights_W, state = _updates(weights_W, state, batches, shape=shape, learning_rate=recipe.learning_rate)
        decider = _decider(weights_W)
        on_point(done, course.look(done, decider), decider.weights)
    reward = f"agreement with {teacher.learner} of seed {teacher.seed}"
    return course.learned("distil", reward, seed=seed, episodes=done)


def agreement(student: Learned, teacher: Learned, environment: Environment, seed: int) -> float:
    """Share of the decisions of a student's episode that its teacher would have made."""
    steps = environment.steps(student.decider, seed)
    return float((_wanted(steps, teacher) == steps.action).mean())


def _decider(weights_W: Array | NDArray[np.float64]) -> Decider:
    return Decider(rollout.SHIELDED, np.asarray(weights_W, np.float64))


def _wanted(steps: Steps, teacher: Learned) -> NDArray[np.int64]:
    """What the teacher would have done (T,)."""
    scores_TA = shared_scores(teacher.decider.weights, steps.shared.astype(np.float64), steps.own_s.shape[1])
    return np.asarray(np.argmax(np.where(steps.allowed, scores_TA, -np.inf), axis=1))


def _labelled(steps: Steps, teacher: Learned) -> Columns:
    return {"state": steps.state, "allowed": steps.allowed, "action": _wanted(steps, teacher)}


def _draw(known: list[Columns], instances: int, recipe: Recipe, rng: np.random.Generator) -> dict[str, Array]:
    columns = {name: np.concatenate([one[name] for one in known]) for name in known[0]}
    picked_N = rng.integers(0, len(columns["action"]), recipe.updates * recipe.batch)
    order_NI = rng.permuted(np.tile(np.arange(instances), (len(picked_N), 1)), axis=1)
    drawn = reordered({name: column[picked_N] for name, column in columns.items()}, order_NI)
    size = (recipe.updates, recipe.batch)
    return {name: jnp.asarray(column.reshape(*size, *column.shape[1:])) for name, column in drawn.items()}


@partial(jax.jit, static_argnames=("shape", "learning_rate"), compiler_options=COMPILED)
def _updates(
    weights_W: Array,
    state: Any,  # noqa: ANN401 - the optimiser's own
    batches: dict[str, Array],
    *,
    shape: Shape,
    learning_rate: float,
) -> tuple[Array, Any]:
    def loss(weights: Array, batch: dict[str, Array]) -> Array:
        logits_NA = jnp.where(batch["allowed"], values(weights, batch["state"], shape), -1e9)
        return optax.softmax_cross_entropy_with_integer_labels(logits_NA, batch["action"]).mean()

    def one(carry: tuple[Array, Any], batch: dict[str, Array]) -> tuple[tuple[Array, Any], None]:
        weights, state = carry
        change, state = optax.adam(learning_rate).update(jax.grad(loss)(weights, batch), state, weights)
        return (optax.apply_updates(weights, change), state), None

    (weights_W, state), _ = jax.lax.scan(one, (weights_W, state), batches)
    return weights_W, state

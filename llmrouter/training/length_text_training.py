"""Trains the network of a text model: the same rows, seed and machine give the same numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llmrouter.errors import InvalidInputError
from llmrouter.lengths.distribution import LEVELS, MEDIAN
from llmrouter.lengths.text import DENSE_NAMES, HASH_BUCKETS
from llmrouter.training.length_text_network import Losses, Sizes, answers, first_parameters, loss, segments
from llmrouter.training.length_text_rows import APPLICATION_KNOWN, TextSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from llmrouter.training.length_text_network import Array, Parameters

    Floats = NDArray[np.float32]

MIN_ROWS = 200
DENSE_LIMIT = 5.0
_FLAGS = tuple(DENSE_NAMES.index(name) for name in ("has_prompt", "prompt_tokens_known", "application_known"))
_HAS_PROMPT, _TOKENS_KNOWN, _LOG_TOKENS = (
    DENSE_NAMES.index(name) for name in ("has_prompt", "prompt_tokens_known", "log_prompt_tokens")
)
_TEXT_VALUES = slice(_LOG_TOKENS + 1, APPLICATION_KNOWN)
_COMPILED = {"xla_cpu_multi_thread_eigen": False}
_CHUNK = 1_024
_LEAST_STEP = 1e-3
_SPREADS = (0.5, 3.0)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a text model is trained.

    Each row is shown with its application, its task or neither, and with its model, its family or neither; n-grams are
    left out at random, and some rows are shown without their words or without any prompt, so that the network answers
    from what it is given. Embeddings of n-grams in fewer than ``min_prompts`` prompts stay zero. Training sees all rows
    ``epochs`` times, or makes ``min_updates`` where that is more, but sees ``most_rows`` at most; it is cut into
    ``rounds``. What is kept is a moving average of the parameters over about a round.
    """

    sizes: Sizes = field(default_factory=Sizes)
    losses: Losses = field(default_factory=Losses)
    epochs: int = 16
    min_updates: int = 800
    most_rows: float = 1e9
    rounds: int = 16
    learning_rate: float = 4e-3
    batch: int = 256
    list_size: int = 16
    min_prompts: int = 15
    without_application: float = 0.25
    with_task: float = 0.4
    without_model: float = 0.2
    with_family: float = 0.35
    without_words: float = 0.4
    without_prompt: float = 0.1
    without_prompt_tokens: float = 0.05
    id_dropout: float = 0.7
    dropout: float = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class TextModel:
    """A trained network. Dense features enter as (value − ``mean``) · ``scale``, within ±DENSE_LIMIT.

    ``spread_below`` and ``spread_above`` widen the quantiles about the median: set after training, so that the 10 % and
    the 90 % quantile hold on the rows for validation.
    """

    parameters: dict[str, Floats]
    mean: Floats
    scale: Floats
    max_tokens: float
    rounds: int
    validation_pinball: float
    spread_below: float = 1.0
    spread_above: float = 1.0

    def standardised(self, dense_ND: Floats) -> Floats:
        """What the network sees of the dense features."""
        return _standardised(dense_ND, self.mean, self.scale)

    def predict(self, ids_NK: NDArray[np.int32], dense_ND: Floats) -> Floats:
        """Quantiles in ln tokens (N, levels), before any clipping."""
        parameters = {key: jnp.asarray(value) for key, value in self.parameters.items()}
        quantiles_NQ = _predict(parameters, ids_NK, self, dense_ND)
        apart_NQ = quantiles_NQ - quantiles_NQ[:, MEDIAN : MEDIAN + 1]
        spread_Q = np.where(np.arange(len(LEVELS)) < MEDIAN, self.spread_below, self.spread_above).astype(np.float32)
        return quantiles_NQ + apart_NQ * (spread_Q - np.float32(1.0))


def shown(rows: TextSet, *, application: int, model: int) -> tuple[NDArray[np.int32], Floats]:
    """Ids (N, IDS) and dense features (N, DENSE) of all rows in one way of naming application and model.

    ``application``: 0 not at all, 1 as the request does, 2 by its task. ``model``: 0 not at all, 1 as the request
    does, 2 by its family.
    """
    ids_NK = np.concatenate([rows.labels[:, application, model], rows.text], axis=1)
    dense_ND = rows.dense.copy()
    dense_ND[:, APPLICATION_KNOWN] = ids_NK[:, 0] > 0
    return ids_NK, dense_ND


def train(rows: TextSet, recipe: Recipe, *, seed: int, on_round: Callable[[int, float], None]) -> TextModel:
    """Trains on all rows but those for validation, and keeps the round that foretells these best.

    Args:
        rows: at least MIN_ROWS of them.
        recipe: how.
        seed: of the first parameters and of everything drawn.
        on_round: called after each round with its number, from 1, and the pinball loss on the rows for validation.

    Raises:
        InvalidInputError: too few rows.
    """
    if len(rows) < MIN_ROWS or rows.validation.all() or not rows.validation.any():
        raise InvalidInputError(f"{len(rows)} rows are too few to learn from: at least {MIN_ROWS} with varied prompts")
    learned, checked = rows.take(~rows.validation), rows.take(rows.validation)
    mean_D, scale_D = _standards(learned.dense)
    log_tokens_N = np.log(np.maximum(learned.output_tokens, 1.0)).astype(np.float32)
    parameters = first_parameters(seed, recipe.sizes, np.quantile(log_tokens_N, LEVELS))
    kept_V = _kept(learned, recipe.min_prompts)
    updates = _updates(learned, recipe)
    state = _optimiser(recipe, updates).init(parameters)
    max_tokens = float(np.ceil(2.0 * rows.output_tokens.max()))
    average = parameters
    best = TextModel({}, mean_D, scale_D, max_tokens, rounds=0, validation_pinball=np.inf)
    batches = _endless(learned, recipe, np.random.default_rng([seed, 1]))
    for number in range(1, recipe.rounds + 1):
        for chosen_B, ids_BK, dense_BD, dropout_BH in islice(batches, updates // recipe.rounds):
            standard_BD = _standardised(dense_BD, mean_D, scale_D)
            batch = (ids_BK, standard_BD, dropout_BH, log_tokens_N[chosen_B])
            parameters, average, state = _step(
                parameters, average, state, kept_V, batch, recipe=recipe, updates=updates
            )
        kept = {key: np.asarray(value) for key, value in average.items()}
        kept["table"] = kept["table"] * kept_V[:, None]
        model = TextModel(kept, mean_D, scale_D, max_tokens, rounds=number, validation_pinball=0.0)
        pinball = _validation_pinball(model, checked)
        on_round(number, pinball)
        if pinball < best.validation_pinball:
            best = replace(model, validation_pinball=pinball)
    if not best.parameters:
        raise InvalidInputError("training did not converge on these rows")
    return _spread(best, checked)


def _updates(rows: TextSet, recipe: Recipe) -> int:
    """How many updates training makes: a multiple of the rounds."""
    each = len(_batches(rows.group, recipe, np.random.default_rng(0)))
    batch = min(recipe.batch, len(rows))
    wanted = min(max(recipe.epochs * each, recipe.min_updates), int(recipe.most_rows / batch))
    return max(1, wanted // recipe.rounds) * recipe.rounds


def _optimiser(recipe: Recipe, updates: int) -> optax.GradientTransformation:
    """Adam with cosine decay after a short warm-up."""
    highest = recipe.learning_rate
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, highest, max(1, updates // 20), updates, highest * 0.02))


@partial(jax.jit, static_argnames=("recipe", "updates"), compiler_options=_COMPILED)
def _step(
    parameters: Parameters,
    average: Parameters,
    state: Any,  # noqa: ANN401 - the optimiser's own
    kept_V: Array,
    batch: tuple[Array, ...],
    *,
    recipe: Recipe,
    updates: int,
) -> tuple[Parameters, Parameters, Any]:
    """One update."""

    def batch_loss(parameters: Parameters) -> Array:
        ids_BK, dense_BD, dropout_BH, log_tokens_B = batch
        quantiles_BQ = answers(parameters, ids_BK, dense_BD, segments_FT=segments(), kept_V=kept_V, dropout=dropout_BH)
        return loss(quantiles_BQ, log_tokens_B, list_size=recipe.list_size, weights=recipe.losses)

    changes, state = _optimiser(recipe, updates).update(jax.grad(batch_loss)(parameters), state, parameters)
    parameters = optax.apply_updates(parameters, changes)
    share = 1.0 / max(2, updates // recipe.rounds)
    return parameters, optax.incremental_update(parameters, average, share), state


def _endless(
    rows: TextSet, recipe: Recipe, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.int32], Floats, Floats]]:
    while True:
        yield from _epoch(rows, recipe, rng)


def _epoch(
    rows: TextSet, recipe: Recipe, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.int32], Floats, Floats]]:
    """Batches of row numbers, ids, dense features and dropout factors."""
    for chosen_B in _batches(rows.group, recipe, rng):
        size = len(chosen_B)
        application_B = _drawn(rng, size, recipe.without_application, recipe.with_task)
        model_B = _drawn(rng, size, recipe.without_model, recipe.with_family)
        labels_BL = rows.labels[chosen_B, application_B, model_B]
        words_B = rng.random(size) >= recipe.without_words
        prompt_B = rng.random(size) >= recipe.without_prompt
        left_BT = rng.random((size, rows.text.shape[1]), dtype=np.float32) >= recipe.id_dropout
        text_BT = rows.text[chosen_B] * (left_BT & (words_B & prompt_B)[:, None])
        dense_BD = rows.dense[chosen_B]
        dense_BD[:, APPLICATION_KNOWN] = labels_BL[:, 0] > 0
        dense_BD[:, _HAS_PROMPT] *= prompt_B
        dense_BD[:, _TEXT_VALUES] *= prompt_B[:, None]
        dense_BD[:, [_TOKENS_KNOWN, _LOG_TOKENS]] *= (rng.random(size) >= recipe.without_prompt_tokens)[:, None]
        dropout_BH = rng.random((size, recipe.sizes.second), dtype=np.float32) >= recipe.dropout
        factors_BH = dropout_BH.astype(np.float32) / np.float32(1.0 - recipe.dropout)
        yield chosen_B, np.concatenate([labels_BL, text_BT], axis=1).astype(np.int32), dense_BD, factors_BH


def _batches(group_N: NDArray[np.int64], recipe: Recipe, rng: np.random.Generator) -> NDArray[np.intp]:
    """Row numbers (steps, batch): lists of rows of one group, mixed; a few rows are left over each time."""
    order_N = rng.permutation(len(group_N))
    order_N = order_N[np.argsort(group_N[order_N], kind="stable")]
    order_N = np.roll(order_N, int(rng.integers(recipe.list_size)))
    size = min(recipe.batch, len(order_N) // recipe.list_size * recipe.list_size)
    lists = order_N[: len(order_N) // recipe.list_size * recipe.list_size].reshape(-1, recipe.list_size)
    mixed_N = lists[rng.permutation(len(lists))].reshape(-1)
    return mixed_N[: len(mixed_N) // size * size].reshape(-1, size)


def _drawn(rng: np.random.Generator, size: int, nothing: float, second: float) -> NDArray[np.intp]:
    return rng.choice(3, size, p=[nothing, 1.0 - nothing - second, second])


def _kept(rows: TextSet, min_prompts: int) -> Floats:
    """Ones (V,) for labels and for n-grams of at least so many prompts."""
    _, first_N = np.unique(rows.prompt, return_index=True)
    prompts_V = np.zeros(HASH_BUCKETS, dtype=np.int64)
    for text_T in rows.text[first_N]:
        prompts_V[np.unique(text_T)] += 1
    kept_V = prompts_V >= min_prompts
    kept_V[np.unique(rows.labels)] = True
    kept_V[0] = False
    return kept_V.astype(np.float32)


def _standards(dense_ND: Floats) -> tuple[Floats, Floats]:
    """Mean and 1 ÷ standard deviation (DENSE,); what never varies is multiplied by 0, flags that training sets by 2."""
    wide_ND = dense_ND.astype(np.float64)
    mean_D, spread_D = wide_ND.mean(axis=0), wide_ND.std(axis=0)
    scale_D = np.where(spread_D > 1e-6, 1.0 / np.maximum(spread_D, 1e-6), 0.0)  # noqa: PLR2004 - rounding
    mean_D[list(_FLAGS)], scale_D[list(_FLAGS)] = 0.5, 2.0
    return mean_D.astype(np.float32), scale_D.astype(np.float32)


def _standardised(dense_ND: Floats, mean_D: Floats, scale_D: Floats) -> Floats:
    clipped_ND: Floats = np.clip((dense_ND - mean_D) * scale_D, -DENSE_LIMIT, DENSE_LIMIT)
    return clipped_ND


def _validation_pinball(model: TextModel, rows: TextSet) -> float:
    """Mean pinball loss in ln tokens, half of it with the request's labels and half without application."""
    log_tokens_N = np.log(np.maximum(rows.output_tokens, 1.0))
    losses = []
    for application in (1, 0):
        quantiles_NQ = model.predict(*shown(rows, application=application, model=1))
        over_NQ = log_tokens_N[:, None] - quantiles_NQ
        levels_Q = np.array(LEVELS)
        losses.append(np.maximum(levels_Q * over_NQ, (levels_Q - 1.0) * over_NQ).mean())
    return float(np.mean(losses))


def _spread(model: TextModel, rows: TextSet) -> TextModel:
    """Split conformal prediction (Romano et al., 2019), as a factor on each side of the median."""
    quantiles_NQ = model.predict(*shown(rows, application=1, model=1))
    over_N = np.log(np.maximum(rows.output_tokens, 1.0)) - quantiles_NQ[:, MEDIAN]
    factors = []
    for level, sign in ((LEVELS.index(0.1), -1.0), (LEVELS.index(0.9), 1.0)):
        ratio_N = sign * over_N / np.maximum(sign * (quantiles_NQ[:, level] - quantiles_NQ[:, MEDIAN]), _LEAST_STEP)
        factors.append(float(np.clip(np.quantile(ratio_N, 0.9), *_SPREADS)))
    return replace(model, spread_below=factors[0], spread_above=factors[1])


@partial(jax.jit, compiler_options=_COMPILED)
def _answers(parameters: Parameters, ids_NK: Array, dense_ND: Array) -> Array:
    return answers(parameters, ids_NK, dense_ND, segments_FT=segments())


def _predict(parameters: Parameters, ids_NK: NDArray[np.int32], model: TextModel, dense_ND: Floats) -> Floats:
    parts = [np.zeros((0, len(LEVELS)), dtype=np.float32)]
    for start in range(0, len(ids_NK), _CHUNK):
        rows = min(_CHUNK, len(ids_NK) - start)
        padding = ((0, _CHUNK - rows), (0, 0))
        ids_CK = np.pad(ids_NK[start : start + rows], padding)
        dense_CD = np.pad(model.standardised(dense_ND[start : start + rows]), padding)
        parts.append(np.asarray(_answers(parameters, ids_CK, dense_CD))[:rows])
    return np.concatenate(parts)

"""Fits a text model of output lengths to answered requests, and writes it with manifest and card."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from llmrouter.errors import InvalidInputError
from llmrouter.lengths.distribution import LEVELS, MIN_TOKENS
from llmrouter.lengths.text import DENSE, DENSE_NAMES, HASH_BUCKETS, IDS, TEXT_FEATURE_NAMES, TEXT_FEATURE_VERSION
from llmrouter.manifest import Bounds, Manifest, ModelKind, Tensor, TrainingData
from llmrouter.training.length_table import LICENCES
from llmrouter.training.length_text_card import text_card
from llmrouter.training.length_text_graph import OPSET, export, rounded
from llmrouter.training.length_text_rows import text_set
from llmrouter.training.length_text_scores import GroupScores, score_text, with_task_as_application
from llmrouter.training.length_text_training import Recipe, shown, train
from llmrouter.training.onnx_files import PRODUCER, Artefact, sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from llmrouter.training.length_evaluation_rows import LengthRow
    from llmrouter.training.length_text_rows import TextSet
    from llmrouter.training.length_text_training import TextModel

MODEL_NAME = "text"
MODEL_VERSION = "1.0.0"
ROWS_PER_MINUTE = 200_000
"""Rows that one core learns from in a minute, about: turns minutes into updates, the same on every machine."""

UNKNOWN_LICENCE = "not stated"
_METRICS = ("bucket_accuracy", "kendall_tau", "pinball_loss", "coverage_80", "mae_tokens")
_SPELLING = re.compile(r"[^A-Za-z0-9 ._=/-]")


class Progress(Protocol):
    """Begins a stage of so many steps (``None``: not known); what it returns is called with the steps done since."""

    def __call__(self, title: str, total: int | None, /) -> Callable[[int], None]:
        """Begins a stage."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What was made: the artefact, and its scores on the held-out rows."""

    artefact: Artefact
    scores: dict[str, GroupScores]


def fit_artifact(
    rows: Sequence[LengthRow], out_dir: Path, *, seed: int, budget: float | None, progress: Progress
) -> Fitted:
    """Fits on the rows that are not held out and writes ``model.onnx``, ``manifest.json`` and ``MODEL_CARD.md``.

    Args:
        rows: answered requests; ``held_out`` ones score the model and never train it.
        out_dir: folder to write to, made where it is missing.
        seed: of everything drawn; the same rows, seed and machine give the same bytes.
        budget: minutes of one core, about, as a number of rows seen (ROWS_PER_MINUTE); ``None`` for the recipe's own.
        progress: is told what is being done.

    Raises:
        InvalidInputError: too few rows, or a folder that cannot be written.
        ExportDisagreesError: graph and network differ; nothing is written.
    """
    recipe = budgeted(Recipe(), budget)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        fitted = fit(rows, recipe=recipe, seed=seed, progress=progress)
        fitted.artefact.write(out_dir)
    except OSError as error:
        raise InvalidInputError(f"{out_dir}: cannot be written: {error.strerror}") from error
    return fitted


def budgeted(recipe: Recipe, minutes: float | None) -> Recipe:
    """The recipe with no more rows seen than fit into so many minutes."""
    if minutes is None:
        return recipe
    if not minutes > 0.0:
        raise InvalidInputError(f"minutes must be more than 0, not {minutes:g}")
    return replace(recipe, most_rows=minutes * ROWS_PER_MINUTE)


def fit(rows: Sequence[LengthRow], *, recipe: Recipe, seed: int, progress: Progress) -> Fitted:
    """As ``fit_artifact``, without writing."""
    learned, held_out = [row for row in rows if not row.held_out], [row for row in rows if row.held_out]
    if not held_out:
        raise InvalidInputError(f"{len(rows)} rows are too few: no prompt falls in the fifth that is held out")
    looked = progress("reading words", len(rows))
    learned_set = text_set(learned, looked)
    asked = with_task_as_application(held_out)
    held_out_set = text_set(asked, looked)
    done = progress("training", recipe.rounds)
    model = rounded(train(learned_set, recipe, seed=seed, on_round=lambda _number, _loss: done(1)))
    exported, worst = export(model, *shown(held_out_set, application=1, model=1))
    progress("scoring", None)
    scores = score_text(model, held_out_set, asked, learned)
    manifest = _manifest(model, learned, learned_set, seed=seed, sha256=sha256_of(exported))
    manifest = manifest.model_copy(update={"scores": _flat(scores, model, worst)})
    return Fitted(Artefact(exported, manifest, text_card(manifest, scores, recipe)), scores)


def _manifest(model: TextModel, learned: Sequence[LengthRow], features: TextSet, *, seed: int, sha256: str) -> Manifest:
    id_bounds = Bounds(min=0.0, max=float(HASH_BUCKETS - 1))
    low_D, high_D = features.dense.min(axis=0), features.dense.max(axis=0)
    dense_bounds = {
        name: Bounds(min=min(0.0, float(low_D[place])), max=max(1.0, float(high_D[place])))
        for place, name in enumerate(DENSE_NAMES)
    }
    tokens = Bounds(min=MIN_TOKENS, max=model.max_tokens)
    rows_by_source = Counter(row.source for row in learned)
    return Manifest(
        name=MODEL_NAME,
        kind=ModelKind.OUTPUT_LENGTH,
        model_version=MODEL_VERSION,
        feature_version=TEXT_FEATURE_VERSION,
        feature_names=TEXT_FEATURE_NAMES,
        inputs=(
            Tensor(name="ids", dtype="float32", shape=(None, IDS)),
            Tensor(name="dense", dtype="float32", shape=(None, DENSE)),
        ),
        outputs=(
            Tensor(name="quantiles", dtype="float32", shape=(None, len(LEVELS))),
            Tensor(name="rank", dtype="float32", shape=(None,)),
        ),
        bounds={
            **{name: id_bounds for name in TEXT_FEATURE_NAMES if name not in dense_bounds},
            **dense_bounds,
            "quantiles": tokens,
            "rank": tokens,
        },
        training_data=tuple(
            TrainingData(source=source or "own log", licence=LICENCES.get(source, UNKNOWN_LICENCE), rows=count)
            for source, count in sorted(rows_by_source.items())
        )[:64],
        seed=seed,
        scores={},
        sha256=sha256,
        opset={"ai.onnx": OPSET},
        producer=PRODUCER,
    )


def _flat(scores: dict[str, GroupScores], model: TextModel, worst: float) -> dict[str, float]:
    flat = {
        "export/worst_difference_ln_tokens": float(f"{worst:.2g}"),
        "training/round": float(model.rounds),
        "training/validation_pinball_ln_tokens": round(model.validation_pinball, 5),
    }
    for group, one in scores.items():
        for predictor, metrics in one.scores.items():
            for metric in _METRICS:
                value = metrics[metric].value
                key = _SPELLING.sub("_", f"{predictor}/{group}/{metric}")[:128]
                if value is not None and len(flat) < 512:  # noqa: PLR2004 - what a manifest may hold
                    flat[key] = float(f"{value:.4g}")
    return flat

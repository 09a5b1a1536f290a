"""``llmrouter predictor``: how well the lengths of answers are foretold, from a command line to a table or JSON."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llmrouter.artefacts import builtin_names
from llmrouter.errors import InvalidInputError, ModelRejectedError
from llmrouter.lengths.distribution import NotFiniteLengthsError
from llmrouter.lengths.online import HALF_LIFE
from llmrouter.manifest import ModelKind
from llmrouter.training.length_evaluation_artefact import TEXT, load_artefact, shipped_text
from llmrouter.training.length_evaluation_contenders import BLENDED, Contender, baselines, blend
from llmrouter.training.length_evaluation_drift import evaluate_drift
from llmrouter.training.length_evaluation_prompts import prompt_token_errors
from llmrouter.training.length_evaluation_rows import read_rows
from llmrouter.training.length_evaluation_scores import RESAMPLES
from llmrouter.training.length_evaluation_study import Order, Setting, Study, evaluate
from llmrouter.training.length_evaluation_table import print_evaluation
from llmrouter.training.length_worth_options import add_worth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from llmrouter.lengths.simple import PointModel, QuantileModel
    from llmrouter.manifest import Manifest
    from llmrouter.training.length_evaluation_rows import LengthRows

ONLINE_SUBJECT = "application-quantiles"
SEED = 20_261_121
MAX_RESAMPLES = 10_000


def main(rest: Sequence[str]) -> int:
    """Runs ``predictor eval``, ``predictor fit`` or ``predictor worth``; returns the exit status.

    Raises:
        InvalidInputError: the command line, a file or a model that it names is wrong.
    """
    options = parser().parse_args(rest)
    command = shlex.join(["llmrouter", "predictor", *rest])
    if options.action == "fit":
        return fit(options)
    try:
        if options.action == "worth":
            return _worth(options, command)
        result = evaluation(options, command=command)
    except ModelRejectedError as error:
        raise InvalidInputError(f"{options.artifact or 'the shipped model'}: {error.reason}: {error}") from error
    except NotFiniteLengthsError as error:
        raise InvalidInputError(f"{options.artifact or 'the shipped model'}: {error}") from error
    if options.as_json:
        sys.stdout.write(json.dumps(result, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
    else:
        print_evaluation(result, Console())
    return 0


def parser() -> argparse.ArgumentParser:
    """``llmrouter predictor`` and its options."""
    top = argparse.ArgumentParser(prog="llmrouter predictor", description=__doc__)
    actions = top.add_subparsers(dest="action", required=True, metavar="ACTION")
    evaluate_parser = actions.add_parser(
        "eval",
        help="score a predictor and every baseline on answered requests",
        description="Scores a length model, the product's own online predictor and every baseline on a file of "
        "answered requests: one JSON object a line with prompt and response_tokens, and task, app, model, family, "
        "source, prompt_tokens and request fields where known.",
    )
    add = evaluate_parser.add_argument
    add("--data", type=Path, required=True, metavar="FILE", help="JSON lines, gzipped or not")
    add("--artifact", type=Path, metavar="DIR", help="folder of a model (model.onnx, manifest.json); else the shipped")
    add("--online", action="store_true", help="predict, then learn, in order; else fit and score on a split by prompt")
    add("--hint", action=argparse.BooleanOptionalAction, default=None, help="show the task, or not (default: both)")
    add("--label", choices=("task", "app"), default="task", help="field that is the application (default: %(default)s)")
    add("--order", choices=[order.value for order in Order], default="random", help="online: order of the rows")
    add("--family", metavar="F", help="score the rows of this family alone")
    add(
        "--drift",
        nargs=2,
        metavar=("FROM", "TO"),
        help="online: of two families alone; also, one gives way to the other",
    )
    add("--no-families", action="store_true", help="score all rows together only")
    add("--held-out", action="store_true", help="online: take only the fifth of prompts that no model is trained on")
    add("--seed", type=int, default=SEED, help="of the order and of the intervals (default: %(default)s)")
    add("--resamples", type=int, default=RESAMPLES, help="of the intervals; 0 for none (default: %(default)s)")
    add("--skip-bad-rows", action="store_true", help="leave wrong lines out and count them")
    add("--json", dest="as_json", action="store_true", help="write JSON to standard output")
    fit_parser = actions.add_parser(
        "fit",
        help="train a text model on answered requests of one's own",
        description="Trains a text model on a file of answered requests (as eval reads them) and writes model.onnx, "
        "manifest.json and MODEL_CARD.md. A fifth of the prompts is held out and scores it. Needs the extra `train`.",
    )
    add = fit_parser.add_argument
    add("--data", type=Path, required=True, metavar="FILE", help="JSON lines, gzipped or not")
    add("--artifact", type=Path, required=True, metavar="DIR", help="folder to write the model to")
    add("--label", choices=("task", "app"), default="app", help="field that is the application (default: %(default)s)")
    add("--family", metavar="F", help="train on the rows of this family alone")
    add("--seed", type=int, default=SEED, help="of everything that is drawn (default: %(default)s)")
    add("--minutes", type=float, metavar="M", help="train for about so many minutes of one core at most")
    add("--skip-bad-rows", action="store_true", help="leave wrong lines out and count them")
    add_worth(actions)
    return top


def fit(options: argparse.Namespace) -> int:
    """Trains on the options' file and writes the artefact."""
    if options.seed < 0:
        raise InvalidInputError(f"--seed must be at least 0, not {options.seed}")
    try:
        from llmrouter.training.length_text import fit_artifact  # noqa: PLC0415 - evaluation does without a trainer
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"fit needs {error.name}: install llmrouter[train]") from error
    console = Console(stderr=True)
    with _bars() as progress:
        read = _read(options, progress)
        fitted = fit_artifact(read.rows, options.artifact, seed=options.seed, budget=options.minutes, progress=progress)
    manifest = fitted.artefact.manifest
    if read.skipped:
        console.print(f"skipped: {dict(read.skipped)}", markup=False, highlight=False)
    size = len(fitted.artefact.model)
    sys.stdout.write(f"{options.artifact}: {size:,} bytes, sha256 {manifest.sha256}; MODEL_CARD.md has the scores\n")
    return 0


def _worth(options: argparse.Namespace, command: str) -> int:
    try:
        from llmrouter.training.length_worth_command import worth  # noqa: PLC0415 - evaluation does without a simulator
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("llmrouter"):
            raise
        raise InvalidInputError(f"worth needs {error.name}: install llmrouter[study]") from error
    return worth(options, command)


def evaluation(options: argparse.Namespace, *, command: str) -> dict[str, Any]:
    """The evaluation that the options ask for."""
    _check(options)
    contenders = list(baselines(half_life=HALF_LIFE if options.online else None))
    subject = ONLINE_SUBJECT
    notes = []
    loaded = _subject_model(options.artifact)
    if loaded is not None:
        model, manifest = loaded
        subject = model.name if model.name not in {one.name for one in contenders} else f"artifact {model.name}"
        what = f"the model in {options.artifact or 'the product'}"
        contenders.append(Contender(subject, what, lambda: model, learns=False))
        contenders.append(blend(model, what))
        subject = BLENDED
        notes.append(_trained_on(manifest.training_data))
    with _bars() as progress:
        read = _read(options, progress)
        rows = [row for row in read.rows if row.held_out] if options.held_out and options.online else read.rows
        if options.drift is not None:
            rows = [row for row in rows if row.family in options.drift]
        if not rows:
            raise InvalidInputError(f"{options.data}: no row is held out, or of the families of --drift")
        study = Study(
            contenders=tuple(contenders),
            subject=subject,
            settings=_settings(options),
            by_family=options.family is None and not options.no_families,
            seed=options.seed,
            resamples=options.resamples,
        )
        result = evaluate(rows, study, progress)
        if options.drift is not None:
            result["drift"] = evaluate_drift(rows, study, progress, before=options.drift[0], after=options.drift[1])
    result["notes"] += notes
    return {
        "command": command,
        "file": options.data.name,
        "rows": len(rows),
        "skipped": dict(read.skipped),
        "prompt_tokens_estimated": read.estimated,
        "prompt_tokens_estimator": prompt_token_errors(rows, np.random.default_rng(options.seed)),
        "seed": options.seed,
        "resamples": options.resamples,
        "label": options.label,
        "held_out_only": bool(options.held_out or not options.online),
        "descriptions": {one.name: one.description for one in contenders},
        **result,
    }


def _read(options: argparse.Namespace, progress: Callable[[str, int | None], Callable[[int], None]]) -> LengthRows:
    return read_rows(
        options.data,
        label=options.label,
        skip_bad=options.skip_bad_rows,
        family=options.family,
        on_rows=progress(f"reading {options.data.name}", None),
    )


def _subject_model(folder: Path | None) -> tuple[PointModel | QuantileModel, Manifest] | None:
    if folder is not None:
        return load_artefact(folder)
    return shipped_text() if TEXT in builtin_names(ModelKind.OUTPUT_LENGTH) else None


def _check(options: argparse.Namespace) -> None:
    if not 0 <= options.resamples <= MAX_RESAMPLES:
        raise InvalidInputError(f"--resamples must be within 0 and {MAX_RESAMPLES}, not {options.resamples}")
    for option in ("drift", "held_out"):
        if getattr(options, option) and not options.online:
            raise InvalidInputError(f"--{option.replace('_', '-')} needs --online")
    if options.drift is not None and options.family is not None:
        raise InvalidInputError("--drift and --family exclude each other")
    if options.seed < 0:
        raise InvalidInputError(f"--seed must be at least 0, not {options.seed}")


def _settings(options: argparse.Namespace) -> tuple[Setting, ...]:
    order = Order(options.order) if options.online else None
    hints = (True, False) if options.hint is None else (options.hint,)
    return tuple(Setting(online=options.online, hint=hint, order=order) for hint in hints)


def _trained_on(training_data: Sequence[Any]) -> str:
    sources = ", ".join(sorted({one.source for one in training_data})) or "nothing"
    return f"The model was trained on {sources}: rows of these sources that are not held out are not new to it."


@contextmanager
def _bars() -> Iterator[Callable[[str, int | None], Callable[[int], None]]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:
        current: list[Any] = []

        def begin(title: str, total: int | None) -> Callable[[int], None]:
            while current:
                bars.remove_task(current.pop())
            current.append(bars.add_task(title, total=total))
            return lambda amount: bars.advance(current[-1], amount)

        yield begin

"""``llmrouter predictor worth``: from a checked command line to tables and JSON."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console

from llmrouter.errors import InvalidInputError
from llmrouter.lengths.simple import QuantileModel
from llmrouter.sim.model import EngineModel
from llmrouter.sim.setup import Setup
from llmrouter.study.bench_options import parse_loads
from llmrouter.study.cells import named_profile
from llmrouter.study.progress import make_ready, progress
from llmrouter.study.seeds import block_of
from llmrouter.training.length_evaluation_artefact import load_artefact, shipped_text
from llmrouter.training.length_evaluation_rows import read_rows
from llmrouter.training.length_worth_columns import read_by
from llmrouter.training.length_worth_result import best_reserves, quality_of, rows_of, verdicts_of
from llmrouter.training.length_worth_runs import Block, Study, capacity, run_all, runs_of
from llmrouter.training.length_worth_table import print_worth
from llmrouter.training.length_worth_traffic import population, unseen

if TYPE_CHECKING:
    import argparse

    from llmrouter.manifest import Manifest
    from llmrouter.training.length_evaluation_rows import LengthRow

MAX_INSTANCES = 64
MAX_REQUESTS = 100_000
MOST_REQUESTS, MOST_HISTORY, HISTORY_SHARE = 4_000, 1_000, 0.2
"""Where the command line does not say."""

_MIN_WIDTH = 170


def worth(options: argparse.Namespace, command: str) -> int:
    """Runs the comparison; returns the exit status.

    Raises:
        InvalidInputError: an option, the file or the model is wrong.
    """
    path = options.json_path
    if path is not None and not path.parent.is_dir():
        raise InvalidInputError(f"--json {path}: there is no folder {path.parent}")
    result = compare(options, command)
    if path is not None:
        path.write_text(json.dumps(result, ensure_ascii=False, allow_nan=False, indent=1) + "\n", encoding="utf-8")
    console = Console()
    console.width = max(console.width, _MIN_WIDTH)
    print_worth(result, console)
    return 0


def compare(options: argparse.Namespace, command: str) -> dict[str, Any]:
    """The comparison that the options ask for, as plain values."""
    loads = parse_loads(options.loads)
    block_of(options.first_seed, options.seeds, final=False)
    setup = Setup(engines=_engines(options.profile))
    model, manifest = _model(options)
    rows, notes = _rows(options, manifest)
    of = population(rows, hint=options.hint, max_tokens=setup.engines[0].max_request_tokens)
    history, requests = _sizes(options, of.prompts)
    study = Study(
        population=of,
        read=read_by(model, of.requests),
        model=model,
        setup=setup,
        loads=loads,
        seeds=range(options.first_seed, options.first_seed + options.seeds),
        history=history,
        requests=requests,
        blocks=tuple(Block) if options.block is None else tuple(Block(name) for name in options.block),
    )
    make_ready()
    with progress("capacity", 1, unit="found") as advance:
        capacity_rps = capacity(study)
        advance(1)
    with progress("runs", runs_of(study)) as advance:
        runs = run_all(study, capacity_rps, advance)
    return {
        "command": command,
        "file": options.data.name,
        "profile": options.profile,
        "families": dict(Counter(row.family for row in rows).most_common()),
        "rows_drawn_from": len(of.requests),
        "rows_too_long": len(rows) - len(of.requests),
        "prompts": of.prompts,
        "history": history,
        "requests": requests,
        "seeds": [study.seeds.start, study.seeds.stop - 1],
        "capacity_rps": capacity_rps,
        "loads": list(loads),
        "notes": notes + _notes(study),
        "verdicts": verdicts_of(runs),
        "best_reserves": best_reserves(runs),
        "quality": quality_of(runs),
        "rows": rows_of(runs),
    }


def _engines(text: str) -> tuple[EngineModel, ...]:
    name, _, count = text.partition(":")
    if count and not (count.isdecimal() and 1 <= int(count) <= MAX_INSTANCES):
        raise InvalidInputError(f"--profile must be NAME or NAME:COUNT, 1 to {MAX_INSTANCES}, not {text!r}")
    return (EngineModel(named_profile(name)),) * int(count or 4)


def _model(options: argparse.Namespace) -> tuple[QuantileModel, Manifest]:
    model, manifest = shipped_text() if options.artifact is None else load_artefact(options.artifact)
    if not isinstance(model, QuantileModel):
        raise InvalidInputError(f"--artifact {options.artifact}: not a text model: it foretells no quantiles")
    return model, manifest


def _rows(options: argparse.Namespace, manifest: Manifest) -> tuple[list[LengthRow], list[str]]:
    read = read_rows(options.data, label=options.label, skip_bad=options.skip_bad_rows, on_rows=lambda _: None)
    trained_on = {one.source for one in manifest.training_data}
    rows = list(read.rows) if options.all_prompts else unseen(read.rows, trained_on)
    if options.family:
        known = {row.family for row in read.rows}
        if missing := sorted(set(options.family) - known):
            raise InvalidInputError(f"--family {missing[0]!r} has no row in {options.data}")
        rows = [row for row in rows if row.family in options.family]
    if options.all_prompts:
        notes = ["The model was trained on some of these prompts: what it says of them is too good."]
    else:
        notes = ["All prompts are new to the model: they are held out, or of sources that it was not trained on."]
    if read.skipped:
        notes.append(f"Lines left out: {dict(read.skipped)}.")
    if read.estimated:
        notes.append(f"{read.estimated} rows of the file do not say their prompt tokens: they are estimated.")
    return rows, notes


def _sizes(options: argparse.Namespace, prompts: int) -> tuple[int, int]:
    """Answers known before a run, and requests of it."""
    history = min(MOST_HISTORY, int(HISTORY_SHARE * prompts)) if options.history is None else options.history
    if not 1 <= history < prompts:
        raise InvalidInputError(f"--history must be 1 to {prompts - 1}, one less than the prompts, not {history}")
    requests = min(MOST_REQUESTS, prompts - history) if options.requests is None else options.requests
    if not 1 <= requests <= MAX_REQUESTS:
        raise InvalidInputError(f"--requests must be 1 to {MAX_REQUESTS}, not {requests}")
    return history, requests


def _notes(study: Study) -> list[str]:
    prompts = study.population.prompts - study.history
    notes = [
        (
            f"Every run: {study.requests} requests, each prompt once, in random order, Poisson arrivals, after "
            f"{study.history} answers to other prompts that all learn from. All meet the same requests, seed by seed."
        ),
        "An answer is learned when it ends under LeastInFlight, which looks at no prediction, at the highest load.",
        "Changes are means over seeds of the paired difference in %, ± the half-width of the Student-t 95 % interval.",
        "Below C the first 20 % of the requests are not measured; from C on all are, as in runs that begin from empty.",
    ]
    if study.requests > prompts:
        notes.append(
            f"Runs have more requests than prompts, each {study.requests / prompts:.1f} times: learning is too good."
        )
    return notes

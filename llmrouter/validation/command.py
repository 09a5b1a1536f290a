"""``llmrouter validate-engine``: the engine model against measured engines, or fitted to one's own."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llmrouter.errors import InvalidInputError
from llmrouter.sim.model import Schedule
from llmrouter.validation.engines import dump, shipped
from llmrouter.validation.fit import FitOptions, fit, free_parameters
from llmrouter.validation.judge import cannot_judge, judge, unjudged
from llmrouter.validation.own import Settings, fit_own, pool_yaml, read_own
from llmrouter.validation.page import page
from llmrouter.validation.plan import plan
from llmrouter.validation.readers import read_folder
from llmrouter.validation.replay import replay
from llmrouter.validation.report import document, engine_lines, run_table, summaries, summary_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.validation.engines import MeasuredEngine
    from llmrouter.validation.judge import Verdict
    from llmrouter.validation.measured import MeasuredRun
    from llmrouter.validation.plan import Assignment, Plan

OUT = Path("build/validation")
DRAWS = 5
WIDTH = 150
TOO_LITTLE = "an engine that is not in the catalogue, and too few measured requests to fit one"
MAX_STARTS, MAX_EVALUATIONS = 100, 100_000


def main(rest: Sequence[str]) -> int:
    """Runs the command; returns its exit status.

    Raises:
        InvalidInputError: an option is out of bounds or a file is malformed.
    """
    options = _parser().parse_args(rest)
    if (options.data is None) == (not options.fit):
        raise InvalidInputError("exactly one of --data and --fit must be given")
    for name, bound in (("starts", MAX_STARTS), ("evaluations", MAX_EVALUATIONS)):
        if not 1 <= getattr(options, name) <= bound:
            raise InvalidInputError(f"--{name} must be 1 to {bound}, not {getattr(options, name)}")
    search = FitOptions(starts=options.starts, evaluations=options.evaluations)
    if options.fit:
        return _fit_own(options, search)
    return _validate(options, search)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmrouter validate-engine",
        description="Replays measured runs on the engine model and reports the errors; or fits an engine of one's own.",
        epilog="The tables, what is fitted on what, and the columns of files: docs/engine-validation.md.",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of *.csv.gz files with measured runs")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help="where plots go (default: %(default)s)")
    parser.add_argument("--runs", action="store_true", help="also a line per run in the terminal")
    parser.add_argument("--refit", action="store_true", help="fit known engines afresh, on two rates of DIR")
    parser.add_argument("--skip-bad", action="store_true", help="pass over malformed files instead of ending")
    parser.add_argument("--starts", type=int, default=2, metavar="N", help="starts of a fit (default: %(default)s)")
    parser.add_argument(
        "--evaluations", type=int, default=400, metavar="N", help="simulations of a start (default: %(default)s)"
    )
    own = parser.add_argument_group("fitting an engine of one's own")
    own.add_argument(
        "--fit", type=Path, nargs="+", default=[], metavar="FILE", help="CSV or JSONL files, several rates"
    )
    own.add_argument("--name", default="engines", help="name of the pool (default: %(default)s)")
    own.add_argument("--mode", choices=("Chunked", "PrefillFirst"), default="Chunked")
    own.add_argument("--kv-tokens", type=int, metavar="N", help="KV cache in tokens; left out, it never binds")
    own.add_argument("--max-sequences", type=int, default=256, metavar="N")
    own.add_argument("--token-budget", type=int, default=2_048, metavar="N")
    return parser


def _validate(options: argparse.Namespace, search: FitOptions) -> int:
    runs, skipped = read_folder(options.data, skip_bad=options.skip_bad)
    work = plan(runs, shipped(), refit=options.refit)
    engines, verdicts = _judge_all(work, runs, search)
    found = document(verdicts, engines, skipped)
    groups = summaries(verdicts, by_set=False)
    where = _write(options.out, page(verdicts, groups), engines)
    if options.json:
        sys.stdout.write(f"{json.dumps(found, indent=1, allow_nan=False)}\n")
        return 0
    console = _console(sys.stdout)
    if options.runs:
        console.print(run_table(verdicts))
    for line in engine_lines(engines):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(summary_table(groups))
    for note in skipped:
        console.print(f"skipped {note.set_name}: {note.reason}", soft_wrap=True)
    for run, reason in work.excluded:
        console.print(f"not judged {run.name}: {reason}", soft_wrap=True)
    console.print(f"plots: {where}", soft_wrap=True)
    return 0


def _judge_all(
    work: Plan, runs: Sequence[MeasuredRun], search: FitOptions
) -> tuple[list[MeasuredEngine], list[Verdict]]:
    """Verdicts in the order of the runs, and the engines they were judged on."""
    by_run = {id(run): unjudged(run, reason) for run, reason in work.excluded}
    engines: list[MeasuredEngine] = []
    with _progress(sys.stderr) as progress:
        bar = progress.add_task("runs", total=len(runs), completed=len(work.excluded), doing="")
        for assignment in work.assignments:
            engine = _fitted(assignment, search, progress)
            if engine is not None:
                engines.append(engine)
            for run in assignment.runs:
                progress.update(bar, doing=run.name)
                by_run[id(run)] = (
                    unjudged(run, TOO_LITTLE)
                    if engine is None
                    else _verdict(engine, run, second_half=assignment.halves)
                )
                progress.advance(bar)
    return engines, [by_run[id(run)] for run in runs]


def _fitted(assignment: Assignment, search: FitOptions, progress: Progress) -> MeasuredEngine | None:
    """The engine ready to judge; ``None`` where it is unknown and nothing of its runs can be fitted to."""
    if not assignment.fit_on:
        return assignment.engine
    usable = [run for run in assignment.fit_on if cannot_judge(run) is None]
    if not usable:
        return None
    total = search.starts * search.evaluations
    bar = progress.add_task(f"fit {assignment.engine.name}", total=total, doing="")
    free = free_parameters(assignment.engine, kv=assignment.fit_kv)

    def tell(evaluations: int, lowest: float) -> None:
        progress.update(bar, completed=min(evaluations, total), doing=f"loss {lowest:.3f}")

    engine = fit(assignment.engine, usable, free, options=search, on_evaluation=tell)
    progress.remove_task(bar)
    return engine


def _verdict(engine: MeasuredEngine, run: MeasuredRun, *, second_half: bool) -> Verdict:
    """A run that the engine can never hold is a finding about the engine, not the end of the command."""
    reason = cannot_judge(run.half(second=True) if second_half else run)
    if reason is None:
        try:
            return judge(run, engine, replay(engine, run, draws=DRAWS), second_half=second_half)
        except InvalidInputError as error:
            reason = str(error)
    return unjudged(run, reason, engine)


def _write(folder: Path, html: str, engines: Sequence[MeasuredEngine]) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        where = folder / "engine-validation.html"
        where.write_text(html, encoding="utf-8")
        listing = json.dumps({"engines": [dump(engine) for engine in engines]}, indent=1)
        (folder / "engines.json").write_text(f"{listing}\n", encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"--out {folder}: {error.strerror or error}") from error
    return where


def _fit_own(options: argparse.Namespace, search: FitOptions) -> int:
    if options.kv_tokens is not None and options.kv_tokens < 1:
        raise InvalidInputError(f"--kv-tokens must be at least 1, not {options.kv_tokens}")
    settings = Settings(
        name=options.name,
        mode=Schedule(options.mode),
        kv_tokens=options.kv_tokens,
        max_sequences=options.max_sequences,
        token_budget=options.token_budget,
    )
    runs = read_own(options.fit)
    total = search.starts * search.evaluations
    with _progress(sys.stderr) as progress:
        bar = progress.add_task(f"fit {options.name}", total=total, doing="")
        engine, verdicts = fit_own(
            runs,
            settings,
            search,
            lambda done, lowest: progress.update(bar, completed=min(done, total), doing=f"loss {lowest:.3f}"),
        )
    if options.json:
        found = {**document(verdicts, [engine], []), "pool": pool_yaml(engine)}
        sys.stdout.write(f"{json.dumps(found, indent=1, allow_nan=False)}\n")
        return 0
    _console(sys.stderr).print(run_table(verdicts))
    front_ms = 1e3 * engine.coefficients.front_s
    kv = "given" if settings.kv_tokens else "not given: it never bound while measuring; set the engine's own size"
    head = f"# fitted on {', '.join(engine.fitted_on)}; {front_ms:.1f} ms before the queue; kvTokens {kv}"
    sys.stdout.write(f"{head}\n{pool_yaml(engine)}")
    return 0


def _console(stream: TextIO) -> Console:
    """As wide as the terminal, or wide enough for the tables where there is none."""
    return Console(file=stream, width=None if stream.isatty() else WIDTH)


def _progress(stream: TextIO) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[doing]}"),
        console=Console(file=stream),
        transient=True,
    )

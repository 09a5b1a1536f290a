"""``llmrouter bench``: the benchmark protocol, from a command line to tables, JSON and a report."""

from __future__ import annotations

import datetime as dt
import importlib
import importlib.util
import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console

from llmrouter.study.bench_options import parse
from llmrouter.study.plan import all_tasks, capacity_task
from llmrouter.study.pool import do_tasks
from llmrouter.study.progress import make_ready, progress
from llmrouter.study.result import capacities, result_of
from llmrouter.study.seeds import ledger_path, record_opening
from llmrouter.study.store import Store
from llmrouter.study.table import print_comparison

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from llmrouter.study.bench_options import Options
    from llmrouter.study.plan import Plan

INTERRUPTED = 130
_REPORT = "llmrouter.study.report"
_MIN_WIDTH = 150


def main(rest: Sequence[str]) -> int:
    """Runs or goes on with a comparison; returns the exit status.

    Raises:
        InvalidInputError: the command line, or a file that it names, is wrong.
    """
    options = parse(rest)
    command = shlex.join(["llmrouter", "bench", *rest])
    if options.final:
        ledger = ledger_path(options.out)
        opened = open_final(options.plan, command, ledger=ledger, now=dt.datetime.now(dt.UTC))
        Console(stderr=True).print(f"opening {opened} of the final seeds is recorded in {ledger}")
    with Store(options.out, fresh=options.fresh) as store:
        try:
            result = compare(options, store, command)
        except KeyboardInterrupt:
            Console(stderr=True).print("stopped: the same command goes on from here")
            return INTERRUPTED
    text = as_text(result)
    (options.out / "bench.json").write_text(text, encoding="utf-8")
    _write_report(options, result)
    if options.as_json:
        sys.stdout.write(text)
    else:
        console = Console()
        console.width = max(console.width, _MIN_WIDTH)
        print_comparison(result, console)
    return 0


def compare(options: Options, store: Store, command: str) -> dict[str, Any]:
    """Does what is missing in the store and puts the comparison together."""
    plan = options.plan
    searches = [capacity_task(cell) for cell in plan.cells]
    make_ready()
    with progress("capacity", len(searches), unit="cells") as advance:
        do_tasks(searches, store, jobs=options.jobs, on_done=lambda _task: advance(1))
    tasks = all_tasks(plan, capacities(plan, store))
    with progress("runs", len(tasks)) as advance:
        do_tasks(tasks, store, jobs=options.jobs, on_done=lambda _task: advance(1))
    return result_of(plan, store, command=command)


def as_text(result: Mapping[str, Any]) -> str:
    """JSON with one line for each top-level key and each row: short enough to keep, and lines fit to compare."""
    parts = []
    for key, value in result.items():
        if key in ("rows", "best"):
            inner = ",\n  ".join(json.dumps(one, ensure_ascii=False, allow_nan=False) for one in value)
            parts.append(f" {json.dumps(key)}: [\n  {inner}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def open_final(plan: Plan, command: str, *, ledger: Path, now: dt.datetime) -> int:
    """Records that the final seeds are opened for a comparison; returns how often they were by now.

    Raises:
        InvalidInputError: it cannot be recorded, so nothing may run.
    """
    opening = {
        "opened_at": now.isoformat(timespec="seconds"),
        "command": command,
        "cells": [cell.name for cell in plan.cells],
        "loads": list(plan.loads),
        "policies": list(plan.policies),
        "first_seed": plan.first_seed,
        "seeds": plan.seeds,
    }
    return record_opening(ledger, opening)


def _write_report(options: Options, result: dict[str, Any]) -> None:
    """Writes ``bench.html`` beside the JSON where the report's room is there."""
    if importlib.util.find_spec(_REPORT) is None:
        return
    html: str = importlib.import_module(_REPORT).render(result)
    (options.out / "bench.html").write_text(html, encoding="utf-8")

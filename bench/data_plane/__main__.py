"""Routers beside peers, behind the same Envoy, before the same engines, in one run on one machine.

Every candidate's programs are started once and held (SIGSTOP) while another one is measured. Each repeat goes through
all loads, and through the candidates of each load in turn, the next repeat the other way round: what is compared was
measured within a minute. A peer whose program is not there is left out, and that is said.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bench.data_plane.candidates import Candidate, Stack, start_fleet, start_stack
from bench.data_plane.cells import CELLS, Bench, Cell, measure, warm
from bench.data_plane.programs import PEER_VARIABLE, Programs, provide
from bench.data_plane.prompts import PLACEHOLDER, write_prompts
from bench.data_plane.results import Row, Store, as_json, size_of, wrong
from bench.data_plane.tables import sizes, summary, tables
from llmrouter.testbed.cluster.errors import ClusterError
from llmrouter.testbed.cluster.places import repository_root

if TYPE_CHECKING:
    from collections.abc import Sequence

SEED = 1
ENGINES = 512
CHUNK_GAP_MS = 10.0
WIDTH = 170
"""Of tables that go to a file."""
QUICK = {"a", "b32", "b128", "c", "d"}


class Stacks:
    """Candidates' programs: each started when it is first needed, and on the processors only while it is measured."""

    def __init__(self, bench: Bench, folder: Path, exit_stack: ExitStack) -> None:
        self._bench, self._folder, self._exit = bench, folder, exit_stack
        self._running: dict[Candidate, Stack] = {}

    def take(self, candidate: Candidate) -> Stack:
        """The candidate's programs, on the processors."""
        stack = self._running.get(candidate)
        if stack is not None:
            stack.resume()
            return stack
        place = self._folder / "".join(letter if letter.isalnum() else "-" for letter in candidate.name)
        stack = start_stack(candidate, self._bench.programs, self._bench.fleet, place)
        self._running[candidate] = stack
        self._exit.callback(stack.stop)
        warm(self._bench, stack)
        return stack

    def drop(self, candidate: Candidate) -> None:
        """Ends a candidate's programs, where they run; they are started anew when they are needed again."""
        stack = self._running.pop(candidate, None)
        if stack is not None:
            stack.stop()


def chosen(options: argparse.Namespace, programs: Programs) -> list[Cell]:
    """The loads that are asked for, each with the candidates that are there and asked for."""
    names = set(options.cells or (QUICK if options.quick else [cell.name for cell in CELLS]))
    if unknown := sorted(names - {cell.name for cell in CELLS}):
        raise ClusterError(f"--cells: no cell {unknown[0]!r}; there are {', '.join(cell.name for cell in CELLS)}")

    def there(one: Candidate) -> bool:
        if one.kind == "peer":
            return programs.peer is not None
        return programs.proxies is not None if one.is_proxy else True

    def wanted(one: Candidate) -> bool:
        return not options.only or any(part in one.name for part in options.only)

    found = [
        replace(cell, candidates=tuple(one for one in cell.candidates if there(one) and wanted(one)))
        for cell in CELLS
        if cell.name in names
    ]
    rated = [replace(cell, size=options.rate) if cell.name == "a" else cell for cell in found]
    return [cell for cell in rated if cell.candidates]


def run_all(
    cells: Sequence[Cell],
    bench: Bench,
    stacks: Stacks,
    *,
    store: Store,
    options: argparse.Namespace,
    notes: list[str],
) -> None:
    """Measures what is not yet in the store; ``notes`` gets what failed."""
    progress = Console(stderr=True)
    for repeat in range(options.repeats):
        for cell in cells:
            order = list(cell.candidates)
            for candidate in order if repeat % 2 == 0 else reversed(order):
                if store.has(cell.name, candidate.name, repeat):
                    continue
                try:
                    seen = measure_one(bench, stacks, cell, candidate, seconds=options.seconds, seed=SEED + repeat)
                except ClusterError as error:  # the others are measured all the same; a later run tries it again
                    stacks.drop(candidate)
                    notes.append(f"{cell.name}, {candidate.name}, repeat {repeat + 1} is missing: {error}")
                    progress.print(notes[-1])
                    continue
                store.add({"cell": cell.name, "candidate": candidate.name, "repeat": repeat, **seen})
                latency = seen["latency_ms"] or {}
                told = f"{seen['per_s']:,.0f}/s, p50 {latency.get('p50')}, p99 {latency.get('p99')} ms"
                told += f" {', '.join(wrong(seen))}"
                progress.print(f"{repeat + 1}/{options.repeats} {cell.name:6} {candidate.name}: {told}")


def measure_one(
    bench: Bench, stacks: Stacks, cell: Cell, candidate: Candidate, *, seconds: float, seed: int
) -> dict[str, Any]:
    """One measurement, its candidate on the processors for as long as it takes."""
    stack = stacks.take(candidate)
    try:
        return measure(bench, stack, cell, seconds=seconds, seed=seed)
    finally:
        stack.pause()


def base_of(cell: Cell) -> str:
    """What ratios are to: the peer, or the fixed route where there is none."""
    kinds = {one.kind: one.name for one in reversed(cell.candidates)}
    return kinds.get("peer") or kinds.get("fixed") or cell.candidates[0].name


def conclude(cells: Sequence[Cell], store: Store, bench: Bench, options: argparse.Namespace, notes: list[str]) -> None:
    """Prints the tables and writes the file."""
    bases = {cell.name: base_of(cell) for cell in cells}
    summaries = {cell.name: summary(cell, store.rows, bases[cell.name]) for cell in cells}
    short, long = (_kib(path) for path in (bench.prompts.short, bench.prompts.long))
    names = dict.fromkeys(one.name for cell in cells for one in cell.candidates)
    found = [size_of(name, store.rows, short_kib=short, long_kib=long) for name in names]
    known = [one for one in found if one is not None]
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for table in tables(cells, summaries, bases):
        console.print(table)
    if known:
        console.print(sizes(known))
    for note in notes:
        console.print(note)
    told: dict[str, Any] = {"command": options.command, "notes": notes, "bases": bases, "sizes": [*map(as_json, known)]}
    told["cells"] = {
        name: [record | {"ratios": {key: as_json(one) for key, one in record["ratios"].items()}} for record in records]
        for name, records in summaries.items()
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    console.print(f"written: {options.json}; rows: {rows_path(options)}")


def _kib(path: Path) -> float:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if PLACEHOLDER in line]
    return sum(map(len, lines)) / len(lines) / 1024


def rows_path(options: argparse.Namespace) -> Path:
    """Where the rows are."""
    path: Path = options.json.with_suffix(".jsonl")
    return path


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.data_plane",
        description=__doc__,
        epilog=f"{PEER_VARIABLE} names llm-d-router's picker (`go build ./cmd/epp` of llm-d/llm-d-router).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repeats", type=int, default=5, help="of every measurement (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a measurement (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=500.0, help="requests/s of cell a (default: %(default)s)")
    parser.add_argument("--cells", nargs="+", metavar="CELL", help="these alone (default: all)")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="candidates whose names have one of these in them")
    parser.add_argument("--quick", action="store_true", help="4 s, and without cells c8 and e")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--first-port", type=int, default=21_000, help="of the engines (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/bench/data_plane.json"), help="file to write")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seconds = min(options.seconds, 4.0)
    if options.repeats < 1 or options.seconds < 1 or options.rate <= 0:
        parser.error("--repeats and --seconds must be at least 1, --rate above 0")
    options.command = shlex.join(["python", "-m", "bench.data_plane", *arguments])
    return options


def main(arguments: Sequence[str]) -> int:
    """Measures, prints, writes."""
    options = parsed(arguments)
    folder = repository_root() / "build" / "bench" / "data_plane"
    try:
        programs, notes = provide(proxies=True)
        cells = chosen(options, programs)
        if options.fresh:
            rows_path(options).unlink(missing_ok=True)
        settings: Row = {"seconds": options.seconds, "rate": options.rate, "seed": SEED}
        store = Store(rows_path(options), settings)
        with ExitStack() as exit_stack:
            prompts = write_prompts(folder / "prompts", random.Random(SEED))
            fleet = start_fleet(programs, folder, count=ENGINES, first_port=options.first_port, gap_ms=CHUNK_GAP_MS)
            exit_stack.callback(fleet.process.stop)
            bench = Bench(programs, prompts, fleet)
            stacks = Stacks(bench, folder, exit_stack)
            run_all(cells, bench, stacks, store=store, options=options, notes=notes)
    except ClusterError as error:
        print(f"bench.data_plane: {error}", file=sys.stderr)
        return error.exit_status
    conclude(cells, store, bench, options, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The product's learned policy against the default with the preset of the same name, on the same requests.

    .venv/bin/python -m bench.learned [--agent DIR] [--seeds N] [--only PART …] [--final] [--json FILE]

Parts: ``loads`` (each cell at 0.5, 0.8, 0.95 and 1.1 of capacity, 4 instances), ``sizes`` (2, 8, 16 and 64 instances at
0.95), ``unequal`` (one of four twice as slow; every second one of the other mode) and ``bursts`` (gaps with a
coefficient of variation of 4). Everything for each preset: the network is told its preferences, the rule has its
weights. Seeds are 1,500 and on of the selection block while working, 9,000 and on of the final block with ``--final``,
whose opening is recorded. Networks train on seeds 0 to 999 and choose their checkpoint on 1,000 to 1,007.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from llmrouter.arrivals.cells import cell
from llmrouter.domain import Preferences
from llmrouter.errors import InvalidInputError
from llmrouter.objectives import DEFAULT_PRESET, PREFERENCES
from llmrouter.routing.rules import Rule
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy
from llmrouter.study.contenders import DEFAULT, contender
from llmrouter.study.progress import progress
from llmrouter.study.seeds import FINAL, SELECTION, ledger_path, record_opening
from llmrouter.study.statistics import half_width
from llmrouter.training.agents import product_tasks as tasks
from llmrouter.training.agents.keeping import read_agent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from llmrouter.sim.model import EngineModel
    from llmrouter.sim.outcomes import Outcomes
    from llmrouter.training.agents.environment import Decider

FIRST_DEVELOPMENT_SEED = SELECTION.first + 500
MOST_SEEDS = 100
REQUESTS = {"paper-v100": 500, "h100-mix": 750, "h100-prod": 500}
"""Of a run, for each instance up to 4; above, as many again for every 16 instances more."""

COLUMNS = ("mean E2E", "p99 E2E", "TTFT p99", "TPOT p95", "slowdown, worst 5 %")
SERVED = CompiledPolicy(rule=Rule.RANDOM, max_requests=None, kv_fraction=1.0)
"""Lends the network the gate that routers have; the rule never decides."""

FRONT_LOAD = 0.95
PARTS = ("loads", "sizes", "unequal", "bursts")


@dataclass(frozen=True, slots=True)
class Setting:
    """Where the two are compared."""

    part: str
    title: str
    cell: str
    engines: tuple[EngineModel, ...]
    load: float
    cv: float = 1.0

    def task(self, preset: str, seed: int) -> tasks.Task:
        """A run of it."""
        count = REQUESTS[self.cell] * min(len(self.engines), 4) * (1 + max(0, len(self.engines) - 4) // 16)
        return tasks.make(
            self.cell,
            self.engines,
            load=self.load,
            seed=seed,
            cv=self.cv,
            preferences=PREFERENCES[preset],
            requests=count,
        )


def settings(parts: Sequence[str]) -> Iterator[Setting]:
    """All of them."""
    for name in tasks.CELLS:
        engine = cell(name).engine
        if "loads" in parts:
            for load in (0.5, 0.8, 0.95, 1.1):
                yield Setting("loads", f"{load:g} C", name, (engine,) * 4, load)
        if "sizes" in parts:
            for instances in (2, 8, 16, 64):
                yield Setting("sizes", f"{instances} instances, 0.95 C", name, (engine,) * instances, 0.95)
        if "unequal" in parts:
            slow = (tasks.slower(engine, 2.0), *(engine,) * 3)
            yield Setting("unequal", "one of 4 twice as slow, 0.95 C", name, slow, 0.95)
            modes = (engine, tasks.other_mode(engine)) * 2
            yield Setting("unequal", "two modes, 0.95 C", name, modes, 0.95)
        if "bursts" in parts:
            yield Setting("bursts", "bursts (CV 4), 0.8 C", name, (engine,) * 4, 0.8, 4.0)


def rule_on(preset: str, task: tasks.Task) -> Outcomes:
    """The default with a preset."""
    named = DEFAULT if preset == DEFAULT_PRESET else f"{DEFAULT}-{preset}"
    return simulate(task.setup, task.workload, contender(named).make(), seed=task.seed)


def figures(task: tasks.Task, outcomes: Outcomes) -> NDArray[np.float64]:
    """``COLUMNS`` of a run, then the four figures that preferences are about; lower is better."""
    first = int(tasks.WARM_FRACTION * len(outcomes.status))
    e2e_s, ttft_s, tpot_s = (one[first:] for one in (outcomes.e2e_s, outcomes.ttft_s, outcomes.tpot_s))
    preferred = tasks.figures_of(task, outcomes)
    tails = np.nanpercentile(e2e_s, 99), np.nanpercentile(ttft_s, 99), np.nanpercentile(tpot_s, 95)
    return np.array([np.nanmean(e2e_s), *tails, preferred[3], *preferred])


def compared(setting: Setting, preset: str, decider: Decider, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Changes in percent of each seed, by column; and ``worth``, what the preset's preferences make of them."""
    rows, worths = [], []
    for seed in seeds:
        task = setting.task(preset, seed)
        learned, ruled = figures(task, tasks.play_network(task, decider, SERVED)), figures(task, rule_on(preset, task))
        rows.append(100.0 * (learned / ruled - 1.0))
        count = len(COLUMNS)
        worths.append(100.0 * tasks.worth(np.log(learned[count:] / ruled[count:]), task.preferences))
    changes = {name: [float(row[place]) for row in rows] for place, name in enumerate(COLUMNS)}
    return {**changes, "worth": worths}


def run(decider: Decider, parts: Sequence[str], seeds: Sequence[int]) -> list[dict[str, object]]:
    """Every setting with every preset."""
    jobs = [(one, preset) for one in settings(parts) for preset in PREFERENCES]
    found: list[dict[str, object]] = []
    with progress("compare", len(jobs), unit="settings") as advance:
        for one, preset in jobs:
            changes = compared(one, preset, decider, seeds)
            found.append({"part": one.part, "cell": one.cell, "title": one.title, "preset": preset, "changes": changes})
            advance(1)
    return found


def table_of(found: Sequence[dict[str, object]], part: str) -> Table:
    """A row for each setting and preset: mean change and the half-width of its 95 % interval."""
    table = Table(box=box.MARKDOWN, title=f"{part}: learned against the default with the same preset, %")
    for heading in ("cell", "where", "preset", *COLUMNS, "by preference"):
        table.add_column(heading, no_wrap=True)
    for one in found:
        changes = one["changes"]
        if one["part"] == part and isinstance(changes, dict):
            shown = [said(changes[name]) for name in (*COLUMNS, "worth")]
            table.add_row(str(one["cell"]), str(one["title"]), str(one["preset"]), *shown)
    return table


def said(percents: Sequence[float]) -> str:
    """Mean and half-width; bold where the interval is below 0, in italics where it is above."""
    half = half_width(percents) or 0.0
    mean = float(np.mean(percents))
    text = f"{mean:+.1f} ± {half:.1f}"
    return f"**{text}**" if mean + half < 0 else f"*{text}*" if mean - half > 0 else text


def verdicts(found: Sequence[dict[str, object]]) -> Table:
    """For each cell and preset in how many settings the network wins, loses, or neither, by preference."""
    table = Table(box=box.MARKDOWN, title="by preference: settings won, undecided, lost; median change, %")
    for heading in ("cell", "preset", "won", "undecided", "lost", "median"):
        table.add_column(heading, no_wrap=True)
    for name in tasks.CELLS:
        for preset in PREFERENCES:
            worths = [one["changes"]["worth"] for one in found if (one["cell"], one["preset"]) == (name, preset)]  # type: ignore[index]
            if not worths:
                continue
            ends = [(float(np.mean(row)), half_width(row) or 0.0) for row in worths]
            won = sum(mean + half < 0 for mean, half in ends)
            lost = sum(mean - half > 0 for mean, half in ends)
            median = float(np.median([mean for mean, _ in ends]))
            table.add_row(name, preset, str(won), str(len(ends) - won - lost), str(lost), f"{median:+.2f}")
    return table


ALONE = {
    "ttft alone": Preferences(1.0, 0.0, 0.0, 0.0),
    "tpot alone": Preferences(0.0, 1.0, 0.0, 0.0),
    "fairness alone": Preferences(0.0, 0.0, 0.0, 1.0),
}


def front(decider: Decider, seeds: Sequence[int]) -> Table:
    """What the network does at 0.95 C with other preferences, against itself with those of ``Balanced``."""
    table = Table(box=box.MARKDOWN, title="the network at 0.95 C by its preferences, against itself with Balanced's, %")
    for heading in ("cell", "preferences", *COLUMNS):
        table.add_column(heading, no_wrap=True)
    for one in settings(["loads"]):
        if one.load != FRONT_LOAD:
            continue
        drawn = [one.task(DEFAULT_PRESET, seed) for seed in seeds]
        base = [figures(task, tasks.play_network(task, decider, SERVED)) for task in drawn]
        for name, preferences in {**PREFERENCES, **ALONE}.items():
            asked = [replace(task, preferences=preferences) for task in drawn]
            rows = [figures(task, tasks.play_network(task, decider, SERVED)) for task in asked]
            changes = 100.0 * (np.array(rows) / np.array(base) - 1.0)
            table.add_row(one.cell, name, *(said(column.tolist()) for column in changes.T[: len(COLUMNS)]))
    return table


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.learned", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--agent", type=Path, default=Path("build/agents/learned-0"), help="folder of `llmrouter train`")
    add("--seeds", type=int, default=10, help="of each setting (default: %(default)s)")
    add("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="parts (default: all)")
    add("--front", action="store_true", help="show what the network's preferences do to it, and end")
    add("--final", action="store_true", help="compare on the final block, and record its opening")
    add("--json", type=Path, default=Path("build/bench/learned.json"), help="file (default: %(default)s)")
    return parser.parse_args(given)


def check(options: argparse.Namespace) -> None:
    """Raises InvalidInputError where a bound is broken."""
    if not 1 <= options.seeds <= MOST_SEEDS:
        raise InvalidInputError(f"--seeds must be 1 to {MOST_SEEDS}, not {options.seeds}")


def main(given: Sequence[str] | None = None) -> int:
    """Exit status 2, with one line, on bad input."""
    options = arguments(given)
    command = " ".join(("python -m bench.learned", *(sys.argv[1:] if given is None else given)))
    try:
        check(options)
        decider = read_agent(options.agent).decider
        if options.front:
            first = FIRST_DEVELOPMENT_SEED
            Console(width=150).print(front(decider, range(first, first + options.seeds)))
            return 0
        first = FINAL.first if options.final else FIRST_DEVELOPMENT_SEED
        seeds = range(first, first + options.seeds)
        if options.final:
            record_opening(ledger_path(options.json.parent), {"command": command, "first": first, "seeds": len(seeds)})
        found = run(decider, options.only, seeds)
    except InvalidInputError as error:
        print(error, file=sys.stderr)
        return 2
    console = Console(width=200)
    for part in options.only:
        console.print(table_of(found, part))
    console.print(verdicts(found))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"command": command, "seeds": list(seeds), "rows": found}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

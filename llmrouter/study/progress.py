"""Progress of long work on standard error: what is done, how long it took and how long it will take."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llmrouter.profiles import H100_MIX
from llmrouter.routing.rules import Rule
from llmrouter.sim.model import EngineModel
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy, Setup
from llmrouter.sim.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def make_ready() -> None:
    """Compiles the simulator where no process has done so yet, so that several do not all do it at once."""
    with progress("simulator", 1, unit="ready (compiled once)") as advance:
        engines = (EngineModel(H100_MIX),)
        simulate(Setup(engines=engines), Workload.of([0.0], [1], [1]), CompiledPolicy(rule=Rule.ROUND_ROBIN))
        advance(1)


@contextlib.contextmanager
def progress(title: str, total: int, *, unit: str = "runs") -> Iterator[Callable[[int], None]]:
    """A bar while the block runs; yields what is called with the amount that was just done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        task = bar.add_task(title, total=total)
        yield lambda amount: bar.advance(task, amount)

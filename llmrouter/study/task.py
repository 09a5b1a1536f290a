"""One piece of work of a study: what to run, and the digest of everything its result depends on."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import llmrouter
from llmrouter.study.figures import Slo
from llmrouter.study.predictors import Predictor

if TYPE_CHECKING:
    from llmrouter.study.cells import CellSpec

_CANNOT_CHANGE_RESULTS = frozenset(
    {
        *("testbed", "training", "tuning", "validation", "cli.py", "logs.py", "metrics.py", "acknowledgement.py"),
        *("report", "table.py", "progress.py", "bench_command.py", "bench_options.py", "result.py", "notes.py"),
        *("simulate_command.py", "simulate_options.py", "_models"),
    }
)
"""Parts of the library that serve, show or teach: they leave results as they are."""


class TaskKind(StrEnum):
    """``CAPACITY``: what round-robin sustains. ``RUN``: one run. ``TIMELINE``: one with samples.

    ``SLO_CAPACITY``: the highest rate at which a policy meets the tails of the SLO.
    """

    CAPACITY = "capacity"
    RUN = "run"
    TIMELINE = "timeline"
    SLO_CAPACITY = "slo-capacity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One piece of work; the same task has the same result, in any process.

    Attributes:
        kind: see ``TaskKind``.
        cell: see ``CellSpec``.
        policy: name of the contender.
        predictor: who predicts, unless the contender has its own.
        rate_rps: of the arrivals; of a search, where it begins.
        warm_up_fraction: share of the requests that is not measured.
        seed: of arrivals, lengths, predictions and of the policy's own chance.
        slo: what goodput counts.
    """

    kind: TaskKind
    cell: CellSpec
    policy: str
    predictor: Predictor = Predictor.TASK_MEAN
    rate_rps: float = 0.0
    warm_up_fraction: float = 0.0
    seed: int = 0
    slo: Slo = Slo()  # noqa: RUF009 - frozen

    @property
    def key(self) -> str:
        """SHA-256 of the task, of its trace and of the code that runs it."""
        parts = {**asdict(self), "code": code_digest(), "trace": _file_digest(self.cell.trace)}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@functools.cache
def code_digest() -> str:
    """SHA-256 over the sources that decide results: another version of them computes everything anew."""
    root = Path(llmrouter.__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.json")]):
        place = path.relative_to(root)
        if _CANNOT_CHANGE_RESULTS.isdisjoint(place.parts):
            digest.update(str(place).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@functools.cache
def _file_digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""

"""Seed blocks: what is tuned on one block is chosen on another and claimed on a third, which opens on record only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import llmrouter
from llmrouter.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

LEDGER_NAME = "final-openings.jsonl"


@dataclass(frozen=True, slots=True)
class SeedBlock:
    """Seeds ``first`` to ``last``, both included, and what they are for."""

    name: str
    first: int
    last: int

    def __contains__(self, seed: int) -> bool:
        return self.first <= seed <= self.last


TRAINING = SeedBlock("training", 0, 999)
SELECTION = SeedBlock("selection", 1_000, 1_999)
FINAL = SeedBlock("final", 9_000, 9_999)
BLOCKS = (TRAINING, SELECTION, FINAL)


def block_of(first_seed: int, count: int, *, final: bool) -> SeedBlock:
    """The block that holds seeds ``first_seed`` to ``first_seed + count − 1``.

    Raises:
        InvalidInputError: no or more than one block holds them, or they are of the final block and ``final`` is not
            set, or the other way round.
    """
    if count < 1:
        raise InvalidInputError(f"--seeds must be at least 1, not {count}")
    last_seed = first_seed + count - 1
    if not final and first_seed <= FINAL.last and last_seed >= FINAL.first:
        raise InvalidInputError(
            f"seeds {first_seed} to {last_seed} touch the final block, {FINAL.first} to {FINAL.last}: it opens only "
            "with --final, and every opening is recorded"
        )
    block = next((block for block in BLOCKS if first_seed in block and last_seed in block), None)
    if block is None:
        known = ", ".join(f"{block.name} {block.first} to {block.last}" for block in BLOCKS)
        raise InvalidInputError(f"seeds {first_seed} to {last_seed} lie in no one block: {known}")
    if final and block is not FINAL:
        raise InvalidInputError(
            f"--final runs seeds {FINAL.first} to {FINAL.last}, not {first_seed} to {last_seed}, of block {block.name}"
        )
    return block


def check_seed(seed: int) -> int:
    """The seed of a single run; raises InvalidInputError if it is negative or of the final block."""
    if seed < 0 or seed in FINAL:
        raise InvalidInputError(
            f"--seed must be at least 0 and not of the final block, {FINAL.first} to {FINAL.last}, not {seed}"
        )
    return seed


def ledger_path(out: Path) -> Path:
    """Where openings are recorded: in the tracked ``docs/evidence/`` of a source tree, else in the run's folder."""
    root = Path(llmrouter.__file__).resolve().parent.parent
    in_source_tree = (root / "pyproject.toml").is_file() and (root / "docs").is_dir()
    return (root / "docs" / "evidence" if in_source_tree else out) / LEDGER_NAME


def record_opening(path: Path, opening: Mapping[str, object]) -> int:
    """Appends one opening of the final block; returns how many there are now.

    Raises:
        InvalidInputError: it cannot be recorded, so the block stays closed.
    """
    line = json.dumps(dict(opening), ensure_ascii=False, sort_keys=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+", encoding="utf-8") as ledger:
            ledger.write(line + "\n")
            ledger.seek(0)
            return sum(1 for _ in ledger)
    except OSError as error:
        raise InvalidInputError(
            f"{path}: the final block stays closed, its opening cannot be recorded: {error}"
        ) from error

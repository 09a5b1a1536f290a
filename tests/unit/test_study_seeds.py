from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from llmrouter.errors import InvalidInputError
from llmrouter.study.seeds import BLOCKS, FINAL, SELECTION, TRAINING, block_of, check_seed, ledger_path, record_opening

if TYPE_CHECKING:
    from pathlib import Path


def test_blocks_share_no_seed() -> None:
    assert sum(seed in block for block in BLOCKS for seed in range(10_000)) == 3_000
    assert all(sum(seed in block for block in BLOCKS) <= 1 for seed in range(10_000))


@pytest.mark.parametrize(
    ("first", "count", "final", "block"),
    [
        (0, 1_000, False, TRAINING),
        (1_000, 20, False, SELECTION),
        (1_999, 1, False, SELECTION),
        (9_000, 20, True, FINAL),
    ],
)
def test_seeds_belong_to_one_block(first: int, count: int, block: object, *, final: bool) -> None:
    assert block_of(first, count, final=final) is block


@pytest.mark.parametrize(
    ("first", "count", "final", "word"),
    [
        (9_000, 1, False, "--final"),
        (8_990, 20, False, "--final"),
        (1_990, 20, False, "no one block"),
        (5_000, 1, False, "no one block"),
        (1_000, 20, True, "9000 to 9999"),
        (9_990, 20, True, "no one block"),
        (1_000, 0, False, "--seeds"),
        (-1, 1, False, "no one block"),
    ],
)
def test_seeds_outside_a_block_are_refused(first: int, count: int, word: str, *, final: bool) -> None:
    with pytest.raises(InvalidInputError, match=word):
        block_of(first, count, final=final)


@pytest.mark.parametrize("seed", [-1, 9_000, 9_999])
def test_a_single_run_takes_no_final_seed(seed: int) -> None:
    with pytest.raises(InvalidInputError, match="--seed"):
        check_seed(seed)


def test_every_opening_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "evidence" / "openings.jsonl"
    assert record_opening(path, {"command": "a"}) == 1
    assert record_opening(path, {"command": "b"}) == 2
    assert [json.loads(line)["command"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_without_a_record_nothing_opens(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InvalidInputError, match="stays closed"):
        record_opening(blocked / "openings.jsonl", {})


def test_a_source_tree_keeps_its_openings_under_docs(tmp_path: Path) -> None:
    assert ledger_path(tmp_path).parts[-3:] == ("docs", "evidence", "final-openings.jsonl")

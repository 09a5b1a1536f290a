from __future__ import annotations

import gzip
import json
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from llmrouter.errors import InvalidInputError
from llmrouter.validation.measured import below_saturation
from llmrouter.validation.readers import Skipped, read_file, read_folder

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "run,arrival_s,prompt_tokens,output_tokens,ttft_s,e2e_s"
ROWS = ("a,0.0,10,5,0.1,0.5", "a,1.0,20,1,0.2,0.2", "b,0.0,30,3,0.1,0.3")


def write(path: Path, *lines: str) -> Path:
    text = "\n".join(lines) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def only(path: Path) -> np.ndarray:
    found = read_file(path)
    assert not isinstance(found, Skipped)
    assert len(found) == 1
    return np.stack([found[0].arrived_at_s, found[0].ttft_s, found[0].e2e_s])


def test_runs_are_told_apart_and_further_columns_do_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path / "set.csv.gz", f"{HEADER},tpot_s", *(f"{row},0" for row in ROWS))
    found = read_file(path)
    assert not isinstance(found, Skipped)
    assert [(run.name, run.set_name, run.layout, len(run)) for run in found] == [
        ("a", "set", "requests", 2),
        ("b", "set", "requests", 1),
    ]
    assert found[0].prompt_tokens.tolist() == [10, 20]
    assert np.isnan(found[0].tpot_s[1])
    assert found[0].tpot_s[0] == pytest.approx(0.1)
    assert found[0].judged.tolist() == [False, True]


def test_instants_of_tokens_become_latencies_in_order_of_arrival(tmp_path: Path) -> None:
    header = "run,arrival_s,input_tokens,output_tokens,first_token_s,last_token_s"
    path = write(tmp_path / "set.csv", header, "a,5.0,10,5,5.5,7.0", "a,4.0,10,5,4.25,6.0")
    assert only(path).tolist() == [[0.0, 1.0], [0.25, 0.5], [2.0, 2.0]]


def test_generation_follows_the_first_token_and_users_may_be_unknown(tmp_path: Path) -> None:
    header = "run,arrival_s,user_id,question_id,prompt_tokens,output_tokens,ttft_s,generation_s,finish_s"
    path = write(tmp_path / "set.csv", header, "a,0.0,,,10,5,0.5,1.0,1.5", "a,1.0,7,1,10,5,0.5,2.0,3.5")
    found = read_file(path)
    assert not isinstance(found, Skipped)
    assert found[0].layout == "generation"
    assert found[0].e2e_s.tolist() == [1.5, 2.5]
    assert found[0].session.tolist() == [-1, 7]


def test_own_measurements_may_be_jsonl_without_runs(tmp_path: Path) -> None:
    rows = [
        {"arrival_s": at, "prompt_tokens": 10, "output_tokens": 5, "ttft_s": 0.1, "e2e_s": 0.5} for at in (0.0, 2.0)
    ]
    path = write(tmp_path / "mine.jsonl", *map(json.dumps, rows))
    found = read_file(path)
    assert not isinstance(found, Skipped)
    assert found[0].name == "mine"
    assert found[0].rate_rps == pytest.approx(0.5)


def test_a_request_without_believable_latencies_is_kept_for_its_load_and_not_judged(tmp_path: Path) -> None:
    path = write(tmp_path / "set.csv", HEADER, *ROWS[:2], "a,2.0,10,5,0.0,0.5", "a,3.0,10,5,0.9,0.5")
    found = read_file(path)
    assert not isinstance(found, Skipped)
    assert len(found[0]) == 4
    assert found[0].judged.tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((HEADER,), r"set\.csv: line 2: there are no rows"),
        (("",), r"set\.csv: line 1: a header is missing"),
        ((HEADER.replace(",e2e_s", ""), "a,0,1,1,1"), r"set\.csv: line 1: column e2e_s or .* is missing"),
        ((HEADER.replace("arrival_s,", ""), "a,1,1,1,1"), r"set\.csv: line 1: column arrival_s is missing"),
        ((HEADER, ROWS[0], "a,0.0,ten,5,0.1,0.5"), r"set\.csv: line 3: prompt_tokens must be a number, not 'ten'"),
        ((HEADER, "a,0.0,-1,5,0.1,0.5"), r"set\.csv: line 2: prompt_tokens must be 1 to 1e\+07, not -1"),
        ((HEADER, "a,nan,1,5,0.1,0.5"), r"set\.csv: line 2: arrival_s must be 0 to 1e\+08, not nan"),
        ((HEADER, "a,0.0,1"), r"set\.csv: line 2: 3 cells, not 6"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    path = write(tmp_path / "set.csv", *lines)
    with pytest.raises(InvalidInputError, match=message):
        read_file(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no JSON object"),
        ("[1]", "line 2: no JSON object"),
        ('{"run": "a"}', "field arrival_s is missing"),
    ],
)
def test_bad_jsonl_is_named_by_line(tmp_path: Path, line: str, message: str) -> None:
    first = dict(zip(HEADER.split(","), ROWS[0].split(","), strict=True))
    path = write(tmp_path / "mine.jsonl", json.dumps(first), line)
    with pytest.raises(InvalidInputError, match=message):
        read_file(path)


def test_a_truncated_gzip_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "set.csv.gz", HEADER, *(f"a,{at},10,5,0.1,0.5" for at in range(5_000)))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InvalidInputError, match=r"set\.csv\.gz: line \d+: cannot be read further"):
        read_file(path)


def test_a_folder_skips_files_without_arrivals_and_bad_ones_only_when_asked(tmp_path: Path) -> None:
    write(tmp_path / "good.csv.gz", HEADER, *ROWS)
    write(tmp_path / "states.csv.gz", "kv_cache_percentage,actual_ttft_ms", "0.5,12")
    runs, skipped = read_folder(tmp_path)
    assert [run.name for run in runs] == ["a", "b"]
    assert [note.set_name for note in skipped] == ["states"]
    write(tmp_path / "bad.csv.gz", HEADER)
    with pytest.raises(InvalidInputError, match="no rows"):
        read_folder(tmp_path)
    assert [note.set_name for note in read_folder(tmp_path, skip_bad=True)[1]] == ["bad", "states"]


def test_a_folder_without_runs_says_why(tmp_path: Path) -> None:
    write(tmp_path / "states.csv.gz", "kv_cache_percentage,actual_ttft_ms", "0.5,12")
    with pytest.raises(InvalidInputError, match=r"holds no .* states: no column arrival_s"):
        read_folder(tmp_path)
    with pytest.raises(InvalidInputError, match=re.escape(f"{tmp_path / 'none'} is no folder")):
        read_folder(tmp_path / "none")


def waits(tmp_path: Path, ttft_s: list[float], e2e_s: list[float]) -> bool:
    rows = [f"a,{at},10,5,{ttft},{e2e}" for at, (ttft, e2e) in enumerate(zip(ttft_s, e2e_s, strict=True))]
    found = read_file(write(tmp_path / "set.csv", HEADER, *rows))
    assert not isinstance(found, Skipped)
    return below_saturation(found[0])


def test_a_run_is_saturated_where_waits_or_gaps_grow_or_waiting_is_most_of_it(tmp_path: Path) -> None:
    steady = [0.1] * 30
    assert waits(tmp_path, steady, [1.0] * 30)
    growing = [0.1 * at + 0.1 for at in range(30)]
    assert not waits(tmp_path, growing, [wait + 10.0 for wait in growing])
    assert not waits(tmp_path, steady, [1.0 + 0.1 * at for at in range(30)])
    assert not waits(tmp_path, [5.0] * 30, [6.0] * 30)

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from llmrouter.arrivals.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

OWN = "arrival_s,prompt_tokens,output_tokens\n"


def test_a_row_for_every_workload(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(OWN + "0,10,1\n2,20,2\n4,30,3\n")
    assert main([str(path), "azure"]) == 0
    printed = capsys.readouterr()
    rows = printed.out.splitlines()[2:]
    assert rows[0].startswith("| mine.csv | 3 | 4 | 0.75 | 0 | – | 20 / 20 / 29 / 30 | 2 / 2 / 3 / 3 | 1 | – |")
    assert rows[1].startswith("| azure | 10,497 | 1,020 | 10.3 |")
    assert printed.err == ""


def test_json_windows_and_skipped_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(OWN + "0,10,1\nx,20,2\n4,30,3\n9,30,3\n")
    arguments = [str(path), "--json", "--skip-bad-lines", "--start-s", "3", "--duration-s", "5", "--format", "csv"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)[str(path)]["requests"] == 1
    assert printed.err == f"{path}: left out 1 not a number\n"


def test_bad_input_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([str(tmp_path / "none.csv")], [str(tmp_path / "none.csv"), "--seed", "-1"]):
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1

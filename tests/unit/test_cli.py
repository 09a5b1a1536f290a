from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmrouter import cli
from llmrouter.testbed import demo

if TYPE_CHECKING:
    from pathlib import Path


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("serve", "traffic", "engine"))


@pytest.mark.parametrize("command", ["serve", "traffic", "engine"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert "--" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["fly"], ["serve"], ["serve", "--config", "x", "--fast"]])
def test_a_wrong_command_line_ends_with_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2


def test_a_file_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["serve", "--config", str(tmp_path / "no.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_with_a_bad_field_names_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "router.yaml"
    path.write_text(
        "{apiVersion: llmrouter.dev/v1alpha1, kind: LLMRouter, metadata: {name: a},"
        " spec: {models: [{name: m}], pools: []}}"
    )
    assert cli.main(["serve", "--config", str(path)]) == 2
    assert "pools" in capsys.readouterr().err


@pytest.mark.parametrize("window", ["1", "nan", "1000"])
def test_a_window_out_of_bounds_is_refused(window: str) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.parse(["--window", window])
    assert ended.value.code == 2

"""``llmrouter train``: what it refuses, and what it writes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from llmrouter import cli
from llmrouter.training.train_command import check, environment_of, parser

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--learner evolution --reward guided", "--reward guided is no reward of evolution"),
        ("--learner ddqn-literal --reward marginal", "it knows guided, baseline, aware"),
        ("--learner ddqn-shielded --episodes 0", "--episodes must be 1 to 100000, not 0"),
        ("--learner ddqn-shielded --seed -1", "--seed must be 0 to 2147483647, not -1"),
        ("--learner evolution --instances 1", "--instances must be 2 to 64, not 1"),
        ("--learner learned --instances 8", "--instances is unknown to --learner learned"),
        ("--learner learned --reward guided", "none: it has an objective of its own"),
        ("--learner distil", "--teacher is needed by --learner distil"),
        ("--learner evolution --teacher x", "--teacher is needed by --learner distil and known to no other"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    options: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *options.split(), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["train", "--learner", "evolution", "--out", str(tmp_path / "file")]) == 2
    assert "is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--learner", "x", "--out", "y"], ["--learner", "evolution"], []])
def test_what_argparse_refuses_is_exit_status_2(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", *wrong])
    assert caught.value.code == 2


def test_defaults_are_the_learners() -> None:
    options = parser().parse_args(["--learner", "ddqn-literal", "--out", "x", "--instances", "8"])
    check(options)
    assert (options.reward, options.episodes) == ("guided", 30)
    made = environment_of(options)
    assert (made.requests, made.rate_rps, made.tick_s) == (4_000, 40.0, 0.02)


@pytest.mark.timeout(600)  # the first simulation of a changed kernel compiles it
def test_a_training_leaves_agent_checkpoint_curve_and_artefact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["train", "--learner", "ddqn-shielded", "--episodes", "1", "--seed", "7", "--out", str(tmp_path)]
    assert cli.main(given) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        *("agent.npz", "checkpoint.npz", "curve.json", "curve.svg"),
        *("model.onnx", "manifest.json", "MODEL_CARD.md"),
    }
    said = json.loads((tmp_path / "curve.json").read_text())
    assert (said["learner"], said["reward"], said["seed"], len(said["curve"])) == ("ddqn-shielded", "marginal", 7, 2)
    assert "against round-robin" in capsys.readouterr().out

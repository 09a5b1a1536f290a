from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau, somersd

from llmrouter import cli
from llmrouter.errors import InvalidInputError
from llmrouter.lengths.distribution import LEVELS, lengths_of
from llmrouter.training.length_evaluation_rows import digest_of, held_out, read_rows
from llmrouter.training.length_evaluation_scores import METRICS, RowScores, concordance, estimates, row_scores

TASKS = {"short": 12, "middle": 300, "long": 1_500}


def records(count: int = 240, seed: int = 3) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    names = list(TASKS)
    made = []
    for place in range(count):
        task = names[place % 3]
        made.append(
            {
                "prompt": f"prompt {place // 2} of {task}",
                "response_tokens": max(1, round(float(np.exp(rng.normal(np.log(TASKS[task]), 0.4))))),
                "prompt_tokens": 6,
                "task": task,
                "app": f"{task}/x",
                "model": "m",
                "family": "even" if place % 2 == 0 else "odd",
                "source": "test",
                "unknown_field": [1],
            }
        )
    return made


def write(path: Path, lines: list[Any]) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def evaluated(path: Path, *options: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    status = cli.main(["predictor", "eval", "--data", str(path), "--json", "--resamples", "40", *options])
    shown = capsys.readouterr().out
    assert status == 0
    result: dict[str, Any] = json.loads(shown)
    return result


class TestReading:
    @pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
    def test_plain_and_gzipped(self, tmp_path: Path, name: str) -> None:
        told: list[int] = []
        read = read_rows(write(tmp_path / name, records()), on_rows=told.append)
        assert len(read.rows) == sum(told) == 240
        assert read.rows[0].request.application == "short"
        assert read_rows(tmp_path / name, label="app", on_rows=told.append).rows[0].request.application == "short/x"

    def test_the_least_that_a_row_has(self, tmp_path: Path) -> None:
        path = write(tmp_path / "rows.jsonl", [{"prompt": "Say hello to the world", "response_tokens": 3}, ""])
        read = read_rows(path, on_rows=lambda _: None)
        assert read.estimated == 1
        assert (read.rows[0].request.prompt_tokens or 0) > 2

    def test_request_fields(self, tmp_path: Path) -> None:
        row = {
            "prompt": "x",
            "response_tokens": 3,
            "max_tokens": 9,
            "temperature": 0.5,
            "tools": [{}, {}],
            "thinking": True,
        }
        request = (
            read_rows(write(tmp_path / "a", [{**row, "stop": "END", "turn": 2}]), on_rows=lambda _: None)
            .rows[0]
            .request
        )
        assert (request.max_output_tokens, request.temperature, request.tools) == (9, 0.5, 2)
        assert (request.thinking, request.stop, request.turn) == (True, 1, 2)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "is not JSON"),
            ("[1]", "not a JSON object"),
            ({"response_tokens": 3}, "prompt is missing"),
            ({"prompt": 7, "response_tokens": 3}, "prompt must be text"),
            ({"prompt": "x"}, "response_tokens is missing"),
            ({"prompt": "x", "response_tokens": 0}, "response_tokens must be within 1 and 1e\\+06, not 0"),
            ({"prompt": "x", "response_tokens": -4}, "within 1"),
            ({"prompt": "x", "response_tokens": 10**9}, "within 1"),
            ({"prompt": "x", "response_tokens": "3"}, "must be a number"),
            ({"prompt": "x", "response_tokens": True}, "must be a number"),
            ('{"prompt": "x", "response_tokens": NaN}', "must be a number"),
            ({"prompt": "x", "response_tokens": 3, "prompt_tokens": -1}, "prompt_tokens must be within 0"),
            ({"prompt": "x", "response_tokens": 3, "task": 5}, "task must be text"),
            ({"prompt": "x", "response_tokens": 3, "thinking": "yes"}, "thinking must be true or false"),
        ],
    )
    def test_a_wrong_line_is_named_or_counted(self, tmp_path: Path, line: Any, message: str) -> None:  # noqa: ANN401
        path = write(tmp_path / "rows.jsonl", [*records(2), line])
        with pytest.raises(InvalidInputError, match=f"rows.jsonl, line 3: .*{message}"):
            read_rows(path, on_rows=lambda _: None)
        read = read_rows(path, skip_bad=True, on_rows=lambda _: None)
        assert (len(read.rows), sum(read.skipped.values())) == (2, 1)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "holds no row"),
            (gzip.compress(b'{"prompt": "x", "response_tokens": 3}\n' * 100, mtime=0)[:-30], "cannot be read"),
            (b"\x1f\x8bnot gzip", "cannot be read"),
        ],
    )
    def test_a_broken_file(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "rows").write_bytes(content)
        with pytest.raises(InvalidInputError, match=message):
            read_rows(tmp_path / "rows", on_rows=lambda _: None)

    def test_an_unknown_family(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="no row of the family 'odder'"):
            read_rows(write(tmp_path / "rows", records()), family="odder", on_rows=lambda _: None)

    def test_prompts_with_lone_surrogates_have_a_digest(self) -> None:
        assert digest_of("\ud800") != digest_of("\udfff")

    def test_about_a_fifth_is_held_out(self) -> None:
        share = np.mean([held_out(digest_of(f"prompt {place}")) for place in range(5_000)])
        assert share == pytest.approx(0.2, abs=0.02)


class TestScores:
    @pytest.mark.parametrize("size", [2, 3, 17, 400])
    @pytest.mark.parametrize("kinds", [2, 7, 10**6])
    def test_tau_is_scipys(self, size: int, kinds: int) -> None:
        rng = np.random.default_rng(size + kinds)
        for _ in range(5):
            rank_N, actual_N = rng.integers(0, kinds, (2, size)).astype(float)
            agree_N, rank_varies_N, length_varies_N = concordance(rank_N, actual_N)
            if rank_varies_N.any() and length_varies_N.any():
                tau = agree_N.mean() / np.sqrt(rank_varies_N.mean() * length_varies_N.mean())
                assert tau == pytest.approx(kendalltau(rank_N, actual_N).statistic)

    def test_somers_d_counts_a_tie_as_a_coin_flip(self) -> None:
        rng = np.random.default_rng(8)
        actual_N = np.arange(60.0)
        tied_N, decided_N = np.floor(actual_N / 30.0), actual_N // 30.0 + rng.random(60)
        found = [score({"one": RowScores(np.zeros((60, 6)), rank, actual_N)})["one"] for rank in (tied_N, decided_N)]
        assert found[0]["somers_d"] == pytest.approx(somersd(actual_N, tied_N).statistic)
        assert found[0]["kendall_tau"] > 0.65
        assert found[0]["somers_d"] == pytest.approx(found[1]["somers_d"], abs=0.1)

    def test_what_is_certain_and_right(self) -> None:
        actual_N = np.array([10.0, 300.0, 5_000.0, 250.0])
        laws = lengths_of(np.repeat(actual_N[:, None], len(LEVELS), axis=1), source="oracle")
        values = score({"oracle": row_scores(laws, actual_N)})["oracle"]
        assert values["bucket_accuracy"] == values["coverage_80"] == values["kendall_tau"] == pytest.approx(1.0)
        assert values["pinball_loss"] == values["mae_tokens"] == pytest.approx(0.0, abs=1e-9)

    def test_pinball_loss_by_hand(self) -> None:
        laws = lengths_of(np.full((2, len(LEVELS)), 100.0), source="constant")
        actual_N = np.array([60.0, 200.0])
        levels = np.array(LEVELS)
        want = np.mean([(40.0 * (1.0 - levels)).mean(), (100.0 * levels).mean()])
        values = score({"constant": row_scores(laws, actual_N)})["constant"]
        assert values["pinball_loss"] == pytest.approx(want)
        assert values["pinball_loss_normalised"] == pytest.approx(want / 130.0)
        assert values["mae_tokens"] == pytest.approx(70.0)
        assert values["kendall_tau"] is None

    def test_intervals_are_those_of_a_whole_bootstrap(self) -> None:
        rng = np.random.default_rng(11)
        actual_N = np.asarray(np.round(np.exp(rng.normal(5, 1, 400))), dtype=np.float64)
        rank_N = np.asarray(actual_N * np.exp(rng.normal(0, 1.0, 400)), dtype=np.float64)
        scores = {"one": RowScores(np.zeros((400, 6)), rank_N, actual_N)}
        values, _ = estimates(scores, np.arange(400), rng=np.random.default_rng(1), resamples=600)
        drawn = [kendalltau(rank_N[chosen], actual_N[chosen]).statistic for chosen in rng.integers(0, 400, (600, 400))]
        low, high = np.percentile(drawn, (2.5, 97.5))
        tau = values["one"]["kendall_tau"]
        assert tau.low == pytest.approx(low, abs=0.02)
        assert tau.high == pytest.approx(high, abs=0.02)

    def test_answers_to_one_prompt_are_drawn_together(self) -> None:
        rng = np.random.default_rng(5)
        one = np.repeat(rng.normal(size=(50, 1)), 20, axis=0)
        scores = {"one": RowScores(np.repeat(one, 6, axis=1), one[:, 0], np.ones(1_000))}
        together, _ = estimates(scores, np.repeat(np.arange(50), 20), rng=np.random.default_rng(1))
        apart, _ = estimates(scores, np.arange(1_000), rng=np.random.default_rng(1))
        assert width(together["one"]["mae_tokens"]) > 3 * width(apart["one"]["mae_tokens"])

    def test_differences_are_paired(self) -> None:
        rng = np.random.default_rng(5)
        noise = rng.normal(100, 30, (300, 6))
        scores = {
            "base": RowScores(noise, rng.normal(size=300), np.ones(300)),
            "worse": RowScores(noise + 1.0, rng.normal(size=300), np.ones(300)),
        }
        _, differences = estimates(scores, np.arange(300), rng=np.random.default_rng(1), against="base")
        assert differences["worse"]["mae_tokens"].low == pytest.approx(1.0)
        assert "base" not in differences


def score(scores: dict[str, RowScores]) -> dict[str, dict[str, Any]]:
    rows = len(next(iter(scores.values())).actual)
    values, _ = estimates(scores, np.arange(rows), rng=np.random.default_rng(0), resamples=0)
    return {name: {metric: one.value for metric, one in metrics.items()} for name, metrics in values.items()}


def width(one: Any) -> float:  # noqa: ANN401
    return float(one.high - one.low)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "rows.jsonl.gz", records())


class TestCommand:
    def test_online(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        result = evaluated(path, "--online", capsys=capsys)
        assert set(METRICS) <= set(result)
        assert result["predictor"] == "blended+calibrated"
        assert 0.6 < result["baselines"]["application-quantiles+calibrated"]["coverage_80"] < 0.95
        assert (
            result["baselines"]["application-quantiles"]["bucket_accuracy"]
            > 0.6
            > result["baselines"]["constant"]["bucket_accuracy"]
        )
        assert {"task-mean", "three-buckets", "prompt-histogram", "forest", "online-text"} <= set(result["baselines"])
        assert any("trained on" in note for note in result["notes"])
        estimator = result["prompt_tokens_estimator"]
        assert estimator["online"]["median"] <= estimator["before_any_report"]["median"] < 0.5
        assert set(result["by_task"]) == set(TASKS)
        assert set(result["by_family"]) == {"even", "odd"}
        assert [setting["hint"] for setting in result["settings"]] == [True, False]
        low, high = result["intervals"]["mae_tokens"]
        assert low < result["mae_tokens"] < high

    def test_the_hint_is_what_tells_tasks_apart(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        told = evaluated(path, "--online", "--hint", "--no-families", capsys=capsys)
        untold = evaluated(path, "--online", "--no-hint", "--no-families", capsys=capsys)
        name = "task-mean"
        assert told["baselines"][name]["kendall_tau"] > 0.4 > untold["baselines"][name]["kendall_tau"]

    def test_offline_scores_other_prompts_than_it_learns(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        result = evaluated(path, "--hint", "--no-families", capsys=capsys)
        stream = result["settings"][0]["streams"][0]
        assert 0 < stream["rows"] < 120
        assert any("SHA-256" in note for note in result["notes"])
        assert result["baselines"]["task-mean"]["bucket_accuracy"] > 0.6

    @pytest.mark.parametrize("order", ["random", "grouped"])
    def test_the_same_seed_gives_the_same_numbers(
        self, path: Path, order: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = ("--online", "--hint", "--family", "odd", "--order", order)
        assert evaluated(path, *options, capsys=capsys) == evaluated(path, *options, capsys=capsys)

    def test_one_family(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        result = evaluated(path, "--online", "--hint", "--family", "odd", capsys=capsys)
        assert result["rows"] == 120
        assert result["by_family"] == {}

    def test_rows_without_labels(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        lines = [{"prompt": one["prompt"], "response_tokens": one["response_tokens"]} for one in records(60)]
        result = evaluated(write(tmp_path / "rows.jsonl", lines), "--online", capsys=capsys)
        assert result["prompt_tokens_estimated"] == 60
        assert result["prompt_tokens_estimator"] is None
        assert result["by_task"] == {}
        assert any("No row has a task" in note for note in result["notes"])

    def test_a_drift_is_told_in_windows(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        lines = records(1_200)
        for line in lines:
            line["response_tokens"] = 20 if line["family"] == "even" else 700
        path = write(tmp_path / "rows.jsonl", lines)
        drift = evaluated(path, "--online", "--hint", "--no-families", "--drift", "even", "odd", capsys=capsys)["drift"]
        assert [(window["from"], window["to"]) for window in drift["windows"]] == [(0, 250), (250, 500), (500, 1_000)]
        first, later = (drift["windows"][place]["after_change"]["predictors"] for place in (0, 2))
        assert first["task-mean"]["mae_tokens"][0] > 500
        assert later["application-quantiles"]["mae_tokens"][0] < 20 < later["task-mean"]["mae_tokens"][0]

    def test_newcomers_are_told_apart(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        result = evaluated(path, "--online", "--hint", "--no-families", capsys=capsys)
        seen = result["settings"][0]["streams"][0]["by_answers_seen"]
        assert {name: one["rows"] for name, one in seen.items()} == {"0-9": 30, "10-49": 120, "50-499": 90}

    def test_prompts_that_came_before_are_told_apart(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        lines = [{**line, "id": str(place)} for place, line in enumerate([*records(), *records()[:40]])]
        result = evaluated(write(tmp_path / "rows.jsonl", lines), "--online", "--hint", "--no-families", capsys=capsys)
        stream = result["settings"][0]["streams"][0]
        seen = stream["by_prompt_seen"]
        assert {name: one["rows"] for name, one in seen.items()} == {
            "new": stream["prompts"],
            "again": stream["rows"] - stream["prompts"],
        }

    def test_a_single_row(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        result = evaluated(write(tmp_path / "rows.jsonl", records(1)), "--online", capsys=capsys)
        assert result["kendall_tau"] is None

    def test_bad_rows_are_skipped_and_counted(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = write(tmp_path / "rows.jsonl", [*records(30), "{", {"prompt": "x", "response_tokens": 0}])
        result = evaluated(path, "--online", "--hint", "--skip-bad-rows", capsys=capsys)
        assert result["skipped"] == {"not JSON": 1, "response_tokens": 1}

    def test_a_model_of_ones_own(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = Path(__file__).resolve().parents[2] / "models" / "output_length" / "random-forest"
        result = evaluated(path, "--hint", "--no-families", "--artifact", str(folder), capsys=capsys)
        assert result["predictor"] == "blended+calibrated"
        assert result["baselines"]["artifact forest"] == result["baselines"]["forest"]

    def test_fit_says_what_it_needs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        few = write(tmp_path / "rows.jsonl", records(20))
        assert cli.main(["predictor", "fit", "--data", str(few), "--artifact", str(tmp_path / "model")]) == 2
        assert "rows" in capsys.readouterr().err

    def test_the_table(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = ["--online", "--hint", "--no-families", "--resamples", "20"]
        assert cli.main(["predictor", "eval", "--data", str(path), *options]) == 0
        shown = capsys.readouterr().out
        assert "task-mean" in shown
        assert "predict" in shown

    @pytest.mark.parametrize(
        "options",
        [
            ["--data", "no-such-file"],
            ["--data", "."],
            ["--data", "PATH", "--resamples", "-1"],
            ["--data", "PATH", "--seed", "-1"],
            ["--data", "PATH", "--artifact", "no-such-folder"],
            ["--data", "PATH", "--artifact", "BROKEN"],
            ["--data", "PATH", "--family", "nobody"],
            ["--data", "PATH", "--held-out"],
            ["--data", "PATH", "--drift", "even", "odd"],
            ["--data", "PATH", "--online", "--drift", "even", "odd"],
            ["--data", "PATH", "--online", "--drift", "even", "odd", "--family", "odd"],
        ],
    )
    def test_bad_input_is_one_line_and_status_2(
        self, path: Path, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "model.onnx").write_bytes(b"x")
        (tmp_path / "manifest.json").write_bytes(b"{}")
        places = {"PATH": str(path), "BROKEN": str(tmp_path)}
        assert cli.main(["predictor", "eval", *(places.get(one, one) for one in options)]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert [line for line in told.err.splitlines() if line.startswith("llmrouter predictor: ")]

    def test_offline_with_too_few_prompts(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = write(tmp_path / "rows.jsonl", records(2))
        assert cli.main(["predictor", "eval", "--data", str(path)]) == 2
        assert "split" in capsys.readouterr().err

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmrouter import cli
from llmrouter.errors import InvalidInputError
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.study.figures import METRICS
from llmrouter.training.length_evaluation_artefact import shipped_text
from llmrouter.training.length_evaluation_rows import LengthRow, digest_of
from llmrouter.training.length_worth_columns import Column, columns_of, quality, read_by
from llmrouter.training.length_worth_result import (
    best_reserves,
    reserve_verdict,
    rows_of,
    verdict,
    verdicts_of,
)
from llmrouter.training.length_worth_runs import FIRST_COME, RESERVES, Block, Figures, Key, Runs
from llmrouter.training.length_worth_traffic import MIN_PROMPTS, Population, drawn, population, unseen

ROOT = Path(__file__).resolve().parents[2]
TASKS = {"short": 12, "middle": 150, "long": 700}


def rows(count: int = 120, *, spread: float = 0.3, seed: int = 5) -> list[LengthRow]:
    rng = np.random.default_rng(seed)
    names = list(TASKS)
    made = []
    for place in range(count):
        task = names[place % len(names)]
        tokens = max(1, round(TASKS[task] * float(np.exp(spread * rng.standard_normal()))))
        prompt = f"request {place} of the task {task}"
        made.append(row(prompt, tokens=tokens, task=task))
    return made


def row(prompt: str, *, tokens: int = 10, task: str = "short", source: str = "ours") -> LengthRow:
    return LengthRow(
        request=LengthRequest(prompt=prompt, prompt_tokens=8, application=task, model="m"),
        output_tokens=tokens,
        task=task,
        family="f",
        source=source,
        prompt_digest=digest_of(prompt),
    )


def people(count: int = 120, *, spread: float = 0.3) -> Population:
    return population(rows(count, spread=spread), hint=True, max_tokens=10_000)


class TestTraffic:
    def test_history_and_traffic_share_no_row(self) -> None:
        taken = drawn(people(), history=30, requests=90, seed=1)
        assert sorted([*taken.history, *taken.traffic]) == list(range(120))

    def test_rows_come_again_only_when_all_have_come(self) -> None:
        taken = drawn(people(), history=30, requests=200, seed=1)
        assert len(set(taken.traffic[:90].tolist())) == len(set(taken.traffic[90:180].tolist())) == 90
        assert set(taken.traffic.tolist()).isdisjoint(taken.history.tolist())

    def test_of_a_prompt_that_many_answered_one_answer_is_drawn(self) -> None:
        many = [row(f"prompt {number % 30}", tokens=1 + number) for number in range(90)]
        of = population(many, hint=True, max_tokens=10_000)
        assert of.prompts == 30
        taken = [drawn(of, history=10, requests=20, seed=seed) for seed in (1, 2)]
        for one in taken:
            rows_R = np.concatenate([one.history, one.traffic])
            assert sorted(of.prompt[rows_R].tolist()) == list(range(30))
        assert set(taken[0].traffic.tolist()) != set(taken[1].traffic.tolist())

    def test_a_seed_decides_the_rows_and_their_order(self) -> None:
        first, same, other = (drawn(people(), history=10, requests=50, seed=seed).traffic for seed in (3, 3, 4))
        assert first.tolist() == same.tolist() != other.tolist()

    def test_prompts_and_answers_are_those_of_the_rows(self) -> None:
        of = people()
        taken = drawn(of, history=10, requests=50, seed=3)
        slow, fast = taken.workload(1.0), taken.workload(4.0)
        assert slow.output_tokens.tolist() == of.output_tokens[taken.traffic].tolist()
        assert slow.arrived_at_s == pytest.approx(4.0 * fast.arrived_at_s)
        assert [slow.applications[index] for index in slow.application] == [
            of.requests[index].application for index in taken.traffic
        ]

    def test_requests_that_no_engine_holds_are_left_out(self) -> None:
        assert population(rows(), hint=True, max_tokens=300).prompts < 120
        with pytest.raises(InvalidInputError, match=f"at least {MIN_PROMPTS}"):
            population(rows(), hint=True, max_tokens=9)

    def test_without_the_hint_there_is_one_application(self) -> None:
        assert population(rows(), hint=False, max_tokens=10_000).applications == ("",)

    def test_unseen_prompts_are_held_out_or_of_other_sources(self) -> None:
        prompts = [f"prompt {number}" for number in range(200)]
        taught = [row(prompt, source="taught") for prompt in prompts]
        again = [row(prompt, source="other") for prompt in prompts]
        new = [row("new to it", source="other")]
        held_out = {one.prompt_digest for one in taught if one.held_out}
        found = unseen([*taught, *again, *new], {"taught"})
        assert 0 < len(held_out) < 200
        assert {one.prompt_digest for one in found} == held_out | {new[0].prompt_digest}


class TestColumns:
    def said(self, of: Population, *, lag: int | None, history: int = 40) -> tuple[dict[Column, Any], np.ndarray]:
        model, _ = shipped_text()
        taken = drawn(of, history=history, requests=of.prompts - history, seed=2)
        workload = taken.workload(1.0)
        ends_N = np.full(len(workload), np.nan)
        if lag is not None:
            ends_N[: len(workload) - lag] = workload.arrived_at_s[lag:]
        columns = columns_of(taken, workload, model=model, read=read_by(model, of.requests), finished_at_s=ends_N)
        return columns, workload.output_tokens

    def test_the_truth_nothing_and_what_lies_between(self) -> None:
        columns, actual_N = self.said(people(), lag=1)
        assert columns[Column.ORACLE].tokens.tolist() == actual_N.tolist()
        assert len(set(columns[Column.NONE].tokens.tolist())) == 1
        assert set(columns) == set(Column)
        good = quality(columns, actual_N)
        assert good["oracle"]["somers_d"] == pytest.approx(1.0)
        assert good["none"]["somers_d"] == 0.0
        assert good["task mean"]["mae_tokens"] < 0.6 * good["none"]["mae_tokens"]
        assert good["ours"]["mae_tokens"] < 0.8 * good["none"]["mae_tokens"]
        errors = [good[f"oracle × noise σ {sigma}"]["mae_tokens"] for sigma in ("0.5", "1", "2")]
        assert errors == sorted(errors)

    def test_an_answer_that_has_not_ended_teaches_nobody(self) -> None:
        of = people()
        columns, _ = self.said(of, lag=None)
        for name in (Column.TASK_MEAN, Column.APPLICATION):
            assert len(set(columns[name].tokens.tolist())) == len(TASKS)
        later, _ = self.said(of, lag=1)
        assert len(set(later[Column.TASK_MEAN].tokens.tolist())) > len(TASKS)

    def test_quantiles_are_above_one_another_and_buckets_are_three_values(self) -> None:
        columns, _ = self.said(people(), lag=1)
        median, upper, highest = (
            columns[name].tokens for name in (Column.OURS_MEDIAN, Column.OURS_Q75, Column.OURS_Q90)
        )
        assert (median <= upper).all()
        assert (upper <= highest).all()
        assert len(set(columns[Column.OURS_BUCKET].tokens.tolist())) <= 3

    def test_answers_that_are_learned_late_do_not_upset_what_is_said(self) -> None:
        alike = [replace(one, request=replace(one.request, application="one")) for one in rows(450, spread=0.8)]
        of = population(alike, hint=True, max_tokens=10_000)
        soon, actual_N = self.said(of, lag=1)
        late, _ = self.said(of, lag=200)
        for name in (Column.APPLICATION, Column.OURS):
            error, error_late = (np.abs(one[name].tokens - actual_N).mean() for one in (soon, late))
            assert error_late < 1.2 * error


def figures(e2e_s: float, *, preemptions: float = 0.0) -> Figures:
    return {**dict.fromkeys(METRICS, 1.0), "e2e_mean_s": e2e_s, "preemptions": preemptions}


def runs_with(**e2e_s: float) -> dict[Column, list[Figures]]:
    """Figures of four seeds for each column by its name; columns that are not named are like none."""
    jitter = (0.0, 0.01, -0.01, 0.005)
    values = {column: e2e_s.get(column.name.lower(), e2e_s["none"]) for column in Column}
    return {
        column: [figures(value * (1.0 + by * (1 + place % 2))) for by in jitter]
        for place, (column, value) in enumerate(values.items())
    }


class TestVerdicts:
    def test_nothing_where_the_interval_of_the_truth_holds_0(self) -> None:
        columns = runs_with(none=10.0, oracle=10.01)
        assert verdict(columns, columns[Column.NONE]).startswith("worth nothing for mean E2E: the truth changes it by")

    def test_a_gain_is_shared_out(self) -> None:
        columns = runs_with(none=10.0, oracle=8.0, ours=9.0, task_mean=9.6)
        said = verdict(columns, columns[Column.NONE])
        assert said.startswith("worth having for mean E2E: the truth changes it by −19.9")
        assert "(50 % of it)" in said
        assert "ours is better than the task's mean (−6." in said

    def test_harm_is_named(self) -> None:
        columns = runs_with(none=10.0, oracle=11.0, noise_2=30.0)
        said = verdict(columns, columns[Column.NONE])
        assert said.startswith("worse than nothing for mean E2E")
        assert "noise costs: σ 2 +200.0" in said

    def test_reserves(self) -> None:
        columns = runs_with(none=10.0, ours=10.0, ours_q75=8.0, ours_q90=12.0)
        said = reserve_verdict(columns)
        assert "q75 is better (−20." in said
        assert "q90 is worse (+20." in said

    def test_rows_verdicts_and_best_reserves_of_runs(self) -> None:
        reserving = runs_with(none=10.0, ours=10.0, ours_q75=8.0)
        placing = runs_with(none=10.0, oracle=8.0, ours=9.0)
        found = {Key(Block.PLACEMENT, 0.9, "P", column): one for column, one in placing.items()}
        found |= {Key(Block.ORDER, 0.9, FIRST_COME, Column.NONE): placing[Column.NONE]}
        found |= {Key(Block.ORDER, 0.9, "Shortest", column): one for column, one in placing.items()}
        found |= {
            Key(Block.RESERVE, 0.9, f"G, r {share:g}", column): one
            for share in RESERVES
            for column, one in reserving.items()
        }
        runs = Runs(3.0, found, [])
        table = rows_of(runs)
        assert len(table) == len(found)
        truth = next(one for one in table if (one["way"], one["column"]) == ("P", "oracle"))
        assert truth["e2e_mean_pct"] == pytest.approx(-20.0, abs=1.5)
        assert truth["preemptions_pct"] is None
        assert truth["preemptions_more"] == 0.0
        assert len(truth["by_seed"]["e2e_mean_s"]) == 4
        said = [(one["block"], one["way"]) for one in verdicts_of(runs)]
        assert said == [
            ("placement", "P"),
            ("order", "Shortest"),
            *(("reserve", f"G, r {share:g}") for share in RESERVES),
        ]
        best = {one["column"]: one for one in best_reserves(runs)}
        assert {one["policy"] for one in best.values()} == {"G"}
        assert best[Column.OURS]["e2e_mean_pct"] == 0.0
        assert best[Column.OURS_Q75]["e2e_mean_pct"] == pytest.approx(-20.0, abs=1.5)


class TestCommand:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        path = tmp_path / "answers.jsonl"
        lines = [
            {
                "prompt": one.request.prompt,
                "response_tokens": one.output_tokens,
                "prompt_tokens": one.request.prompt_tokens,
                "task": one.task,
                "family": "even" if place % 2 else "odd",
                "source": "ours",
            }
            for place, one in enumerate(rows(160))
        ]
        path.write_text("\n".join(json.dumps(line) for line in lines))
        return path

    @pytest.mark.timeout(600)  # the first simulation of a changed kernel compiles it
    def test_one_command_prints_verdicts_and_writes_everything(
        self, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = ["--profile", "h100-mix:2", "--loads", "1.1", "--seeds", "2", "--requests", "50", "--history", "20"]
        out = tmp_path / "worth.json"
        assert cli.main(["predictor", "worth", "--data", str(data), *options, "--json", str(out)]) == 0
        shown = capsys.readouterr().out
        assert "worth nothing" in shown
        result = json.loads(out.read_text())
        assert (result["requests"], result["history"], result["rows_drawn_from"]) == (50, 20, 160)
        assert {one["block"] for one in result["rows"]} == {"placement", "order", "reserve"}
        assert {one["column"] for one in result["rows"]} == {column.value for column in Column}
        assert set(result["quality"]) == {column.value for column in Column}
        assert any("new to the model" in note for note in result["notes"])

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (["--family", "nobody"], "--family 'nobody' has no row"),
            (["--history", "160"], "--history must be 1 to 159"),
            (["--requests", "0"], "--requests must be 1 to"),
            (["--profile", "h100-mix:0"], "--profile must be NAME or NAME:COUNT"),
            (["--profile", "unknown"], "no profile 'unknown'"),
            (["--loads", "-1"], "--loads must be above 0"),
            (["--first-seed", "9000"], "touch the final block"),
            (["--artifact", str(ROOT / "models/output_length/random-forest")], "not a text model"),
            (["--json", "/nowhere/at/all"], "there is no folder /nowhere/at"),
        ],
    )
    def test_bad_input_is_one_line(
        self, data: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
    ) -> None:
        assert cli.main(["predictor", "worth", "--data", str(data), *options]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1

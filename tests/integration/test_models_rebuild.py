"""What is shipped is what the code makes of the data: the same bytes."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from llmrouter.manifest import parse_manifest
from llmrouter.training.__main__ import TABLE, main
from llmrouter.training.length_table import (
    LICENCES,
    SHIPPED_SUBSETS,
    LengthRow,
    decode,
    encode,
    prompt_rows,
    trace_rows,
)

MODELS = Path(__file__).resolve().parents[2] / "models"
FOLDERS = ("policy/marginal-cost", "output_length/random-forest")


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models")
    assert main(["models", "--models", str(MODELS), "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "MODEL_CARD.md"])
def test_rebuilding_gives_the_same_bytes(rebuilt: Path, folder: str, name: str) -> None:
    made, committed = ((root / folder / name).read_bytes() for root in (rebuilt, MODELS))
    assert hashlib.sha256(made).hexdigest() == hashlib.sha256(committed).hexdigest()


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_manifest_names_the_model_s_digest(folder: str) -> None:
    manifest = parse_manifest((MODELS / folder / "manifest.json").read_bytes())
    assert manifest.sha256 == hashlib.sha256((MODELS / folder / "model.onnx").read_bytes()).hexdigest()


def test_models_stay_small() -> None:
    assert all((MODELS / folder / "model.onnx").stat().st_size < 1024 * 1024 for folder in FOLDERS)


@pytest.fixture(scope="module")
def rows() -> list[LengthRow]:
    return decode((MODELS / TABLE).read_bytes())


class TestTable:
    def test_writes_itself_again(self, rows: list[LengthRow]) -> None:
        again = encode(rows)
        assert gzip.decompress(again) == gzip.decompress((MODELS / TABLE).read_bytes())

    def test_every_source_s_licence_is_told(self, rows: list[LengthRow]) -> None:
        told = (MODELS / TABLE).with_name("LICENSES.md").read_text(encoding="utf-8")
        for source in {row.source for row in rows}:
            assert LICENCES[source] in told
            assert source.split("(")[0] in told

    def test_no_licence_forbids_commercial_use(self) -> None:
        assert set(LICENCES.values()) == {"MIT", "Apache-2.0", "CC-BY-4.0"}

    def test_refuses_a_row_of_another_source(self) -> None:
        row = LengthRow("chat", "tatsu-lab/alpaca_eval", held_out=False, prompt_tokens=1, output_tokens=1)
        with pytest.raises(ValueError, match="may not be shipped"):
            decode(encode([row]))


class TestCollecting:
    def line(self, **changes: object) -> str:
        record = {"task": "math", "app": "gsm8k", "source": "lm-sys/RouteLLM", "prompt": "2 + 2?"}
        return json.dumps({**record, "prompt_tokens": 7, "response_tokens": 9, **changes})

    def test_takes_what_may_be_shipped(self) -> None:
        (row,) = prompt_rows([self.line()])
        assert (row.application, row.prompt_tokens, row.output_tokens) == ("math", 7, 9)

    @pytest.mark.parametrize("source", ["tatsu-lab/alpaca_eval", "universal-ner/universal-ner", "unheard/of"])
    def test_leaves_out_what_may_not(self, source: str) -> None:
        assert list(prompt_rows([self.line(source=source)])) == []

    def test_leaves_out_subsets_with_other_terms(self) -> None:
        (source,) = SHIPPED_SUBSETS
        lines = [self.line(source=source, app=app) for app in ("just_eval/lima", "just_eval/mt")]
        assert len(list(prompt_rows(lines))) == 1

    def test_renames_a_task_that_clashes_with_an_application_of_the_trace(self) -> None:
        (row,) = prompt_rows([self.line(task="code")])
        assert row.application == "code_instruction"

    def test_all_answers_to_a_prompt_are_on_one_side(self) -> None:
        for number in range(50):
            lines = [self.line(prompt=f"p{number}", response_tokens=tokens) for tokens in (1, 2, 3)]
            assert len({row.held_out for row in prompt_rows(lines)}) == 1

    def test_splits_the_trace_by_time_and_stops_early(self) -> None:
        lines = ["arrival_s,input_tokens,output_tokens", "1.5,10,20", "700,11,21", "900,12,22"]
        assert [(row.prompt_tokens, row.held_out) for row in trace_rows(lines, "code")] == [(10, False), (11, True)]


def test_bad_input_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--models", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "training.csv.gz" in error

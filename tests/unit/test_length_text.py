from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from llmrouter.errors import InvalidInputError, ModelRejectedError
from llmrouter.lengths.distribution import LEVELS
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.lengths.text import DENSE, HASH_BUCKETS, IDS, text_features
from llmrouter.manifest import ModelKind, check_manifest, parse_manifest
from llmrouter.training.length_evaluation_artefact import load_artefact
from llmrouter.training.length_evaluation_rows import LengthRow, digest_of
from llmrouter.training.length_table import LICENCES
from llmrouter.training.length_text import Fitted, budgeted, fit, fit_artifact
from llmrouter.training.length_text_graph import export, rounded
from llmrouter.training.length_text_network import Losses, Sizes, loss
from llmrouter.training.length_text_rows import shippable, text_set
from llmrouter.training.length_text_shipped import main
from llmrouter.training.length_text_training import Recipe, TextModel, shown, train
from llmrouter.training.onnx_files import ExportDisagreesError

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL = Recipe(
    sizes=Sizes(4, 16, 8),
    epochs=1,
    min_updates=200,
    rounds=4,
    batch=64,
    learning_rate=0.02,
    without_words=0.0,
    without_prompt=0.0,
    id_dropout=0.1,
    min_prompts=5,
    dropout=0.0,
)
SHIPPED = Path(__file__).resolve().parents[2] / "models" / "output_length" / "text"


def rows_of(count: int = 700, *, source: str = "lm-sys/RouteLLM") -> list[LengthRow]:
    """Prompts whose first word says how long the answer is: *list* about 400 tokens, *name* about 20."""
    rng = np.random.default_rng(5)
    rows = []
    for number in range(count):
        long = number % 2 == 0
        prompt = (
            f"{'list' if long else 'name'} {' '.join(f'w{word}' for word in rng.integers(0, 60, 6))} number {number}"
        )
        rows.append(
            LengthRow(
                request=LengthRequest(prompt=prompt, prompt_tokens=20, application="quiz/one", model=f"m{number % 3}"),
                output_tokens=int(np.ceil((400 if long else 20) * rng.lognormal(0.0, 0.2))),
                task="quiz",
                family=f"f{number % 3 // 2}",
                source=source,
                prompt_digest=digest_of(prompt),
            )
        )
    return rows


def ignored(_done: int) -> None:
    pass


def quiet(_title: str, _total: int | None, /) -> Callable[[int], None]:
    return ignored


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return fit(rows_of(), recipe=SMALL, seed=3, progress=quiet)


@pytest.fixture(scope="module")
def folder(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("text")
    fitted.artefact.write(out)
    return out


class TestLearning:
    def test_the_words_decide(self, folder: Path) -> None:
        model, _ = load_artefact(folder)
        laws = model.predict(
            [LengthRequest(prompt=f"{word} w3 w5 w9 number 9001", prompt_tokens=20) for word in ("list", "name")]
        )
        long, short = laws.quantiles[:, LEVELS.index(0.5)]
        assert long > 150
        assert short < 60
        assert laws.rank[0] > laws.rank[1]

    def test_held_out_scores_are_told(self, fitted: Fitted) -> None:
        scores = fitted.artefact.manifest.scores
        assert scores["hint/all/bucket_accuracy"] > 0.95 > scores["task-mean/all/bucket_accuracy"]
        assert scores["hint/all/kendall_tau"] > 0.4
        assert "no-hint/family=f0/pinball_loss" in scores
        assert fitted.artefact.manifest.sha256 in fitted.artefact.card
        assert "better than the task's mean within the family: family=f0" in fitted.artefact.card

    def test_same_rows_and_seed_give_the_same_bytes(self, fitted: Fitted) -> None:
        again = fit(rows_of(), recipe=SMALL, seed=3, progress=quiet).artefact
        assert again.model == fitted.artefact.model
        assert again.manifest == fitted.artefact.manifest
        assert again.card == fitted.artefact.card

    def test_another_seed_gives_another_model(self, fitted: Fitted) -> None:
        other = fit(rows_of(), recipe=SMALL, seed=4, progress=quiet).artefact
        assert other.model != fitted.artefact.model

    def test_held_out_rows_train_nothing(self, fitted: Fitted) -> None:
        changed = [replace(row, output_tokens=7) if row.held_out else row for row in rows_of()]
        assert fit(changed, recipe=SMALL, seed=3, progress=quiet).artefact.model == fitted.artefact.model

    @pytest.mark.parametrize(("count", "message"), [(0, "0 rows are too few"), (40, "too few")])
    def test_too_few_rows(self, count: int, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            fit(rows_of(count), recipe=SMALL, seed=0, progress=quiet)

    def test_minutes_bound_the_rows_seen(self, tmp_path: Path) -> None:
        assert budgeted(SMALL, None) == SMALL
        assert budgeted(SMALL, 0.5).most_rows == 100_000
        with pytest.raises(InvalidInputError, match="minutes must be more than 0"):
            fit_artifact(rows_of(), tmp_path, seed=0, budget=0.0, progress=quiet)

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(InvalidInputError, match="cannot be written"):
            fit_artifact(rows_of(), tmp_path / "file" / "in", seed=0, budget=None, progress=quiet)


class TestLoss:
    def quantiles(self, *medians: float) -> np.ndarray:
        spread = np.linspace(-1, 1, len(LEVELS), dtype=np.float32)
        return np.array(medians, dtype=np.float32)[:, None] + spread

    def of(self, quantiles: np.ndarray, weights: Losses) -> float:
        tokens = np.log(np.array([10.0, 100.0, 300.0, 2_000.0], dtype=np.float32))
        return float(loss(quantiles, tokens, list_size=4, weights=weights))

    def test_pinball_is_least_at_the_truth(self) -> None:
        only = Losses(1.0, 0.0, 0.0)
        truth = np.repeat(np.log([[10.0], [100.0], [300.0], [2_000.0]]), len(LEVELS), axis=1).astype(np.float32)
        assert self.of(truth, only) == pytest.approx(0.0, abs=1e-6)
        assert self.of(truth + 0.5, only) > 0.1

    def test_list_mle_is_log_factorial_without_order_and_falls_with_it(self) -> None:
        only = Losses(0.0, 0.0, 1.0)
        assert self.of(self.quantiles(5, 5, 5, 5), only) == pytest.approx(np.log(24.0) / 4, rel=1e-5)
        right, wrong = self.quantiles(2, 3, 4, 5), self.quantiles(5, 4, 3, 2)
        assert self.of(right, only) < np.log(24) / 4 < self.of(wrong, only)

    def test_bucket_loss_asks_for_the_answer_s_bucket(self) -> None:
        only = Losses(0.0, 1.0, 0.0)
        spread = np.linspace(-1, 1, len(LEVELS), dtype=np.float32)
        right = np.log(np.array([[20.0], [60.0], [500.0], [4_000.0]], dtype=np.float32)) + 0.3 * spread
        assert self.of(right, only) < 0.05 < self.of(self.quantiles(6, 6, 6, 6), only)


Parts = tuple[TextModel, NDArray[np.int32], NDArray[np.float32]]


@pytest.fixture(scope="module")
def parts() -> Parts:
    rows = text_set(rows_of(), ignored)
    ids_NK, dense_ND = shown(rows, application=1, model=1)
    return rounded(train(rows, SMALL, seed=1, on_round=lambda *_: None)), ids_NK, dense_ND


class TestGraph:
    def test_agrees_with_the_network(self, parts: Parts) -> None:
        model, ids_NK, dense_ND = parts
        _, worst = export(model, ids_NK, dense_ND)
        assert worst < 1e-4

    def test_export_fails_where_it_does_not(self, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
        model, ids_NK, dense_ND = parts
        monkeypatch.setattr("llmrouter.training.length_text_graph.TOLERANCE", -1.0)
        with pytest.raises(ExportDisagreesError, match="differ by up to"):
            export(model, ids_NK, dense_ND)

    def test_embeddings_that_are_not_rounded_are_found_out(self, parts: Parts) -> None:
        model, ids_NK, dense_ND = parts
        moved = replace(model, parameters={**model.parameters, "table": model.parameters["table"] + np.float32(0.003)})
        with pytest.raises(ExportDisagreesError, match="differ by up to"):
            export(moved, ids_NK, dense_ND)

    def test_quantiles_never_cross(self, parts: Parts) -> None:
        model = parts[0]
        rng = np.random.default_rng(0)
        ids_NK = rng.integers(0, HASH_BUCKETS, (200, IDS)).astype(np.int32)
        quantiles_NQ = model.predict(ids_NK, rng.normal(0, 50, (200, DENSE)).astype(np.float32))
        assert (np.diff(quantiles_NQ, axis=1) >= 0).all()
        assert np.isfinite(quantiles_NQ).all()


class TestManifest:
    def test_is_checked_without_a_runtime(self, folder: Path) -> None:
        manifest = parse_manifest((folder / "manifest.json").read_bytes())
        digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
        check_manifest(manifest, expected_kind=ModelKind.OUTPUT_LENGTH, model_sha256=digest, expected_sha256=digest)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"featureVersion": 3}, "FeatureVersionMismatch"),
            ({"outputs": [{"name": "quantiles", "dtype": "float32", "shape": [None, 7]}]}, "ShapeMismatch"),
        ],
    )
    def test_another_contract_is_refused(self, folder: Path, changes: dict[str, object], reason: str) -> None:
        raw = json.loads((folder / "manifest.json").read_bytes()) | changes
        if "outputs" in changes:
            raw["bounds"].pop("rank")
        manifest = parse_manifest(json.dumps(raw).encode())
        with pytest.raises(ModelRejectedError) as caught:
            check_manifest(
                manifest, expected_kind=ModelKind.OUTPUT_LENGTH, model_sha256=manifest.sha256, expected_sha256=None
            )
        assert caught.value.reason == reason


class TestWhatMayBeShipped:
    def test_only_listed_sources_and_subsets(self) -> None:
        row = rows_of(1)[0]

        def of(source: str, application: str = "a") -> LengthRow:
            return replace(row, source=source, request=replace(row.request, application=application))

        rows = [
            of("lm-sys/RouteLLM"),
            of("tatsu-lab/alpaca_eval"),
            of("tatsu-lab/stanford_alpaca"),
            of("sahil280114/codealpaca"),
            of("RUCAIBox/HaluEval"),
            of(""),
            of("Re-Align/just-eval", "just_eval/lima"),
            of("Re-Align/just-eval", "just_eval/mt"),
        ]
        assert [row.source for row in shippable(rows)] == ["lm-sys/RouteLLM", "Re-Align/just-eval"]

    def test_the_command_trains_on_no_other(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "log.jsonl"
        line = {"prompt": "a", "response_tokens": 3, "source": "tatsu-lab/alpaca_eval"}
        file.write_text(json.dumps(line) + "\n")
        assert main(["--data", str(file), "--out", str(tmp_path / "out")]) == 2
        assert "too few" in capsys.readouterr().err
        assert list((tmp_path / "out").iterdir()) == []


class TestShipped:
    def test_is_made_for_these_very_features(self) -> None:
        _, manifest = load_artefact(SHIPPED)
        assert manifest.name == "text"
        features = text_features([LengthRequest(prompt="List 3 reasons why Öl burns?\n", application="a", model="m")])
        digest = hashlib.sha256(features.ids.tobytes() + np.round(features.dense, 4).tobytes()).hexdigest()
        assert digest[:16] == FEATURES_OF_FEATURE_VERSION_2

    def test_was_trained_only_on_rows_that_may_be_shipped(self) -> None:
        _, manifest = load_artefact(SHIPPED)
        assert {one.source for one in manifest.training_data} <= set(LICENCES)
        assert {one.licence for one in manifest.training_data} <= {"MIT", "Apache-2.0", "CC-BY-4.0"}
        card = (SHIPPED / "MODEL_CARD.md").read_text(encoding="utf-8")
        assert all(f"| {one.source} | {one.licence} |" in card for one in manifest.training_data)

    def test_fits_into_a_config_map(self) -> None:
        assert sum(file.stat().st_size for file in SHIPPED.iterdir()) * 4 / 3 < 1024 * 1024

    @pytest.mark.parametrize(
        "request_",
        [
            LengthRequest(),
            LengthRequest(prompt=""),
            LengthRequest(prompt="word " * 2_000_000, prompt_tokens=2_000_000),
            LengthRequest(prompt="\x00\x01\ud800\xff" * 5_000),
            LengthRequest(prompt="a", temperature=float("nan"), max_output_tokens=10**9, turn=10**9, tools=10**6),
        ],
    )
    def test_answers_whatever_comes(self, request_: LengthRequest) -> None:
        model, manifest = load_artefact(SHIPPED)
        law = model.predict([request_]).row(0)
        assert 1 <= law.quantiles[0] <= law.quantiles[-1] <= manifest.bounds["quantiles"].max

    def test_a_batch_answers_as_its_requests_alone_do(self) -> None:
        model, _ = load_artefact(SHIPPED)
        requests = [row.request for row in rows_of(12)]
        together = model.predict(requests).quantiles
        alone = np.concatenate([model.predict([request]).quantiles for request in requests])
        np.testing.assert_allclose(together, alone, rtol=1e-4)


FEATURES_OF_FEATURE_VERSION_2 = "897f4e21c3e311f2"
"""Where these change, ``TEXT_FEATURE_VERSION`` must, and the model must be trained anew."""

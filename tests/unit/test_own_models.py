"""Models on a volume, and models that are tried out before the router opens them."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest
from support.models import endless_scorer, hungry_scorer, manifest_for, shipped_manifest

from llmrouter.artefacts import builtin_model
from llmrouter.config import PolicyConfig
from llmrouter.errors import ModelRejectedError
from llmrouter.manifest import MAX_MODEL_BYTES, ModelKind
from router_grpc import probing
from router_grpc.adapters.own_models import COPIES, Files, OwnModels

if TYPE_CHECKING:
    from pathlib import Path

GOOD = Files(*builtin_model("policy", "marginal-cost"))
SHA256 = hashlib.sha256(GOOD.model).hexdigest()
ON_VOLUME = PolicyConfig(name="mine", type="Onnx", model_sha256=SHA256, model_path="cost/3")


def put(folder: Path, files: Files = GOOD) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(files.model)
    (folder / "manifest.json").write_bytes(files.manifest)
    return folder


def refusal(models: OwnModels, config: PolicyConfig = ON_VOLUME) -> tuple[str, str]:
    with pytest.raises(ModelRejectedError) as caught:
        models.policy(config, None)
    return str(caught.value.reason), str(caught.value)


def test_a_model_comes_from_the_volume(tmp_path: Path) -> None:
    put(tmp_path / "cost" / "3")

    assert OwnModels(tmp_path).policy(ON_VOLUME, None) == GOOD


def test_what_is_not_on_the_volume_is_said_and_looked_for_again(tmp_path: Path) -> None:
    models = OwnModels(tmp_path)
    assert refusal(models) == ("ModelNotFound", "cost/3/model.onnx: No such file or directory")
    assert not models.has_come()

    put(tmp_path / "cost" / "3")
    assert models.has_come()
    models.begin()
    assert not models.has_come()


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "cost" / "3", GOOD._replace(model=b"other"))

    reason, message = refusal(OwnModels(tmp_path))

    assert reason == "DigestMismatch"
    assert hashlib.sha256(b"other").hexdigest() in message


def test_what_is_no_file_or_too_large_or_elsewhere_is_refused(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    folder = put(volume / "cost" / "3")
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")
    assert refusal(OwnModels(volume)) == ("ModelNotFound", "cost/3/model.onnx is no file")

    (folder / "model.onnx").unlink()
    (tmp_path / "outside").write_bytes(GOOD.model)
    (folder / "model.onnx").symlink_to(tmp_path / "outside")
    assert refusal(OwnModels(volume)) == ("ModelNotFound", "cost/3/model.onnx leads out of the volume")

    (folder / "model.onnx").unlink()
    with (folder / "model.onnx").open("wb") as huge:
        huge.truncate(MAX_MODEL_BYTES + 1)
    assert refusal(OwnModels(volume))[0] == "ModelTooLarge"
    assert refusal(OwnModels())[0] == "ModelNotFound"


def test_a_file_that_is_overwritten_changes_nothing_while_a_copy_is_kept(tmp_path: Path) -> None:
    folder = put(tmp_path / "volume" / "cost" / "3")
    OwnModels(tmp_path / "volume", tmp_path / "kept").policy(ON_VOLUME, None)
    (folder / "model.onnx").write_bytes(b"other")

    again = OwnModels(tmp_path / "volume", tmp_path / "kept")  # the container was started again

    assert again.policy(ON_VOLUME, None) == GOOD


def test_copies_of_models_that_are_used_no_more_go(tmp_path: Path) -> None:
    models, volume = OwnModels(tmp_path / "volume", tmp_path / "kept"), tmp_path / "volume"
    digests = []
    for number in range(5):
        files = GOOD._replace(model=GOOD.model + bytes([number]))
        put(volume / str(number), files)
        digests.append(hashlib.sha256(files.model).hexdigest())
        changes = {"model_path": str(number), "model_sha256": digests[-1]}
        assert models.policy(ON_VOLUME.model_copy(update=changes), None) == files

    assert {one.name for one in (tmp_path / "kept").iterdir()} == set(digests[-COPIES:])


def test_a_model_is_tried_out_once(tmp_path: Path) -> None:
    tried: list[ModelKind] = []
    models = OwnModels(probe=lambda kind, _: tried.append(kind))
    config = ON_VOLUME.model_copy(update={"model_path": None})

    for _ in range(3):
        assert models.policy(config, GOOD) == GOOD

    assert tried == [ModelKind.POLICY]
    assert not list(tmp_path.iterdir())


def test_a_model_that_fails_its_trial_is_not_opened() -> None:
    def fail(_: ModelKind, __: Files) -> None:
        raise ModelRejectedError("ProbeFailed", "it died")

    config = ON_VOLUME.model_copy(update={"model_path": None})
    with pytest.raises(ModelRejectedError, match="it died"):
        OwnModels(probe=fail).policy(config, GOOD)


def test_good_models_pass_their_trial_in_a_process_of_its_own() -> None:
    probing.probe(ModelKind.POLICY, GOOD)


@pytest.mark.parametrize(
    ("model", "reason"),
    [(b"no graph", "ModelCorrupt"), (hungry_scorer(), "ShapeMismatch"), (endless_scorer(), "ProbeFailed")],
    ids=["no graph", "hungry", "endless"],
)
def test_what_would_harm_the_router_harms_the_trial_alone(model: bytes, reason: str) -> None:
    files = Files(model, manifest_for(model, shipped_manifest()))

    with pytest.raises(ModelRejectedError) as caught:
        probing.probe(ModelKind.POLICY, files, cpu_s=1)
    assert caught.value.reason == reason

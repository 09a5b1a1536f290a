"""What routers read: a ConfigMap as the operator writes it, or a file with models of one's own beside it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from kubernetes.aio import client
from support.model_server import model_server

from llmrouter import cli
from llmrouter.artefacts import builtin_model
from llmrouter.config import DIGEST_ANNOTATION, digest_of, parse_router_config
from llmrouter.errors import InvalidConfigError
from llmrouter_operator.builders import Owner, build_config_map
from llmrouter_operator.models import ModelFiles, ObjectKey
from router_grpc.adapters.file_source import FileSource, compile_file
from router_grpc.adapters.kube import bundle_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from router_grpc.runtime import ConfigBundle

MODEL, MANIFEST = builtin_model("output_length", "text")
FILE = """
apiVersion: llmrouter.dev/v1alpha1
kind: LLMRouter
metadata: {name: llm}
spec:
  models: [{name: llama, tokenizer: llama/tokenizer.json}]
  pools: [{name: main, endpoints: ["127.0.0.1:1"], profile: {name: llama-3.1-8b-rtx4090}}]
  policyRef: {name: policy}
  predictor: {type: Text}
  router: {replicas: 1, tokenizers: {configMap: {name: tokenizers}}}
---
apiVersion: llmrouter.dev/v1alpha1
kind: RoutingPolicy
metadata: {name: policy}
spec: {type: LeastInFlight}
"""


class TestOfAConfigMap:
    def test_everything_that_the_operator_writes_is_read(self) -> None:
        owner = Owner(ObjectKey("team", "fleet"), "uid-1")
        built = build_config_map(
            owner, b"{}", ModelFiles("cG9saWN5", '{"p": 1}'), predictor=ModelFiles("bGVuZ3Rocw==", '{"l": 1}')
        )
        metadata = client.V1ObjectMeta(annotations=built["metadata"]["annotations"])
        bundle = bundle_of(client.V1ConfigMap(metadata=metadata, data=built["data"], binary_data=built["binaryData"]))

        assert bundle is not None
        assert bundle.content == b"{}"
        assert bundle.declared_digest == built["metadata"]["annotations"][DIGEST_ANNOTATION]
        assert (bundle.model, bundle.manifest) == (b"policy", b'{"p": 1}')
        assert (bundle.predictor_model, bundle.predictor_manifest) == (b"lengths", b'{"l": 1}')

    def test_models_may_be_absent(self) -> None:
        bundle = bundle_of(client.V1ConfigMap(data={"router.json": "{}"}))

        assert bundle is not None
        assert (bundle.model, bundle.manifest, bundle.predictor_model, bundle.predictor_manifest) == (None,) * 4
        assert (bundle.candidate_model, bundle.candidate_manifest) == (None, None)
        assert bundle_of(client.V1ConfigMap()) is None


async def first(source: FileSource) -> ConfigBundle:
    def refused(error: InvalidConfigError) -> None:
        raise error

    async for bundle in source.bundles(refused):
        return bundle
    raise AssertionError("a source does not end")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "router.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "artefact"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(MODEL)
    (folder / "manifest.json").write_bytes(MANIFEST)
    return folder


class TestOfAFile:
    async def test_a_predictor_of_ones_own_is_read_from_its_folder(self, file: Path, folder: Path) -> None:
        source = FileSource(file, predictor=folder)
        bundle = await first(source)

        config = parse_router_config(bundle.content)
        assert config == source.read()
        assert (config.predictor.type, config.predictor.model_sha256) == ("Text", digest_of(MODEL))
        assert (bundle.predictor_model, bundle.predictor_manifest) == (MODEL, MANIFEST)

    async def test_without_a_folder_the_shipped_one_is_meant(self, file: Path) -> None:
        bundle = await first(FileSource(file))

        assert parse_router_config(bundle.content).predictor.model_sha256 is None
        assert bundle.predictor_model is None

    def test_paths_of_tokenizers_are_known_by_model(self, file: Path) -> None:
        assert FileSource(file).read().tokenizers == {"llama": "llama/tokenizer.json"}

    def test_a_model_in_a_config_map_needs_a_cluster(self) -> None:
        model = f"{{configMap: {{name: m}}, sha256: {'a' * 64}}}"
        with pytest.raises(InvalidConfigError, match=r"predictor\.model\.configMap needs Kubernetes"):
            compile_file(FILE.replace("{type: Text}", f"{{type: Text, model: {model}}}"))

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda folder: (folder / "model.onnx").unlink(), "model.onnx: No such file"),
            (lambda folder: (folder / "manifest.json").unlink(), "manifest.json: No such file"),
            (lambda folder: (folder / "manifest.json").write_text("{"), "--predictor .*manifest"),
            (lambda folder: (folder / "manifest.json").write_bytes(b" " * 300_000), "more than 262144 bytes"),
            (lambda folder: (folder / "model.onnx").write_bytes(MODEL[:-1]), "its manifest says"),
            (lambda folder: write(folder, *builtin_model("policy", "marginal-cost")), "is a policy model"),
            (lambda folder: write(folder, *builtin_model("output_length", "random-forest")), "of predictor.type Rand"),
            (lambda folder: write(folder, MODEL, renamed("9 lives")), "name: "),
        ],
    )
    def test_a_folder_that_holds_no_such_model_is_one_clear_line(
        self,
        file: Path,
        folder: Path,
        spoil: Callable[[Path], object],
        message: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        spoil(folder)
        with pytest.raises(InvalidConfigError, match=message):
            FileSource(file, predictor=folder).read()
        assert cli.main(["serve", "--config", str(file), "--predictor", str(folder)]) == 2
        assert capsys.readouterr().err.count("\n") == 1

    def test_a_folder_of_tokenizers_that_is_not_there_is_one_line(
        self, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["serve", "--config", str(file), "--tokenizers", str(file.parent / "nowhere")]) == 2
        assert "nowhere: no such folder" in capsys.readouterr().err


def write(folder: Path, model: bytes, manifest: bytes) -> None:
    (folder / "model.onnx").write_bytes(model)
    (folder / "manifest.json").write_bytes(manifest)


def renamed(name: str) -> bytes:
    return json.dumps(json.loads(MANIFEST) | {"name": name}).encode()


class TestOfModelsFromElsewhere:
    def test_a_model_behind_a_url_is_fetched_once(self, tmp_path: Path) -> None:
        model, manifest = builtin_model("policy", "marginal-cost")
        with model_server() as server:
            url = server.serve_model("/m", model, manifest)
            source = FileSource(write_file(tmp_path, f'http: {{url: "{url}"}}', digest_of(model)))
            for _ in range(2):
                config = source.read()
            bundle = source._bundle((tmp_path / "router.yaml").read_text())

            assert config.policy.model_sha256 == digest_of(model)
            assert (bundle.model, bundle.manifest) == (model, manifest)
            assert server.asked["/m/model.onnx"] == 1

    def test_one_that_cannot_be_fetched_is_left_alone_for_a_while(self, tmp_path: Path) -> None:
        now_s = [0.0]
        with model_server() as server:
            path = write_file(tmp_path, f'http: {{url: "{server.url("/none")}"}}', "0" * 64)
            source = FileSource(path, clock_s=lambda: now_s[0])
            for now_s[0] in (1.0, 2.0, 11.5):
                with pytest.raises(
                    InvalidConfigError, match="RoutingPolicy: model: the manifest: the server answers 404"
                ):
                    source.read()

            assert server.asked["/manifest.json"] == 2

    def test_a_volume_is_a_folder(self, tmp_path: Path) -> None:
        path = write_file(tmp_path, "persistentVolumeClaim: {claimName: c, path: cost/3}", "0" * 64)

        assert FileSource(path, models=tmp_path).read().policy.model_path == "cost/3"
        with pytest.raises(InvalidConfigError, match="--models DIR"):
            FileSource(path).read()


def write_file(folder: Path, source: str, sha256: str) -> Path:
    path = folder / "router.yaml"
    spec = f'spec: {{type: Onnx, model: {{{source}, sha256: "{sha256}"}}}}'
    path.write_text(FILE.replace("spec: {type: LeastInFlight}", spec))
    return path

"""What is generated or copied is what its source says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ("router_grpc/v1/ext_proc.proto", "router_grpc/v1/router.proto")


def test_stubs_are_those_of_the_proto(tmp_path: Path) -> None:
    outputs = [f"--{kind}={tmp_path}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", *outputs, *PROTOS], cwd=ROOT, check=True)
    generated = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.py*"))
    assert len(generated) == 3 * len(PROTOS)
    for path in generated:
        assert (ROOT / path).read_text() == (tmp_path / path).read_text(), f"{path} is stale: make stubs"


def test_the_charts_crds_are_the_canonical_ones() -> None:
    canonical = {path.name: path.read_text() for path in (ROOT / "crds").glob("*.yaml")}
    copied = {path.name: path.read_text() for path in (ROOT / "charts/llmrouter/crds").glob("*.yaml")}
    assert canonical == copied
    assert len(canonical) == 2


@pytest.mark.parametrize("folder", ["llmrouter", "router_grpc", "operator", "tests", "bench"])
def test_files_stay_readable(folder: str) -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / folder).rglob("*.py")
        if not path.stem.endswith(("_pb2", "_pb2_grpc")) and (lines := path.read_text().count("\n")) >= 500
    }
    assert long == {}

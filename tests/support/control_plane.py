"""A real kube-apiserver with etcd and the controllers, one for the whole session, without root.

`pytest_plugins = ["support.control_plane"]` or an import in a conftest brings the fixture in.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from llmrouter.testbed.cluster.binaries import CONTROL_PLANE, Binaries
from llmrouter.testbed.cluster.control_plane import ControlPlane, Settings

CRDS = Path(__file__).resolve().parents[2] / "crds"


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """Starts a control plane that knows the project's CRDs; tests keep apart by namespaces of their own."""
    binaries = Binaries().provide(CONTROL_PLANE)
    crds = tuple(yaml.safe_load(file.read_text()) for file in sorted(CRDS.glob("*.yaml")))
    with (
        tempfile.TemporaryDirectory(prefix="llmrouter-control-plane-") as directory,
        ControlPlane(Settings(directory=Path(directory), crds=crds), binaries) as running,
    ):
        yield running

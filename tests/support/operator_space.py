"""An operator under the chart's rights, and a namespace with one LLMRouter.

`pytest_plugins = ["support.control_plane", "support.operator_space"]` brings the fixtures in.
"""

import hashlib
from collections.abc import Iterator

import pytest
from support.operator_process import (
    OperatorProcess,
    Space,
    chart_rights,
    grant,
    llm_router,
    make_namespace,
    routing_policy,
    running_operator,
)
from support.played_routers import EVERYTHING

from llmrouter.testbed.cluster.control_plane import ControlPlane


@pytest.fixture(scope="module")
def operator(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    kubeconfig = grant(control_plane, chart_rights())
    log = tmp_path_factory.mktemp("operator") / "operator.log"
    with running_operator(kubeconfig, log, ["--all-namespaces", "--lease-seconds=15"]) as running:
        yield running


@pytest.fixture
def space(control_plane: ControlPlane, operator: OperatorProcess, request: pytest.FixtureRequest) -> Iterator[Space]:
    """A namespace of the test's own with one LLMRouter, ``fleet``, that owns everything."""
    name = "t-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:8]
    made = make_namespace(control_plane, name)
    made.apply(routing_policy("plain"))
    made.apply(llm_router("fleet"))
    made.wait(lambda: len(made.owned("fleet")) == len(EVERYTHING), f"everything owned, see {operator.log}")
    made.wait(lambda: made.status("fleet").get("observedGeneration") == 1, "the first status")
    yield made
    made.api.call("DELETE", f"/api/v1/namespaces/{name}")

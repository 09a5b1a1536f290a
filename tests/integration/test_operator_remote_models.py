"""Models from a server, through a real operator: adopted, kept without the server, refused by name."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from support.model_server import model_server, push, redirecting
from support.operator_process import llm_router, routing_policy, watched
from support.played_routers import config_of, policy_in_force

from llmrouter.artefacts import builtin_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.model_server import ModelServer
    from support.operator_process import OperatorProcess, Space

    from llmrouter.testbed.cluster.control_plane import ControlPlane

pytest_plugins = ["support.control_plane"]
MODEL, MANIFEST = builtin_model("policy", "marginal-cost")
SHA256 = hashlib.sha256(MODEL).hexdigest()


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as running:
        yield running


def policy(name: str, sha256: str = SHA256, **source: object) -> dict[str, object]:
    return routing_policy(name, type="Onnx", model={**source, "sha256": sha256})


def test_a_fetched_model_is_in_force_and_stays_without_its_server(
    control_plane: ControlPlane, server: ModelServer, tmp_path: Path
) -> None:
    ours = watched(control_plane, "remote-models")
    space, model_host = ours.space, f"--model-host=http://{server.host}"
    url = server.serve_model("/cost/3", MODEL, MANIFEST)
    space.apply(policy("by-url", http={"url": url}))
    space.apply(llm_router("fleet", policyRef={"name": "by-url"}))

    def reason() -> str:
        return str(space.condition("fleet", "PolicyReady")["reason"])

    with ours.operator(tmp_path / "first.log", model_host) as operator:
        space.wait(lambda: policy_in_force(space) == "by-url", f"the model in force, see {operator.log}")
        assert config_of(space)[1].policy.model_sha256 == SHA256
        _refuse_what_lies(space, server, reason)
        assert policy_in_force(space) == "by-url"
        server.files.clear()
        operator.kill()
    asked = server.asked.total()

    space.apply(policy("by-url", http={"url": url}))
    with ours.operator(tmp_path / "second.log", model_host) as operator:
        _changes_are_seen(space, operator)
        assert policy_in_force(space) == "by-url"
        assert server.asked.total() == asked


def _refuse_what_lies(space: Space, server: ModelServer, reason: Callable[[], str]) -> None:
    """Each is named while the model in force stays; then the same model comes from a registry."""
    redirect = server.act("/away/model.onnx", redirecting("http://169.254.169.254/latest"), MANIFEST)
    space.apply(llm_router("fleet", policyRef={"name": "other"}))
    for wanted, url in (("RedirectRefused", redirect), ("HostNotAllowed", "https://models.test/m")):
        space.apply(policy("other", "0" * 64, http={"url": url}))
        space.wait(lambda: reason() == wanted, wanted)  # noqa: B023 - awaited before the next
        assert policy_in_force(space) == "by-url"
    image = push(server, "cost", "3", [(MODEL, "x", "model.onnx"), (MANIFEST, "x", "manifest.json")])
    space.apply(policy("other", oci={"reference": f"{server.host}/cost@{image}"}))
    space.wait(lambda: policy_in_force(space) == "other", "the same model from a registry")
    space.apply(llm_router("fleet", policyRef={"name": "by-url"}))
    space.wait(lambda: policy_in_force(space) == "by-url", "the first again")


def _changes_are_seen(space: Space, operator: OperatorProcess) -> None:
    space.apply(llm_router("fleet", policyRef={"name": "by-url"}, limits={"maxPromptTokens": 77}))
    space.wait(
        lambda: config_of(space)[1].limits.max_prompt_tokens == 77, f"a new operator reconciles, see {operator.log}"
    )

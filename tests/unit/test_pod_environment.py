"""What the operator puts into a pod's environment is what a router reads there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.crd_cases import router

from llmrouter.config import CERTIFICATE_FOLDER
from llmrouter.resources import LLMRouterSpec
from llmrouter_operator.builders import Owner, build_deployment
from llmrouter_operator.models import ObjectKey, RouterDefaults
from router_grpc.__main__ import settings_from

if TYPE_CHECKING:
    from router_grpc.composition import Settings

OWNER = Owner(ObjectKey("team", "fleet"), "uid-1")


def settings(**listeners: Any) -> Settings:  # noqa: ANN401 - any field
    spec = LLMRouterSpec.model_validate(router(listeners=listeners))
    pod = build_deployment(OWNER, spec, RouterDefaults(image="i"))["spec"]["template"]["spec"]
    environment = {entry["name"]: entry.get("value", "pod-1") for entry in pod["containers"][0]["env"]}
    return settings_from(environment)


def test_listeners_that_are_not_declared_are_not_served() -> None:
    found = settings(grpcPort=9001)
    assert (found.router_id, found.namespace, found.ledger_namespace) == ("pod-1", "team", "team/fleet/uid-1")
    assert (found.grpc_port, found.metrics_port, found.ext_proc_port, found.openai_port) == (9001, 9090, None, None)
    assert found.tls is None


def test_the_endpoint_picker_makes_a_certificate_for_the_names_of_its_service() -> None:
    found = settings(extProc={"port": 9003})
    assert (found.ext_proc_port, found.ext_proc_is_fast) == (9003, True)
    assert found.tls is not None
    assert found.tls.folder is None
    assert found.tls.names == (
        "fleet-router",
        "fleet-router.team",
        "fleet-router.team.svc",
        "fleet-router.team.svc.cluster.local",
    )
    assert settings(extProc={"transport": "Grpc"}).ext_proc_is_fast is False


def test_a_certificate_is_read_where_it_is_mounted() -> None:
    found = settings(extProc={"certificateSecretRef": {"name": "tls"}})
    assert found.tls is not None
    assert found.tls.folder == Path(CERTIFICATE_FOLDER)
    assert settings(extProc={"secureServing": False}).tls is None


def test_the_openai_front_has_its_port() -> None:
    assert settings(openai={"port": 8088}).openai_port == 8088

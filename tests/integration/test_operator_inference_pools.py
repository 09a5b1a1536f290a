"""The operator and InferencePools on a real API server: the picker's Service, what is said, and the routers' rights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubernetes.aio import client
from support.inference_pools import inference_pool, teach, unteach
from support.operator_process import Object, Space, llm_router
from support.played_routers import config_of
from support.router_world import until

from router_grpc.adapters.instances import InstanceDirectory
from router_grpc.adapters.kube import connect

if TYPE_CHECKING:
    from llmrouter.testbed.cluster.control_plane import ControlPlane

pytest_plugins = ["support.control_plane", "support.operator_space"]
PICKER = {"name": "chat-picker", "port": {"number": 9002}, "failureMode": "FailOpen"}
LABELS = {"app": "engine"}


def referring(**listener: object) -> Object:
    pool = {"name": "main", "inferencePoolRef": {"name": "chat"}, "profile": {"name": "llama-3.1-8b-rtx4090"}}
    return llm_router("fleet", pools=[pool], listeners={"extProc": listener})


def put_pool(space: Space, **picker: object) -> None:
    space.apply(inference_pool("chat", LABELS, picker=PICKER | picker))


def await_reason(space: Space, kind: str, reason: str) -> str:
    space.wait(lambda: space.condition("fleet", kind)["reason"] == reason, f"{kind} {reason}")
    return str(space.condition("fleet", kind)["message"])


def test_a_pool_and_its_kind_may_come_later_and_the_picker_gets_its_service(space: Space) -> None:
    unteach(space.api)
    space.apply(referring())
    await_reason(space, "InferencePoolsResolved", "InferencePoolNotFound")
    await_reason(space, "CertificateReady", "NotAcknowledged")
    teach(space.api)
    put_pool(space)
    space.wait(lambda: space.exists("Service", "chat-picker"), "the Service is made")
    await_reason(space, "InferencePoolsResolved", "Resolved")
    said = await_reason(space, "EndpointPickerReferenced", "Referenced")
    assert said == "chat: Service chat-picker port 9002, failureMode FailOpen"
    service = space.get("Service", "chat-picker")
    workload = space.get("Service", "fleet-router")
    assert service["spec"]["selector"] == workload["spec"]["selector"]
    assert [(one["port"], one["appProtocol"]) for one in service["spec"]["ports"]] == [(9002, "http2")]
    assert service["metadata"]["ownerReferences"][0]["name"] == "fleet"
    space.wait(lambda: bool(space.events("fleet", "PickerServiceMade")), "an Event says so")
    space.delete("Service", "chat-picker")
    space.wait(lambda: space.exists("Service", "chat-picker"), "it is made again")
    unchanged = space.get("InferencePool", "chat")["metadata"]
    assert (unchanged["generation"], [one["manager"] for one in unchanged["managedFields"]]) == (1, ["person"])
    space.delete("InferencePool", "chat")
    await_reason(space, "InferencePoolsResolved", "InferencePoolNotFound")


def test_anothers_service_is_never_taken_over(space: Space) -> None:
    teach(space.api)
    ports = [{"name": "grpc", "port": 9002}]
    theirs = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "theirs"}}
    space.apply({**theirs, "spec": {"selector": {"app": "their-picker"}, "ports": ports}})
    before = space.get("Service", "theirs")["metadata"]["resourceVersion"]
    put_pool(space, name="theirs")
    space.apply(referring())
    assert "theirs" in await_reason(space, "EndpointPickerReferenced", "AnotherPicker")
    space.wait(lambda: bool(space.events("fleet", "AnotherPicker")), "an Event warns")
    assert space.get("Service", "theirs")["metadata"]["resourceVersion"] == before
    put_pool(space, name="fleet-router")
    await_reason(space, "EndpointPickerReferenced", "Referenced")
    put_pool(space, name="fleet-router", port={"number": 9009})
    await_reason(space, "EndpointPickerReferenced", "AnotherPort")
    space.apply(referring() | {"spec": referring()["spec"] | {"listeners": {}}})
    await_reason(space, "EndpointPickerReferenced", "NoEndpointPicker")


async def test_routers_may_follow_the_pools_that_are_referred_to_and_no_others(
    control_plane: ControlPlane, space: Space
) -> None:
    teach(space.api)
    put_pool(space)
    space.apply(inference_pool("other", LABELS))
    space.apply(referring())
    await_reason(space, "InferencePoolsResolved", "Resolved")
    _, config = config_of(space)
    kubeconfig = control_plane.service_account_kubeconfig(space.name, "fleet-router")
    api = await connect(str(kubeconfig))
    errors: list[Exception] = []
    directory = InstanceDirectory(
        client.CoreV1Api(api), namespace=space.name, on_change=lambda: None, on_error=errors.append
    )
    try:
        directory.apply(config)
        await until(lambda: directory.synced, what="the pool and its pods are listed")
        assert errors == []
        (pool,) = config.pools
        directory.apply(config.model_copy(update={"pools": (pool.model_copy(update={"inference_pool": "other"}),)}))
        await until(lambda: bool(errors), what="it is refused")
        assert isinstance(errors[0], client.ApiException)
        assert errors[0].status == 403
    finally:
        await directory.close()
        await api.close()


def test_a_missing_certificate_keeps_no_router_from_starting(space: Space) -> None:
    space.apply(llm_router("fleet", listeners={"extProc": {"certificateSecretRef": {"name": "absent"}}}))

    def volumes() -> list[Object]:
        found: list[Object] = space.get("Deployment", "fleet-router")["spec"]["template"]["spec"]["volumes"]
        return [one["secret"] for one in found if "secret" in one]

    space.wait(lambda: [one["secretName"] for one in volumes()] == ["absent"], "the Secret is mounted")
    assert volumes()[0]["optional"] is True

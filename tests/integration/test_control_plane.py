"""The control plane fixture does what tests lean on: real RBAC, real garbage collection, real outages."""

import json

import pytest

from llmrouter.testbed.cluster.api import Api, ApiError
from llmrouter.testbed.cluster.control_plane import ControlPlane
from llmrouter.testbed.cluster.processes import poll

pytest_plugins = ["support.control_plane"]
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


def config_map(name: str, **metadata: object) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **metadata}}


def test_the_server_says_the_pinned_version(control_plane: ControlPlane) -> None:
    assert control_plane.api.get("/version")["gitVersion"].startswith("v1.")


def test_a_service_account_has_its_own_rights_only(control_plane: ControlPlane) -> None:
    control_plane.api.apply(
        "/api/v1/namespaces/default/serviceaccounts/reader",
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader"}},
    )
    path = control_plane.service_account_kubeconfig("default", "reader")
    token = json.loads(path.read_text())["users"][0]["user"]["token"]
    reader = Api(control_plane.server, control_plane.ca_file, token)

    with pytest.raises(ApiError, match="cannot list resource") as refusal:
        reader.get(CONFIG_MAPS)

    assert refusal.value.status == 403


def test_an_owned_object_goes_with_its_owner(control_plane: ControlPlane) -> None:
    owner = control_plane.api.call("POST", CONFIG_MAPS, config_map("owner"))
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    control_plane.api.call("POST", CONFIG_MAPS, config_map("owned", ownerReferences=[reference]))

    control_plane.api.call("DELETE", f"{CONFIG_MAPS}/owner")

    poll(lambda: not control_plane.api.exists(f"{CONFIG_MAPS}/owned"), within_s=60, what="owned object collected")


def test_the_api_server_comes_back_with_what_it_held(control_plane: ControlPlane) -> None:
    control_plane.api.apply(f"{CONFIG_MAPS}/kept", config_map("kept"))

    control_plane.stop_api_server()
    assert not control_plane.api.ready()
    control_plane.start_api_server()

    assert control_plane.api.exists(f"{CONFIG_MAPS}/kept")

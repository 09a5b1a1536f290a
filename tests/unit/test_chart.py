"""The chart renders what it should: least rights, the restricted profile, nothing that its schema does not know."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support.operator_process import CHART, SYSTEM, Object, render_chart

from llmrouter.testbed.cluster.binaries import Binaries
from llmrouter.testbed.envoy import Front, configuration, envoy_program
from llmrouter_operator.permissions import REBALANCE_RULES, RULES, Rule, lease_rules

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

FRONT = ("frontend.envoy.enabled=true", "frontend.envoy.router.name=chat")


@pytest.fixture(scope="module")
def rendered() -> list[Object]:
    return render_chart()


def of_kind(objects: Iterable[Object], kind: str) -> list[Object]:
    return [value for value in objects if value["kind"] == kind]


def permissions(rules: Iterable[Object]) -> set[tuple[str, str, str, str]]:
    return {
        (group, resource, verb, name)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


def needed(rules: Iterable[Rule]) -> set[tuple[str, str, str, str]]:
    return {(rule.group, rule.resource, verb, rule.name) for rule in rules for verb in rule.verbs}


def test_helm_lint_is_content() -> None:
    helm = Binaries().provide(("helm",))["helm"]
    linted = subprocess.run([str(helm), "lint", "--strict", str(CHART)], capture_output=True, text=True, check=False)

    assert linted.returncode == 0, linted.stdout


def test_the_operator_gets_exactly_what_it_asks_for(rendered: list[Object]) -> None:
    (cluster_role,) = of_kind(rendered, "ClusterRole")
    (lease_role,) = of_kind(rendered, "Role")

    assert permissions(cluster_role["rules"]) == needed(RULES)
    assert permissions(lease_role["rules"]) == needed(lease_rules("llmrouter-operator"))


def test_rights_never_reach_secrets_or_deletion(rendered: list[Object]) -> None:
    rules = [rule for kind in ("ClusterRole", "Role") for role in of_kind(rendered, kind) for rule in role["rules"]]

    for group, resource, verb, _ in permissions(rules):
        assert resource != "secrets"
        assert "*" not in {group, resource, verb}
        assert verb not in {"delete", "deletecollection", "escalate", "bind", "impersonate"}


def test_models_come_from_the_hosts_that_are_named_and_secrets_are_read_where_asked() -> None:
    objects = render_chart(
        "operator.models.allowedHosts={models.test,*.svc:8080}",
        "operator.models.credentials=true",
        "operator.models.authorities=ours",
    )

    (cluster_role,) = of_kind(objects, "ClusterRole")
    assert permissions(cluster_role["rules"]) - needed(RULES) == {("", "secrets", "get", "")}
    (operator,) = [one for one in of_kind(objects, "Deployment") if one["metadata"]["name"].endswith("operator")]
    (container,) = operator["spec"]["template"]["spec"]["containers"]
    assert {"--model-host=models.test", "--model-host=*.svc:8080"} <= set(container["args"])
    assert "LLMROUTER_MODEL_AUTHORITIES" in {one["name"] for one in container["env"]}


def test_replicas_may_be_changed_where_rebalancing_is_enabled_alone() -> None:
    (cluster_role,) = of_kind(render_chart("rebalance.enabled=true"), "ClusterRole")

    assert permissions(cluster_role["rules"]) == needed([*RULES, *REBALANCE_RULES])


def test_watched_namespaces_get_roles_and_no_cluster_role() -> None:
    objects = render_chart("watchNamespaces={a,b}")

    assert not of_kind(objects, "ClusterRole")
    assert not of_kind(objects, "ClusterRoleBinding")
    roles = {role["metadata"]["namespace"]: role for role in of_kind(objects, "Role")}
    assert set(roles) == {"a", "b", SYSTEM}
    assert permissions(roles["a"]["rules"]) == needed(RULES)
    (operator,) = [one for one in of_kind(objects, "Deployment") if one["metadata"]["name"].endswith("operator")]
    arguments = operator["spec"]["template"]["spec"]["containers"][0]["args"]
    assert {"--namespace=a", "--namespace=b"} <= set(arguments)
    assert "--all-namespaces" not in arguments


def test_all_pods_meet_the_restricted_profile(rendered: list[Object]) -> None:
    deployments = of_kind(rendered, "Deployment")
    assert len(deployments) == 2
    for deployment in deployments:
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


def test_the_redis_password_is_in_the_secret_alone(rendered: list[Object]) -> None:
    (secret,) = of_kind(rendered, "Secret")
    password = secret["stringData"]["password"]

    assert len(password) == 32
    assert f"requirepass {password}" in secret["stringData"]["redis.conf"]
    assert not [value for value in rendered if value["kind"] != "Secret" and password in json.dumps(value)]


def test_redis_can_be_left_out() -> None:
    objects = render_chart("redis.enabled=false")

    assert not [value for value in objects if value["metadata"]["name"].endswith("redis")]


@pytest.mark.parametrize(
    "setting",
    [
        "operator.replicas=3",
        "operator.replica=1",
        "images.pullPolicy=Sometimes",
        "redis.maxMemory=lots",
        "frontend.envoy.enabled=true",  # of which LLMRouter?
        "frontend.envoy.limits.bodyBytes=16777217",
        "frontend.envoy.service.type=ExternalName",
    ],
)
def test_values_that_mean_nothing_are_refused(setting: str) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        render_chart(setting)


def test_every_value_is_in_the_schema_and_explained() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())

    assert set(values) == set(schema["required"])
    for section in ("images", "operator", "redis", "frontend"):
        assert_explained(values[section], schema["properties"][section])


def assert_explained(values: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    if "required" in schema:
        assert set(values) == set(schema["required"])
        for name, inner in schema["properties"].items():
            if inner.get("type") == "object":
                assert_explained(values[name], inner)


def files_of_front(*settings: str) -> dict[str, str]:
    (files,) = [
        one
        for one in of_kind(render_chart(*FRONT, *settings), "ConfigMap")
        if one["metadata"]["name"].endswith("front")
    ]
    found: dict[str, str] = files["data"]
    return found


def front_of(objects: list[Object]) -> Object:
    (found,) = [one for one in of_kind(objects, "Deployment") if one["metadata"]["name"].endswith("front")]
    return found


def test_the_front_is_there_only_when_asked_for(rendered: list[Object]) -> None:
    assert not [one for one in rendered if "front" in one["metadata"]["name"]]


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ((), {"picker_tls": True, "access_log": True}),
        (
            (
                "frontend.envoy.tls.secretName=web",
                "frontend.envoy.router.tls=false",
                "frontend.envoy.accessLog=false",
                "frontend.envoy.instanceHeader=true",
                "frontend.envoy.limits.requests=7",
            ),
            {"tls_file": "/etc/llmrouter-front/tls.yaml", "show_instance": True, "max_requests": 7},
        ),
    ],
)
def test_the_front_has_the_same_configuration_as_without_kubernetes(
    settings: tuple[str, ...], changes: dict[str, Any]
) -> None:
    written = files_of_front(*settings)
    where: dict[str, Any] = {"address": "0.0.0.0", "probe_port": 9902, "heap_bytes": 943_718_400}  # noqa: S104 - of its pod
    front = Front((f"llmrouter-front-routers.{SYSTEM}.svc:9002",), 8080, 9901, **{**where, **changes})
    assert yaml.safe_load(written["envoy.yaml"]) == configuration(front)
    assert ("tls.yaml" in written) == ("tls_file" in changes)
    assert not [text for text in written.values() if "${" in text]


def test_envoy_takes_the_fronts_configuration(tmp_path: Path) -> None:
    written = files_of_front("frontend.envoy.tls.secretName=web")
    (tmp_path / "tls.yaml").write_text("resources: []")
    text = written["envoy.yaml"].replace("/etc/llmrouter-front/tls.yaml", str(tmp_path / "tls.yaml"))
    (tmp_path / "envoy.yaml").write_text(text)
    command = [str(envoy_program()), "--mode", "validate", "-c", str(tmp_path / "envoy.yaml")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr[-2000:]


def test_the_front_meets_the_restricted_profile_and_keeps_its_admin_port_to_itself() -> None:
    objects = render_chart(*FRONT)
    pod = front_of(objects)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["memory"]
    config = yaml.safe_load(files_of_front()["envoy.yaml"])
    admin = config["admin"]["address"]["socket_address"]
    assert admin == {"address": "127.0.0.1", "port_value": 9901}
    assert 9901 not in {port["containerPort"] for port in container["ports"]}


def test_the_front_finds_the_routers_of_another_namespace_one_by_one() -> None:
    objects = render_chart(*FRONT, "frontend.envoy.router.namespace=chats")
    (routers,) = [one for one in of_kind(objects, "Service") if one["metadata"]["name"].endswith("front-routers")]
    assert routers["metadata"]["namespace"] == "chats"
    assert routers["spec"]["clusterIP"] == "None"
    assert routers["spec"]["selector"] == {
        "llmrouter.dev/router": "chat",
        "app.kubernetes.io/component": "router",
    }
    assert "llmrouter-front-routers.chats.svc" in files_of_front("frontend.envoy.router.namespace=chats")["envoy.yaml"]


def test_each_process_of_a_router_is_asked_at_a_port_of_its_own() -> None:
    written = files_of_front("frontend.envoy.router.processes=3", "frontend.envoy.router.port=9100")
    pickers = yaml.safe_load(written["envoy.yaml"])["static_resources"]["clusters"][0]["load_assignment"]["endpoints"]
    addresses = [one["endpoint"]["address"]["socket_address"] for one in pickers[0]["lb_endpoints"]]
    assert [one["port_value"] for one in addresses] == [9101, 9102, 9103]


def test_other_files_bring_other_pods_of_the_front() -> None:
    def annotation(*settings: str) -> str:
        annotations = front_of(render_chart(*FRONT, *settings))["spec"]["template"]["metadata"]["annotations"]
        return str(annotations["llmrouter.dev/front-files"])

    assert annotation() == annotation("operator.replicas=2")
    assert annotation() != annotation("frontend.envoy.timeouts.idleSeconds=30")

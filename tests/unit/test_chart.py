"""The chart renders what it should: least rights, the restricted profile, nothing that its schema does not know."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml
from support.operator_process import CHART, SYSTEM, Object, render_chart

from llmrouter.testbed.cluster.binaries import Binaries
from llmrouter_operator.permissions import RULES, Rule, lease_rules

if TYPE_CHECKING:
    from collections.abc import Iterable


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
    "setting", ["operator.replicas=3", "operator.replica=1", "images.pullPolicy=Sometimes", "redis.maxMemory=lots"]
)
def test_values_that_mean_nothing_are_refused(setting: str) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        render_chart(setting)


def test_every_value_is_in_the_schema_and_explained() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())

    assert set(values) == set(schema["required"])
    for section in ("images", "operator", "redis"):
        assert set(values[section]) == set(schema["properties"][section]["required"])

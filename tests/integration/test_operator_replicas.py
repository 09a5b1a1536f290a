"""More than one operator, and too few rights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.operator_process import (
    ACCOUNT,
    Space,
    chart_rights,
    grant,
    llm_router,
    make_namespace,
    routing_policy,
    running_operator,
    watched,
)

if TYPE_CHECKING:
    from pathlib import Path

    from llmrouter.testbed.cluster.control_plane import ControlPlane

pytest_plugins = ["support.control_plane"]


def holder(system: Space) -> str:
    lease = system.get("Lease", ACCOUNT)
    return str(lease["spec"].get("holderIdentity") or "")


def test_a_second_replica_takes_over_from_a_killed_one(control_plane: ControlPlane, tmp_path: Path) -> None:
    ours = watched(control_plane, "takeover")
    space, system = ours.space, ours.system
    with ours.operator(tmp_path / "first.log") as first, ours.operator(tmp_path / "second.log") as second:
        by_name = {"first": first, "second": second}
        space.wait(lambda: holder(system).split("-")[0] in by_name, "one leads")
        leader = by_name.pop(holder(system).split("-")[0])
        (standby_name,) = by_name
        standby = by_name[standby_name]
        space.wait(lambda: standby.says("standing by"), "the other stands by")
        space.apply(routing_policy("plain"))
        space.apply(llm_router("fleet"))
        space.wait(lambda: space.exists("Deployment", "fleet-router"), "the leader acts")
        assert not standby.says("applied")

        leader.kill()
        space.delete("Service", "fleet-router")

        space.wait(lambda: holder(system).startswith(standby_name), "the other takes over")
        space.wait(lambda: space.exists("Service", "fleet-router"), "and acts")
        assert standby.terminate() == 0
        assert holder(system) == ""


def test_missing_rights_are_one_line(control_plane: ControlPlane, tmp_path: Path) -> None:
    space = make_namespace(control_plane, "unequal")
    rights = chart_rights("watchNamespaces={unequal}", namespace="unequal-system")
    for value in rights:
        if value["kind"] == "Role" and value["metadata"]["namespace"] == "unequal":
            value["rules"] = [
                rule | {"verbs": [verb for verb in rule["verbs"] if verb != "patch"]}
                if "deployments" in rule["resources"]
                else rule
                for rule in value["rules"]
            ]
    kubeconfig = grant(control_plane, rights, namespace="unequal-system")
    arguments = ["--namespace=unequal"]

    with running_operator(kubeconfig, tmp_path / "poor.log", arguments, namespace="unequal-system") as operator:
        status = operator.process.wait(timeout=60)

    assert status == 3
    (line,) = operator.log.read_text().splitlines()
    assert line == (
        "llmrouter-operator: missing permissions: patch deployments.apps (namespace unequal); "
        "grant them to the operator's ServiceAccount"
    )
    assert not space.owned("fleet")


@pytest.mark.parametrize(
    "arguments", [[], ["--all-namespaces", "--namespace=x"], ["--namespace=x", "--lease-seconds=0"]]
)
def test_bad_usage_is_status_2(control_plane: ControlPlane, tmp_path: Path, arguments: list[str]) -> None:
    with running_operator(control_plane.kubeconfig, tmp_path / "usage.log", arguments) as operator:
        assert operator.process.wait(timeout=60) == 2


def test_rights_lost_later_are_told_and_tried_again(control_plane: ControlPlane, tmp_path: Path) -> None:
    ours = watched(control_plane, "later")
    space = ours.space
    (role,) = space.find("Role")
    with ours.operator(tmp_path / "later.log") as operator:
        space.wait(lambda: operator.says("leading as"), "it leads")
        poorer = role | {"rules": [rule for rule in role["rules"] if "deployments" not in rule["resources"]]}
        space.patch("Role", role["metadata"]["name"], {"rules": poorer["rules"]})
        space.apply(routing_policy("plain"))
        space.apply(llm_router("fleet"))
        space.wait(lambda: operator.says("cannot get resource"), "a log line that names what is missing")

        space.patch("Role", role["metadata"]["name"], {"rules": role["rules"]})

        space.wait(lambda: space.exists("Deployment", "fleet-router"), "it goes on", within_s=60)

"""Rebalancing on a real API server with real controllers: replicas follow the mix, and everybody else is respected."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.operator_process import (
    Object,
    OperatorProcess,
    Space,
    chart_rights,
    grant,
    make_namespace,
    routing_policy,
    running_operator,
    start_operator,
)
from support.played_engines import CHAT, PlayedEngines, fleet_spec, workload

from llmrouter_operator.scaling_view import DELETION_COST_ANNOTATION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from llmrouter.testbed.cluster.control_plane import ControlPlane

pytest_plugins = ["support.control_plane"]
ARGUMENTS = ["--all-namespaces", "--lease-seconds=15"]


@pytest.fixture(scope="module")
def kubeconfig(control_plane: ControlPlane) -> Path:
    return grant(control_plane, chart_rights("rebalance.enabled=true"))


@pytest.fixture(scope="module")
def operator(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    log = tmp_path_factory.mktemp("operator") / "operator.log"
    with running_operator(kubeconfig, log, ARGUMENTS) as running:
        yield running


@pytest.fixture
def space(control_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[Space]:
    name = "r-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:8]
    made = make_namespace(control_plane, name)
    made.apply(routing_policy("plain"))
    yield made
    made.api.call("DELETE", f"/api/v1/namespaces/{name}")


def replicas(space: Space, kind: str = "Deployment") -> tuple[int, int]:
    """Declared of prefill and of decode."""
    first, second = (space.get(kind, name)["spec"]["replicas"] for name in ("prefill", "decode"))
    return first, second


def begin(space: Space, spec: Object, *, prefill: int, decode: int, kind: str = "Deployment") -> None:
    space.apply(workload("prefill", prefill, kind), manager="helm")
    space.apply(workload("decode", decode, kind), manager="helm")
    space.apply(spec)


def says(space: Space, status: str, reason: str) -> Callable[[], bool]:
    def holds() -> bool:
        condition = space.condition("fleet", "RebalanceActive")
        return (condition["status"], condition["reason"]) == (status, reason)

    return holds


def test_replicas_follow_the_mix_drained_and_within_the_budget_though_the_operator_dies(
    space: Space, kubeconfig: Path, tmp_path: Path
) -> None:
    begin(space, fleet_spec(maxStep=3), prefill=2, decode=4)
    with PlayedEngines(space, in_flight=1) as engines:
        first = start_operator(kubeconfig, tmp_path / "first.log", [*ARGUMENTS[:1], "--lease-seconds=1"])
        try:
            space.wait(lambda: len(engines.drained) == 3, "three instances are drained")
        finally:
            first.kill()
        assert replicas(space) == (2, 4), "requests are still in flight"
        with running_operator(kubeconfig, tmp_path / "second.log", ARGUMENTS):
            engines.in_flight = 0
            space.wait(lambda: replicas(space) == (5, 1), "the replicas that the plan asks for")
            space.wait(says(space, "True", "Settled"), "nothing more to do")
        assert engines.most_pods == 6, "the budget was never exceeded"
        assert engines.gone == engines.drained, "those ended that were drained"
    status = space.status("fleet")["rebalance"]
    assert [(one["pool"], one["replicas"], one["setByUs"]) for one in status["applied"]] == [
        ("prefill", 5, True),
        ("decode", 1, True),
    ]
    assert (status["phase"], status["gpus"]) == ("Settled", {"budget": 6, "taken": 6})
    assert (status["last"]["pool"], status["last"]["to"]) == ("prefill", 5)
    assert status["last"]["from"] in range(2, 5), "in one step, or in several as GPUs come free"
    for reason in ("RebalanceProposed", "RebalanceDraining", "RebalanceApplied"):
        assert space.events("fleet", reason), reason
    assert "prefill is the bottleneck" in space.events("fleet", "RebalanceProposed")[0]["message"]


def test_others_that_keep_replicas_are_respected(space: Space, operator: OperatorProcess) -> None:
    begin(space, fleet_spec(), prefill=2, decode=4)
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "decode"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "decode"},
            "minReplicas": 4,
            "maxReplicas": 4,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization",
                                                                                    "averageUtilization": 50}}}],
        },
    }  # fmt: skip
    path = f"/apis/autoscaling/v2/namespaces/{space.name}/horizontalpodautoscalers"
    space.api.call("POST", path, scaler)
    with PlayedEngines(space) as engines:
        space.wait(says(space, "False", "OwnedByOther"), f"the autoscaler is seen, see {operator.log}")
        message = space.condition("fleet", "RebalanceActive")["message"]
        assert "HorizontalPodAutoscaler decode keeps the replicas of Deployment decode" in message

        space.apply(fleet_spec(mode="Recommend"))
        space.wait(says(space, "True", "Recommending"), "a recommendation for whoever keeps the replicas")
        assert space.status("fleet")["rebalance"]["summary"] == "prefill 2->5, decode 4->1"
        assert (replicas(space), engines.drained) == ((2, 4), set())

        space.api.call("DELETE", f"{path}/decode")
        space.apply(fleet_spec(maxStep=3))
        space.wait(lambda: replicas(space) == (5, 1), "the replicas that the plan asks for")

        scale = f"{space.path('Deployment', 'prefill')}/scale?fieldManager=kubectl-jane"
        space.api.call("PATCH", scale, {"spec": {"replicas": 3}}, content_type="application/merge-patch+json")
        space.wait(says(space, "False", "EditedByHand"), "the edit is seen")
        assert "kubectl-jane set 3 replicas" in space.condition("fleet", "RebalanceActive")["message"]
        assert replicas(space) == (3, 1)
        space.apply(fleet_spec(maxStep=2))
        space.wait(lambda: replicas(space) == (5, 1), "a changed spec hands the pool back")
        assert space.condition("fleet", "InstancesAvailable")["status"] == "True", "nothing else is affected"


@pytest.fixture(scope="module")
def worlds(control_plane: ControlPlane, operator: OperatorProcess) -> Iterator[dict[str, PlayedEngines]]:
    """Namespaces that all begin at once: what is waited for happens in all of them meanwhile."""
    assert operator.process.poll() is None
    names = ("stuck", "frozen", "off")
    spaces = {name: make_namespace(control_plane, f"r-{name}") for name in names}
    for space in spaces.values():
        space.apply(routing_policy("plain"))
    freeze(control_plane, spaces["frozen"])
    begin(spaces["stuck"], fleet_spec(progressDeadlineSeconds=3), prefill=1, decode=1)
    begin(spaces["frozen"], fleet_spec(), prefill=2, decode=4)
    begin(spaces["off"], fleet_spec("StatefulSet"), prefill=2, decode=4, kind="StatefulSet")
    with ExitStack() as stack:
        yield {
            "stuck": stack.enter_context(PlayedEngines(spaces["stuck"], mix=CHAT, most_ready={"decode": 1})),
            "frozen": stack.enter_context(PlayedEngines(spaces["frozen"])),
            "off": stack.enter_context(PlayedEngines(spaces["off"], in_flight=1)),
        }


def freeze(control_plane: ControlPlane, space: Space) -> None:
    """Admission refuses every change of a scale."""
    rules = [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["UPDATE"],
              "resources": ["deployments/scale"]}]  # fmt: skip
    root = "/apis/admissionregistration.k8s.io/v1"
    api = {"apiVersion": "admissionregistration.k8s.io/v1"}
    selector = {"matchLabels": {"kubernetes.io/metadata.name": space.name}}
    control_plane.api.apply(
        f"{root}/validatingadmissionpolicies/no-scaling",
        {**api, "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "no-scaling"},
         "spec": {"matchConstraints": {"resourceRules": rules},
                  "validations": [{"expression": "false", "message": "change freeze"}]}},
    )  # fmt: skip
    control_plane.api.apply(
        f"{root}/validatingadmissionpolicybindings/no-scaling",
        {**api, "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "no-scaling"},
         "spec": {"policyName": "no-scaling", "validationActions": ["Deny"],
                  "matchResources": {"namespaceSelector": selector}}},
    )  # fmt: skip


def test_a_stuck_growth_is_named_and_rolled_back(worlds: dict[str, PlayedEngines], operator: OperatorProcess) -> None:
    space = worlds["stuck"].space
    space.wait(says(space, "False", "RolloutStuck"), f"the growth is stuck, see {operator.log}")
    assert replicas(space) == (1, 1)
    message = space.condition("fleet", "RebalanceActive")["message"]
    assert "ImagePullBackOff: no such image" in message
    assert "back from 2 to 1 replicas; tried again in 60 s" in message
    assert space.events("fleet", "RebalanceRolledBack")
    applied = {one["pool"]: one for one in space.status("fleet")["rebalance"]["applied"]}
    assert applied["decode"]["failures"] == 1


def test_a_change_that_admission_refuses_is_said_and_tried_later(
    worlds: dict[str, PlayedEngines], operator: OperatorProcess
) -> None:
    space = worlds["frozen"].space
    space.wait(says(space, "False", "ChangeRefused"), f"the refusal is said, see {operator.log}")
    assert "change freeze" in space.condition("fleet", "RebalanceActive")["message"]
    assert replicas(space) == (2, 4)
    assert space.condition("fleet", "PolicyReady")["status"] == "True", "nothing else is affected"


def test_turning_it_off_gives_back_what_drained(worlds: dict[str, PlayedEngines], operator: OperatorProcess) -> None:
    engines = worlds["off"]
    space = engines.space
    space.wait(lambda: engines.drained == {"decode-3"}, f"the highest ordinal drains, see {operator.log}")
    pod = space.get("Pod", "decode-3")
    assert pod["metadata"]["annotations"][DELETION_COST_ANNOTATION] == "-1000"
    space.apply(fleet_spec("StatefulSet", mode="Off"))
    space.wait(lambda: not space.get("Pod", "decode-3")["metadata"].get("annotations"), "it serves again")
    space.wait(lambda: "rebalance" not in space.status("fleet"), "nothing is said any more")
    assert space.condition("fleet", "RebalanceActive")["status"] is None
    assert replicas(space, "StatefulSet") == (2, 4)

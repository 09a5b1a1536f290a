"""A real node, the images, the chart and traffic: what the demo shows, in order, on one cluster."""

from __future__ import annotations

import io
import json
from contextlib import ExitStack
from http.client import HTTPConnection
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from llmrouter.testbed.cluster.processes import free_port, poll, start
from llmrouter.testbed.cluster.progress import Progress
from llmrouter.testbed.comparison import AFTER, BEFORE, DECIDERS, DISTURBED, MODEL, Timing
from llmrouter.testbed.demo import deploy, replay
from llmrouter.testbed.demo_run import DemoOptions, open_target
from llmrouter.testbed.demo_target import DemoTarget, ImageChoice, is_serving
from llmrouter.testbed.live_view import LiveView

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

TIMING = Timing(window_s=8.0, warm_up_s=3.0, disturbed_s=12.0)
OWNED = "configmaps,serviceaccounts,roles,rolebindings,services,deployments,poddisruptionbudgets,pods"
OF_OPERATOR = "app.kubernetes.io/managed-by=llmrouter-operator"
OF_RELEASE = "app.kubernetes.io/instance=llmrouter"


@pytest.fixture(scope="module")
def target() -> Iterator[DemoTarget]:
    progress = Progress(print)
    with ExitStack() as stack:
        target = open_target(DemoOptions(None, ImageChoice(), keep=False), progress, stack)
        deploy(target, progress)
        yield target


def names_of(target: DemoTarget, kinds: str, selector: str) -> list[str]:
    return target.kubectl("get", kinds, "--selector", selector, "--output", "name").split()


def test_an_applied_router_serves_all_engines(target: DemoTarget) -> None:
    status = target.status()
    assert is_serving(status)
    assert status["activePolicy"]["acknowledged"] == "2/2"
    assert status["observedGeneration"] == 1


def test_an_openai_request_goes_through_envoy(target: DemoTarget, tmp_path: Path) -> None:
    """As the README says: a port of one's own machine, forwarded to the front's Service."""
    port = free_port()
    words = target.kubectl_words("port-forward", "service/llmrouter-front", f"{port}:80")
    forward = start("port-forward", words, log=tmp_path / "port-forward.log")
    try:
        forward.ready(lambda: "Forwarding from" in forward.log.read_text(), within_s=30)
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
        status, headers, body = post(port, "/v1/chat/completions", json.dumps(asked).encode())
        assert status == 200, body
        assert json.loads(body)["usage"]["completion_tokens"] == 5
        assert headers["x-llmrouter-instance"] in addresses(target)
        status, headers, body = post(port, "/v1/chat/completions", json.dumps(asked | {"model": "other"}).encode())
        assert (status, headers["llmrouter-reason"]) == (404, "UnknownModel"), body
    finally:
        forward.stop()


def post(port: int, path: str, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def addresses(target: DemoTarget) -> set[str]:
    engines = target.get("pods", "--selector", "llmrouter.dev/demo-pool")["items"]
    return {f"{pod['status']['podIP']}:8000" for pod in engines}


def test_traffic_survives_a_policy_switch_and_a_router_kill(target: DemoTarget, tmp_path: Path) -> None:
    with LiveView("e2e", Console(file=io.StringIO())) as view:
        state, actions = replay(target, TIMING, tmp_path, view)
    assert [outcome for outcome in state.outcomes if outcome.failed] == []
    assert len(state.of(BEFORE)) == len(state.of(AFTER)) > 0
    assert [state.decided_by[BEFORE], state.decided_by[AFTER]] == [{decider} for decider in DECIDERS]
    assert actions.switch is not None
    assert actions.switch.result().apply_to_acknowledged_s > 0
    assert actions.kill is not None
    assert actions.kill.result().crashed
    assert actions.kill.result().pod not in {pod["metadata"]["name"] for pod in target.router_pods()}
    assert max(outcome.retries for outcome in state.of(DISTURBED)) <= 1, "a request that was just being placed"
    assert state.end is not None
    assert state.end["reservations_left"] == 0
    assert state.end["reports_refused"] == 0


def test_an_owned_object_deleted_by_hand_comes_back(target: DemoTarget) -> None:
    target.kubectl("delete", "service", "demo-router")
    poll(lambda: "service/demo-router" in names_of(target, "services", OF_OPERATOR), within_s=30, what="Service back")


def test_deleting_the_router_leaves_nothing_of_it(target: DemoTarget) -> None:
    assert names_of(target, OWNED, OF_OPERATOR)
    target.kubectl("delete", "llmrouter", "demo", "--wait", "--timeout=60s", within_s=90)
    poll(lambda: not names_of(target, OWNED, OF_OPERATOR), within_s=60, what="owned objects gone", every_s=0.5)


def test_uninstalling_leaves_nothing_in_the_namespace_or_the_cluster(target: DemoTarget) -> None:
    target.helm("uninstall", "llmrouter", "--wait")
    kinds = f"{OWNED},secrets,leases,networkpolicies,clusterroles,clusterrolebindings"
    poll(lambda: not names_of(target, kinds, OF_RELEASE), within_s=60, what="the release gone", every_s=0.5)
    target.uninstall()
    target.remove_crds()
    assert target.crds() == []
    assert target.namespace not in target.kubectl("get", "namespaces", "--output", "name")

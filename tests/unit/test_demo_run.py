"""What demos on a Kubernetes share: the traffic that they begin, follow and end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrouter.testbed.cluster.progress import Progress
from llmrouter.testbed.demo_run import parse_target, serve, traffic
from llmrouter.testbed.demo_target import ENGINES, READY_TIMEOUT_S, DemoTarget, ImageChoice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SAID = (
    {"kind": "stretch", "name": "chat", "at_s": 0.0, "duration_s": 5.0},
    {"kind": "end", "sent": 3, "failed": 0},
)


@dataclass(frozen=True, slots=True)
class FakeCluster(DemoTarget):
    """Notes what is done to it; its replay pod is at once there, and its log is what ``SAID`` has."""

    kubectl_program: Path = Path("kubectl")
    helm_program: Path = Path("helm")
    access: tuple[str, ...] = ()
    helm_access: tuple[str, ...] = ()
    images: ImageChoice = field(default_factory=ImageChoice)
    done: list[tuple[object, ...]] = field(default_factory=list)

    def install(self, *settings: str) -> None:
        self.done.append(("install", *settings))

    def apply(self, documents: Sequence[Mapping[str, Any]]) -> None:
        self.done.append(("apply", *(one["kind"] for one in documents)))

    def wait_ready(self, *, instances: int = ENGINES, within_s: float = READY_TIMEOUT_S) -> None:
        assert within_s == READY_TIMEOUT_S
        self.done.append(("ready", instances))

    def wait_front(self, *, within_s: float = READY_TIMEOUT_S) -> None:
        assert within_s == READY_TIMEOUT_S
        self.done.append(("front",))

    def get(self, *what: str) -> dict[str, Any]:
        assert what == ("pod", "demo-replay")
        return {"status": {"phase": "Running"}}

    def kubectl_words(self, *words: str) -> list[str]:
        assert words == ("logs", "--follow", "demo-replay")
        return ["printf", "%s\\n", *(json.dumps(event) for event in SAID)]


def test_parts_are_installed_applied_and_awaited_in_this_order() -> None:
    target, lines = FakeCluster(), list[str]()
    documents = [{"kind": "Deployment"}, {"kind": "LLMRouter"}]
    serve(target, Progress(lines.append), documents, what="two things", settings=["a.enabled=true"], instances=4)
    assert target.done == [
        ("install", "a.enabled=true"),
        ("apply", "Deployment", "LLMRouter"),
        ("ready", 4),
        ("front",),
    ]
    assert any("operator with a.enabled=true, Redis" in line for line in lines)


def test_traffic_says_what_its_pod_says_and_forgets_what_an_earlier_one_said(tmp_path: Path) -> None:
    lines = tmp_path / "build" / "replay.jsonl"
    lines.parent.mkdir()
    lines.write_text('{"kind": "end", "sent": 9, "failed": 9}\n')
    cluster = FakeCluster()
    with traffic(cluster, [{"kind": "Pod"}], lines) as flow:
        last = list(flow)[-1]
    assert cluster.done == [("apply", "Pod")]
    assert last.stretch == "chat"
    assert last.end == SAID[1]
    assert len(lines.read_text().splitlines()) == len(SAID)


def test_a_demo_without_options_of_its_own_stands_on_a_cluster_of_this_machine() -> None:
    options = parse_target("a.demo", None, [])
    assert options.context is None
    assert options.images.helm_values() == []

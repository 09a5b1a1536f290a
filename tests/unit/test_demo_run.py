"""What demos on a Kubernetes share: the traffic that they begin, follow and end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrouter.testbed.demo_run import parse_target, traffic
from llmrouter.testbed.demo_target import DemoTarget, ImageChoice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SAID = (
    {"kind": "stretch", "name": "chat", "at_s": 0.0, "duration_s": 5.0},
    {"kind": "end", "sent": 3, "failed": 0},
)


class FakeCluster(DemoTarget):
    """A replay pod that is at once there; its log is what ``SAID`` has."""

    def apply(self, documents: Sequence[Mapping[str, Any]]) -> None:
        assert [one["kind"] for one in documents] == ["Pod"]

    def get(self, *what: str) -> dict[str, Any]:
        assert what == ("pod", "demo-replay")
        return {"status": {"phase": "Running"}}

    def kubectl_words(self, *words: str) -> list[str]:
        assert words == ("logs", "--follow", "demo-replay")
        return ["printf", "%s\\n", *(json.dumps(event) for event in SAID)]


def test_traffic_says_what_its_pod_says_and_forgets_what_an_earlier_one_said(tmp_path: Path) -> None:
    lines = tmp_path / "build" / "replay.jsonl"
    lines.parent.mkdir()
    lines.write_text('{"kind": "end", "sent": 9, "failed": 9}\n')
    cluster = FakeCluster(Path("kubectl"), Path("helm"), (), (), ImageChoice())
    with traffic(cluster, [{"kind": "Pod"}], lines) as flow:
        last = list(flow)[-1]
    assert last.stretch == "chat"
    assert last.end == SAID[1]
    assert len(lines.read_text().splitlines()) == len(SAID)


def test_a_demo_without_options_of_its_own_stands_on_a_cluster_of_this_machine() -> None:
    options = parse_target("a.demo", None, [])
    assert options.context is None
    assert options.images.helm_values() == []

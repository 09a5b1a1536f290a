from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from llmrouter.testbed.comparison import AFTER, BEFORE, DISTURBED, Facts, Timing, notes, shortcomings, summary
from llmrouter.testbed.comparison_run import conclude, watch_replay
from llmrouter.testbed.live_view import LiveView, picture
from llmrouter.testbed.measure import Outcome
from llmrouter.testbed.replay import parse_stretch
from llmrouter.testbed.replay_events import ReplayState, follow

if TYPE_CHECKING:
    from pathlib import Path

KEYS = {"ready_s", "apply_to_acknowledged_s", "requests", "failed", "reservations_left", "phases"}
PHASE_KEYS = {
    "policy",
    "requests",
    "failed",
    "ttft_p50_s",
    "ttft_p99_s",
    "tpot_p50_s",
    "tpot_p95_s",
    "e2e_mean_s",
    "e2e_p99_s",
}


def outcome(stretch: str, number: int, *, error: str = "") -> Outcome:
    return Outcome(
        stretch,
        f"{stretch}-{number}",
        0.0,
        0.01,
        0.5,
        2.0,
        100,
        10,
        0,
        "p",
        "e",
        error,
        "text",
        (4, 5, 8, 11, 13, 15, 30),
    )


def event(kind: str, **values: Any) -> str:  # noqa: ANN401 - what JSON holds
    return json.dumps({"kind": kind, "at_s": 100.0, **values})


def progress(stretch: str, deciding: str) -> str:
    router = {"router_id": "r", "policy": "demo", "policy_digest": "abc", "deciding": deciding}
    instance = {
        "instance_id": "e1",
        "pool": "fast",
        "in_flight_requests": 2,
        "in_flight_context_tokens": 900,
        "running": 2,
        "waiting": None,
        "kv_usage_fraction": 0.25,
    }
    counts = {"sent": 5, "done": 3, "failed": 0, "retries": 0, "in_flight": 2}
    routers = {"127.0.0.1:1": {**router, "degraded": False, "held": 1}}
    return event("progress", stretch=stretch, routers=routers, instances=[instance], **counts)


def lines_of_a_run() -> list[str]:
    rows = [outcome(name, n).as_row() for name in (BEFORE, AFTER, DISTURBED) for n in range(3)]
    return [
        "a warning that is no event",
        event("stretch", name=BEFORE, duration_s=5.0, requests=3),
        progress(BEFORE, "RoundRobin"),
        progress(AFTER, "Onnx"),
        event("rows", rows=rows),
        event("end", reservations_left=0, cpu_s=1.0),
    ]


def state_of_a_run() -> ReplayState:
    state = ReplayState()
    for line in lines_of_a_run():
        state.feed(line)
    return state


def test_the_summary_has_the_promised_keys() -> None:
    values = summary(state_of_a_run(), Facts(30.0, 0.5, {"router_kill": {}}))
    assert set(values) >= KEYS
    assert all(set(phase) >= PHASE_KEYS for phase in values["phases"])
    assert (values["requests"], values["failed"], values["reservations_left"]) == (9, 0, 0)
    assert [phase["policy"] for phase in values["phases"]] == [BEFORE, AFTER]
    assert shortcomings(values) == []
    assert "0 failed" in " ".join(notes(values))
    assert "100% lay in their 80 % interval" in " ".join(notes(values))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"reservations_left": 3}, "3 reservations"),
        ({"reservations_left": None}, "None reservations"),
        ({"failed": 2}, "2 requests failed"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, object], word: str) -> None:
    values = {**summary(state_of_a_run(), Facts(30.0, 0.5, {})), **change}
    assert word in " ".join(shortcomings(values))


def test_a_fallback_that_decided_is_said() -> None:
    state = state_of_a_run()
    state.feed(progress(AFTER, "LeastInFlight"))
    assert "LeastInFlight" in " ".join(shortcomings(summary(state, Facts(30.0, 0.5, {}))))


def test_conclude_writes_the_file_and_fails_where_requests_failed(tmp_path: Path) -> None:
    state = state_of_a_run()
    shown = io.StringIO()
    path = tmp_path / "deep" / "summary.json"
    assert conclude(summary(state, Facts(30.0, 0.5, {})), path, Console(file=shown, width=100)) == 0
    assert json.loads(path.read_text())["ready_s"] == 30.0
    assert "TTFT p50" in shown.getvalue()
    state.outcomes.append(outcome(AFTER, 9, error="broke"))
    assert conclude(summary(state, Facts(30.0, 0.5, {})), path, Console(file=shown)) == 1


def test_a_growing_file_is_followed_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("first\nsec")
    looks = iter([True, True, True, False])
    seen: list[str | None] = []
    for line in follow(path, lambda: next(looks, False)):
        seen.append(line)
        if line is None:
            with path.open("a") as more:
                more.write("ond\n")
    assert [line for line in seen if line] == ["first\n", "second\n"]


def test_watching_tells_of_stretches_and_ends_with_the_end(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("\n".join(lines_of_a_run()) + "\n")
    stretches: list[str] = []
    shown = io.StringIO()
    with LiveView("test", Console(file=shown, width=120)) as view:
        state = watch_replay(path, alive=lambda: True, view=view, on_stretch=stretches.append)
    assert stretches == [BEFORE]
    assert len(state.outcomes) == 9
    assert "3 done" in shown.getvalue()


def test_the_picture_shows_instances_policy_and_digest() -> None:
    shown = io.StringIO()
    Console(file=shown, width=140).print(picture("test", state_of_a_run()))
    assert all(word in shown.getvalue() for word in ("e1", "fast", "900", "25%", "Onnx", "abc", "1 held"))


def test_the_stretches_are_such_as_the_replay_reads() -> None:
    stretches = [parse_stretch(text) for text in Timing(window_s=5.0, disturbed_s=2.0).stretches()]
    assert [stretch.duration_s for stretch in stretches if stretch.name in (BEFORE, AFTER)] == [5.0, 5.0]
    assert [stretch.ends_with_policy_change for stretch in stretches] == [False, False, True, False, False]

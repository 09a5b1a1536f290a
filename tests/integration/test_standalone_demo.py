"""Engines, a router from a file, and a replay: every part of the standalone demo, for a few seconds."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter.testbed.comparison import MODEL
from llmrouter.testbed.demo_standalone import start_front, start_standalone
from llmrouter.testbed.measure import Outcome
from llmrouter.testbed.replay import ReplayPlan, Stretch, fixed, run
from llmrouter.testbed.trace import azure_2023

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("through_front", [False, True], ids=["native", "front"])
async def test_traffic_flows_while_the_file_switches_the_policy(tmp_path: Path, *, through_front: bool) -> None:
    def decided(policy: str) -> str:
        return "" if through_front else policy  # a client of a front does not hear who decided

    events: list[tuple[str, dict[str, Any]]] = []
    stretches = (Stretch("before", 0, 2.0), Stretch("switch", 0, 60.0, ends_with_policy_change=True))
    parts = (*stretches, Stretch("after", 0, 2.0))
    switching: list[asyncio.Task[float]] = []
    with ExitStack() as stack:
        running = await asyncio.to_thread(start_standalone, tmp_path, stack)
        front = await asyncio.to_thread(start_front, running, stack) if through_front else None
        plan = ReplayPlan(MODEL, 10.0, parts, front)

        def emit(kind: str, values: dict[str, Any]) -> None:
            events.append((kind, values))
            if kind == "stretch" and values["name"] == "switch":
                switching.append(asyncio.create_task(asyncio.to_thread(running.switch)))

        await run(plan, resolve=fixed([running.address]), trace=azure_2023(), emit=emit)
        await switching[0]
    outcomes = [Outcome.from_row(row) for kind, values in events if kind == "rows" for row in values["rows"]]
    assert [outcome for outcome in outcomes if outcome.failed] == []
    assert {outcome.retries for outcome in outcomes} == {0}
    assert {outcome.policy for outcome in outcomes if outcome.stretch == "before"} == {decided("RoundRobin")}
    assert {outcome.policy for outcome in outcomes if outcome.stretch == "after"} == {decided("Onnx")}
    assert all(outcome.instance_id and outcome.output_tokens for outcome in outcomes)
    assert {len([o for o in outcomes if o.stretch == name]) for name in ("before", "after")} == {20}
    end = next(values for kind, values in events if kind == "end")
    assert (end["reservations_left"], end["reports_unknown"], end["reports_refused"]) == (0, 0, 0)

"""Parts of the rebalancing demo: its traffic, its eye on pods, and engines that have prompts computed elsewhere."""

from __future__ import annotations

import csv

import pytest
from aiohttp import web

from llmrouter.testbed.demo_rebalance import CHAT_S, LENGTHS, RATE_RPS, SUMMARIES_S, judge, trace_csv, traffic_objects
from llmrouter.testbed.demo_rebalance_view import EVENTS, SECTION
from llmrouter.testbed.engine_stages import FETCHED_PROMPT_TOKENS, PREFILLER_HEADER, PromptsElsewhere
from llmrouter.testbed.pod_watch import PodCount
from llmrouter.testbed.replay import excerpt as excerpt_of
from llmrouter.testbed.terminal_view import excerpt
from llmrouter.testbed.trace import Trace, TraceRequest


def requests() -> tuple[TraceRequest, ...]:
    rows = csv.DictReader(trace_csv().splitlines())
    return tuple(
        TraceRequest(float(row["arrival_s"]), row["application"], int(row["prompt_tokens"]), int(row["output_tokens"]))
        for row in rows
    )


def test_the_trace_is_long_enough_for_both_stretches_and_shifts_between_them() -> None:
    trace = Trace(requests(), CHAT_S + SUMMARIES_S)
    (_, pod) = traffic_objects("image")
    stretches = [word.split(":") for word in pod["spec"]["containers"][0]["args"] if word.count(":") == 2]

    for (name, first, seconds), application in zip(stretches, LENGTHS, strict=True):
        part = excerpt_of(trace, first_request=int(first), rate_rps=RATE_RPS, duration_s=float(seconds))
        assert {one.application for one in part} == {application} == {name}
        prompts = sorted(one.prompt_tokens for one in part)
        assert prompts[len(prompts) // 2] == pytest.approx(LENGTHS[application][0], rel=0.15)
    assert all(later.arrived_at_s > one.arrived_at_s for one, later in zip(requests(), requests()[1:], strict=False))


def test_pods_count_until_they_are_gone() -> None:
    watch = PodCount()
    for line in (
        "ADDED a prefill Running",
        "ADDED b decode Pending",
        "MODIFIED a prefill Running",
        "ADDED c decode Pending",
        "DELETED a prefill Running",
        "MODIFIED b decode Failed",
        "ADDED d prefill",
    ):
        watch.feed(line)

    assert (watch.count, watch.most) == (2, 3)
    assert (watch.of("prefill"), watch.of("decode")) == (1, 1)


async def test_a_prompt_is_computed_where_the_router_says_or_else_here() -> None:
    asked: list[dict[str, object]] = []

    async def complete(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    prompts = PromptsElsewhere("llama")
    try:
        assert await prompts.left_to_compute({}, 700) == 700
        assert await prompts.left_to_compute({PREFILLER_HEADER: f"127.0.0.1:{port}"}, 700) == FETCHED_PROMPT_TOKENS
        await site.stop()
        assert await prompts.left_to_compute({PREFILLER_HEADER: "127.0.0.1:1"}, 700) == 700
    finally:
        await prompts.close()
        await runner.cleanup()
    assert asked == [{"model": "llama", "prompt": 700, "max_tokens": 1, "ignore_eos": True}]


def test_what_is_told_of_kubectl_describe() -> None:
    described = """Name: demo
Spec:
  Rebalance:
    Mode: Auto
Status:
  Conditions:
    Type:  RebalanceActive
  Rebalance:
    Phase:  Settled
  Routers:
    Ready:  2
Events:
  Normal  RebalanceApplied  2s  llmrouter-operator  decode: 2 -> 3
  Normal  Ready  2s  llmrouter-operator  ok
"""

    assert excerpt(described, SECTION, EVENTS).splitlines()[2:] == [
        "  Rebalance:",
        "    Phase:  Settled",
        "  …",
        "Events:",
        "  Normal  RebalanceApplied  2s  llmrouter-operator  decode: 2 -> 3",
    ]


def test_the_story_is_judged_by_its_budget_its_splits_and_its_ends() -> None:
    fine = [{"failed": 0, "requests": 9}]
    values = {
        "most_pods": 4,
        "for_chat": {"prefill": 1, "decode": 3},
        "for_summaries": {"prefill": 3, "decode": 1},
        "chat_thirds": fine,
        "summaries_thirds": fine,
    }
    assert judge(values) == []
    worse = values | {
        "most_pods": 5,
        "for_chat": {"prefill": 2, "decode": 2},
        "chat_thirds": [{"failed": 1, "requests": 9}],
    }
    assert len(judge(worse)) == 3

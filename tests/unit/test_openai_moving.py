from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from support.router_world import MODEL, PROFILE, Bench, config_of

from llmrouter.listener_specs import OpenAISpec
from router_grpc.openai.answers import PassedAnswer
from router_grpc.openai.intent import intent_of
from router_grpc.openai.journey import Cause, EngineAnswer, InstanceFailedError, Journey
from router_grpc.openai.moving import UNREADY_LOOKS, Watch

if TYPE_CHECKING:
    from router_grpc.calls import RouteAnswer

LATE = OpenAISpec(redispatch_after_seconds=1.0)


async def placed(bench: Bench, rules: OpenAISpec, **fields: Any) -> tuple[Watch, RouteAnswer]:  # noqa: ANN401 - of RouteAsk
    answer = await bench.route(**fields)
    return Watch(bench.world, Journey(rules), MODEL, answer, placed_at_s=bench.clock.now_s), answer


async def test_a_request_stays_while_its_instance_is_ready_and_moves_after_two_looks_that_it_is_not() -> None:
    bench = Bench(config_of("a:1", "b:1"))
    watch, answer = await placed(bench, OpenAISpec())
    assert watch.look() is None
    every = bench.instances.instances
    others = tuple(one for one in every if one.instance_id != answer.instance_id)
    bench.instances.instances = others
    assert [watch.look() for _ in range(UNREADY_LOOKS)] == [None] * (UNREADY_LOOKS - 1) + [Cause.DRAINED]
    bench.instances.instances = every
    assert watch.look() is None
    bench.instances.instances = others
    assert watch.look() is None  # it was ready between


async def test_a_request_stays_where_there_is_nothing_else() -> None:
    bench = Bench(config_of("a:1", "b:1"))
    watch, answer = await placed(bench, OpenAISpec())
    bench.instances.instances = ()
    assert [watch.look() for _ in range(5)] == [None] * 5
    bench = Bench(config_of("a:1", "b:1"))
    watch, answer = await placed(bench, OpenAISpec())
    (other,) = [one for one in bench.instances.instances if one.instance_id != answer.instance_id]
    bench.instances.instances = (other,)
    watch.journey.excluded.add(other.instance_id)
    assert [watch.look() for _ in range(5)] == [None] * 5


@pytest.mark.parametrize("rules", [OpenAISpec(resume="None"), OpenAISpec(max_resumes=0)])
async def test_nothing_moves_where_it_is_not_wanted(rules: OpenAISpec) -> None:
    bench = Bench(config_of("a:1", "b:1"))
    watch, answer = await placed(bench, rules)
    bench.instances.instances = tuple(one for one in bench.instances.instances if one.instance_id != answer.instance_id)
    assert [watch.look() for _ in range(5)] == [None] * 5


async def crowded(bench: Bench, instance_id: str, *, but: bool = False) -> None:
    """Long prompts for one instance, or for the others."""
    everyone = bench.instances.instances
    bench.instances.instances = tuple(one for one in everyone if (one.instance_id == instance_id) != but)
    for _ in range(20):
        await bench.route(prompt_tokens=8_000)
    bench.instances.instances = everyone


async def test_a_late_request_moves_once_and_only_to_an_instance_that_is_clearly_better() -> None:
    bench = Bench(config_of("a:1", "b:1", limits={"maxInFlightPerInstance": 256}))
    watch, answer = await placed(bench, LATE, prompt_tokens=500)
    bench.clock.now_s += 0.9
    assert watch.look() is None  # not after redispatchAfterSeconds yet
    bench.clock.now_s += 0.2
    assert watch.look() is Cause.LATE
    await crowded(bench, answer.instance_id, but=True)
    assert watch.look() is None  # the other is no better
    await crowded(bench, answer.instance_id)
    await crowded(bench, answer.instance_id)
    await crowded(bench, answer.instance_id)
    assert watch.look() is Cause.LATE
    watch.journey.goes_on(answer.instance_id, InstanceFailedError(Cause.LATE, "late"))
    assert watch.look() is None
    never = replace(watch, journey=Journey(OpenAISpec()))
    assert never.look() is None


async def test_a_foretold_wait_is_not_late() -> None:
    bench = Bench(config_of("a:1", "b:1", limits={"maxInFlightPerInstance": 256}))
    watch, answer = await placed(bench, LATE)
    entry = bench.world.open_requests.get(answer.request_id)
    assert entry is not None
    assert entry.cost is not None
    entry.cost = replace(entry.cost, first_token_s=30.0)
    bench.clock.now_s += 59.0
    assert watch.look() is None
    bench.clock.now_s += 2.0
    assert watch.look() is Cause.LATE


async def test_a_request_in_two_stages_moves_only_where_another_instance_decodes() -> None:
    roles = (("Prefill", ("p1:1", "p2:1")), ("Decode", ("d1:1", "d2:1")))
    pools = [
        {"name": role.lower(), "role": role, "endpoints": list(endpoints), "profile": {"name": PROFILE}}
        for role, endpoints in roles
    ]
    bench = Bench(config_of(pools=pools))
    watch, answer = await placed(bench, LATE, prompt_tokens=2_000)
    assert answer.prefill_instance_id
    bench.clock.now_s += 100.0
    assert watch.look() is None  # whoever computes the prompt is late
    every = bench.instances.instances
    bench.instances.instances = tuple(one for one in every if one.instance_id != answer.instance_id)
    assert [watch.look() for _ in range(UNREADY_LOOKS)][-1] is Cause.DRAINED
    bench.instances.instances = tuple(one for one in every if one.pool == "prefill")
    assert [watch.look() for _ in range(5)] == [None] * 5


def test_what_goes_on_after_a_failure_and_why_not() -> None:
    broken = InstanceFailedError(Cause.BROKEN, "broke")
    refused = InstanceFailedError(Cause.REFUSED, "400", answer=EngineAnswer(400, {}, b""))
    busy = InstanceFailedError(Cause.REFUSED, "503", answer=EngineAnswer(503, {}, b""))
    full = InstanceFailedError(Cause.REFUSED, "429", answer=EngineAnswer(429, {}, b""))
    moved = InstanceFailedError(Cause.DRAINED, "left")
    assert [one.is_fault for one in (broken, refused, busy, full, moved)] == [True, False, True, False, False]
    unseen, seen = PassedAnswer(is_stream=False), PassedAnswer(is_stream=False)
    seen.feed(b"x")
    rules = OpenAISpec(resume="Tokens", max_resumes=1)
    journey = Journey(rules)
    assert journey.why_not(unseen, broken) == ""
    assert journey.why_not(unseen, busy) == ""
    assert journey.why_not(unseen, full) == ""
    assert "refused" in journey.why_not(unseen, refused)
    assert "cannot go on" in journey.why_not(seen, broken)
    assert "sent" in Journey(OpenAISpec(resume="BeforeFirstToken")).why_not(seen, broken)
    assert Journey(OpenAISpec(resume="None")).why_not(unseen, broken) == "nothing is resumed"
    journey.goes_on("a", broken)
    assert journey.why_not(unseen, broken) == "resumed 1 times already"
    assert (journey.excluded, journey.last) == ({"a"}, broken)


def why_whole(path: str, **more: Any) -> str:  # noqa: ANN401 - fields of a body
    asked = {"prompt": "x"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "x"}]}
    body = {"model": "m", "max_tokens": 9, **asked, **more}
    generation = intent_of("POST", path, {}, json.dumps(body).encode(), OpenAISpec()).generation
    assert generation is not None
    return generation.why_whole


CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
LAST = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "So"}]


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (CHAT, {}),
        (CHAT, {"n": 1, "logprobs": False, "tools": [], "response_format": {"type": "text"}, "top_logprobs": 0}),
        (CHAT, {"messages": LAST, "continue_final_message": True, "add_generation_prompt": False}),
        (CHAT, {"max_tokens": None}),
        (COMPLETION, {"echo": False, "suffix": None, "best_of": 1}),
        (COMPLETION, {"prompt": [1, 2], "stream": True, "return_token_ids": True}),
    ],
)
def test_plain_text_can_go_on(path: str, more: dict[str, Any]) -> None:
    assert why_whole(path, **more) == ""


@pytest.mark.parametrize(
    ("path", "more", "why"),
    [
        (CHAT, {"n": 2}, "several answers"),
        (CHAT, {"logprobs": True}, "log probabilities"),
        (COMPLETION, {"logprobs": 0}, "log probabilities"),
        (CHAT, {"tools": [{"type": "function"}]}, "tools"),
        (CHAT, {"response_format": {"type": "json_object"}}, "a format"),
        (CHAT, {"guided_regex": "a+"}, "a format"),
        (CHAT, {"structured_outputs": {"json": {}}}, "a format"),
        (CHAT, {"add_generation_prompt": False}, "an odd last message"),
        (CHAT, {"continue_final_message": True}, "an odd last message"),
        (CHAT, {"echo": True}, "the prompt repeated"),
        (COMPLETION, {"prompt": ["a", "b"]}, "several prompts"),
        (COMPLETION, {"prompt": [1, 2], "stream": True}, "a prompt of token ids"),
        (COMPLETION, {"max_tokens": None}, "the engine's own bound"),
        (COMPLETION, {"suffix": "x"}, "a suffix"),
    ],
)
def test_what_a_part_cannot_take_over_is_made_whole(path: str, more: dict[str, Any], why: str) -> None:
    assert why_whole(path, **more) == why

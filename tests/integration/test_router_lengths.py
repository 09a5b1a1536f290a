"""Lengths in composed routers: prompts over the wire, laws in the answer, learning from reports, sharing over Redis."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from support.router_world import LiveRouter, config_of, live_router, until

from llmrouter.lengths.distribution import LEVELS
from router_grpc.calls import MAX_PROMPT_BYTES
from router_grpc.v1 import router_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llmrouter.testbed.cluster.redis import RedisServer

pytest_plugins = ["support.redis_server"]

LIMITS = {"maxInFlightPerInstance": 5_000, "scrapeIntervalSeconds": 60}
"""Nobody answers at the declared endpoints: they are not asked before a test is over."""

LONG_MS = 100.0
"""A deadline that a busy machine keeps."""


def config(**parts: Any) -> Any:  # noqa: ANN401 - handed on to pydantic
    predictor = {"type": "Text", "constantTokens": 77, "deadlineMilliseconds": LONG_MS}
    return config_of(**{"predictor": predictor, "limits": LIMITS, **parts})


@pytest.fixture
async def live() -> AsyncIterator[LiveRouter]:
    async with live_router(config()) as router:
        yield router


async def answered(live: LiveRouter, request_id: str, *, output_tokens: int, **fields: Any) -> pb.RouteResponse:  # noqa: ANN401 - handed on to protobuf
    """Routes a request and reports its end."""
    response = await live.route(request_id, **fields)
    event = pb.ReportEvent(
        request_id=request_id,
        finished=pb.Finished(output_tokens=output_tokens, prompt_tokens=response.prompt_tokens),
    )
    assert (await live.report(event))[0].known
    return response


async def test_a_prompt_alone_is_enough(live: LiveRouter) -> None:
    answer = await live.route("r", prompt_tokens=0, prompt=b"Write a long essay about the history of Rome.")
    assert 8 <= answer.prompt_tokens <= 20
    assert answer.predictor.startswith("text+")
    assert len(answer.predictor_digest) == 64
    assert len(answer.predicted_output_quantiles) == len(LEVELS)
    assert list(answer.predicted_output_quantiles) == sorted(answer.predicted_output_quantiles)
    assert math.isfinite(answer.predicted_output_tokens)


async def test_a_repeated_call_repeats_its_prediction(live: LiveRouter) -> None:
    first = await live.route("same", prompt=b"Write a poem.", application="chat")
    for place in range(30):
        await answered(live, f"other-{place}", prompt=b"Write a poem.", application="chat", output_tokens=900)
    again = await live.route("same", prompt=b"Write a poem.", application="chat")
    assert list(again.predicted_output_quantiles) == list(first.predicted_output_quantiles)
    assert again.predicted_output_tokens == first.predicted_output_tokens


async def test_answers_teach_the_next_prediction(live: LiveRouter) -> None:
    fields: dict[str, Any] = {"prompt": b"Classify: I like it.", "application": "labels"}
    for place in range(60):
        await answered(live, f"r{place}", output_tokens=3, **fields)
    await live.router.app.world.lengths.settled()
    assert (await live.route("last", **fields)).predicted_output_tokens == pytest.approx(3, abs=2)
    await until(lambda: live.count("llmrouter_length_groups") == 4, what="model, application and both, with the band")
    assert live.count("llmrouter_length_bucket_answers_total", bucket="0-250", predicted="0-250") > 50


async def test_neither_prompt_nor_tokens_is_one_clear_line(live: LiveRouter) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await live.route("r", prompt_tokens=0)
    assert error.value.details() == "prompt_tokens: 0 is not within 1 and 131072"


async def test_a_prompt_that_is_too_long_is_refused_by_its_estimate(live: LiveRouter) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await live.route("r", prompt_tokens=0, prompt=b"word " * 2_000_000)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "prompt: about 2" in (error.value.details() or "")
    assert "more than 131072" in (error.value.details() or "")


async def test_a_prompt_beyond_the_bound_is_refused(live: LiveRouter) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await live.route("r", prompt=b"x" * (MAX_PROMPT_BYTES + 1))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details() == f"prompt: {MAX_PROMPT_BYTES + 1} bytes, more than {MAX_PROMPT_BYTES}"


@pytest.mark.parametrize("prompt", [b"\xff\xfe\x00" * 100, b" ", b"x" * 10_000_000], ids=["binary", "blank", "10 MB"])
async def test_strange_prompts_are_routed(live: LiveRouter, prompt: bytes) -> None:
    assert (await live.route("r", prompt=prompt)).instance_id


async def test_no_prompt_is_logged_whatever_happens(caplog: pytest.LogCaptureFixture) -> None:
    marker = "a very private matter"
    caplog.set_level(logging.DEBUG)
    async with live_router(config()) as live:
        caplog.set_level(logging.DEBUG)  # a configuration brings a level of its own
        await answered(live, "r", prompt=marker.encode(), application="chat", output_tokens=9)
        await answered(live, "liar", prompt=marker.encode(), max_output_tokens=5, output_tokens=999)
        with pytest.raises(grpc.aio.AioRpcError):
            await live.route("x" * 200, prompt=marker.encode())
        await live.route("again", prompt_tokens=0, prompt=(marker * 9_000).encode())
        await live.router.app.world.lengths.settled()
        shown = await live.stub.GetSnapshot(pb.GetSnapshotRequest())
    assert marker not in str(shown)
    assert caplog.records
    assert not [record for record in caplog.records if marker in f"{record.getMessage()} {record.__dict__}"]


async def test_one_router_learns_what_another_saw(redis_server: RedisServer) -> None:
    state = {"redis": {"address": f"127.0.0.1:{redis_server.port}"}}
    shared = config(state=state, predictor={"type": "Applications", "deadlineMilliseconds": LONG_MS})
    async with live_router(shared, router_id="r1") as first, live_router(shared, router_id="r2") as second:
        for place in range(60):
            await answered(first, f"r{place}", application="mail", output_tokens=700)

        async def known() -> bool:
            answer = await second.route("asked", application="mail")
            await second.finish("asked", output_tokens=0)
            return 500 < answer.predicted_output_tokens < 900

        await until(known, what="the second router foretells what the first has seen")
        assert second.count("llmrouter_length_exchange_total", event="Merged") >= 1
    async with live_router(shared, router_id="r3") as third:

        async def remembered() -> bool:
            answer = await third.route("asked", application="mail")
            await third.finish("asked", output_tokens=0)
            return 500 < answer.predicted_output_tokens < 900

        await until(remembered, what="a new router knows what those before it saw")

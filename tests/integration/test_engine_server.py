"""Simulated engines over real HTTP. No test asserts a time; polls are bounded."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import socket
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmrouter.profiles import PROFILES
from llmrouter.testbed.engine_server import EngineServer, EngineServerConfig, main

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

FAST = EngineServerConfig(profile=PROFILES["llama-3.1-8b-rtx4090"], model="m", speed=100.0)
ENDLESS = {"prompt": 10, "max_tokens": 40_000, "ignore_eos": True, "stream": True}


@asynccontextmanager
async def running(config: EngineServerConfig) -> AsyncIterator[tuple[EngineServer, aiohttp.ClientSession]]:
    server = EngineServer(config)
    await server.start("127.0.0.1", 0)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
            yield server, session
    finally:
        await server.close()


@pytest.fixture
async def fast() -> AsyncIterator[tuple[EngineServer, aiohttp.ClientSession]]:
    async with running(FAST) as pair:
        yield pair


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - what is waited for is the server's state, not an event of ours
            await asyncio.sleep(0.005)


async def events(response: aiohttp.ClientResponse) -> list[Any]:
    """The data of each server-sent event; the last must be ``[DONE]``."""
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/event-stream")
    data = [part.removeprefix("data: ") for part in (await response.text()).split("\n\n") if part]
    assert data[-1] == "[DONE]"
    return [json.loads(part) for part in data[:-1]]


async def samples(session: aiohttp.ClientSession) -> dict[str, float]:
    async with session.get("/metrics") as response:
        text = await response.text()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels["model_name"] == "m"
            found[sample.name] = sample.value
            if sample.name == "vllm:cache_config_info":
                assert (sample.labels["block_size"], sample.labels["num_gpu_blocks"]) == ("16", "2625")
    return found


@pytest.mark.parametrize("tokens", [1, 2, 37])
async def test_a_stream_has_one_event_per_token(fast: tuple[EngineServer, aiohttp.ClientSession], tokens: int) -> None:
    _, session = fast
    body = {"model": "m", "prompt": [1] * 50, "max_tokens": tokens, "ignore_eos": True, "stream": True, "top_p": 0.9}
    async with session.post("/v1/completions", json=body) as response:
        got = await events(response)
    assert len(got) == tokens
    assert all(event["choices"][0]["text"] for event in got)
    assert [event["choices"][0]["finish_reason"] for event in got] == [None] * (tokens - 1) + ["length"]
    assert len({event["id"] for event in got}) == 1


@pytest.mark.parametrize("tokens", [1, 5])
async def test_a_chat_stream_opens_with_the_role_and_ends_with_usage(
    fast: tuple[EngineServer, aiohttp.ClientSession], tokens: int
) -> None:
    _, session = fast
    body = {
        "messages": [{"role": "user", "content": "a" * 40}, {"role": "user", "content": [{"text": "b" * 4}]}],
        "max_completion_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with session.post("/v1/chat/completions", json=body) as response:
        role, *content, usage = await events(response)
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(content) == tokens
    assert all(event["choices"][0]["delta"]["content"] for event in content)
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 19, "completion_tokens": tokens, "total_tokens": 19 + tokens}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_stream_says_with_every_event_how_many_tokens_there_are_where_asked(
    fast: tuple[EngineServer, aiohttp.ClientSession], path: str
) -> None:
    _, session = fast
    body = {
        "prompt": 9,
        "messages": [{"role": "user", "content": "a" * 20}],
        "max_tokens": 4,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    async with session.post(path, json=body) as response:
        got = await events(response)
    counts = [1, 2, 3, 4, 4] if path == "/v1/completions" else [0, 1, 2, 3, 4, 4]
    assert [event["usage"]["completion_tokens"] for event in got] == counts
    assert {event["usage"]["prompt_tokens"] for event in got} == {9}


async def test_a_final_message_goes_on_without_a_template_of_its_own(
    fast: tuple[EngineServer, aiohttp.ClientSession],
) -> None:
    _, session = fast
    messages = [{"role": "user", "content": "a" * 40}, {"role": "assistant", "content": " tok" * 5}]
    body = {"messages": messages, "max_tokens": 2, "ignore_eos": True, "continue_final_message": True}
    async with session.post("/v1/chat/completions", json={**body, "add_generation_prompt": False}) as response:
        assert (await response.json())["usage"]["prompt_tokens"] == 10 + 4 + 5
    async with session.post("/v1/chat/completions", json=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "continue_final_message"


async def test_an_engine_that_dies_resets_its_connections() -> None:
    async with running(FAST) as (server, session):
        async with session.post("/v1/completions", json=ENDLESS) as stream:
            await stream.content.readuntil(b"\n\n")
            whole = asyncio.create_task(session.post("/v1/completions", json={**ENDLESS, "stream": False}))
            await eventually(lambda: server.loop.in_flight == 2)
            await server.die()
            with pytest.raises(aiohttp.ClientError):
                await stream.read()
        with pytest.raises(aiohttp.ClientError):
            await whole
        with pytest.raises(aiohttp.ClientError):
            await session.get("/health")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_whole_answer_has_its_usage(fast: tuple[EngineServer, aiohttp.ClientSession], path: str) -> None:
    _, session = fast
    body = {"prompt": "x" * 33, "messages": [{"role": "user", "content": "x" * 17}], "max_tokens": 12}
    async with session.post(path, json={**body, "ignore_eos": True}) as response:
        assert response.status == 200
        answer = await response.json()
    assert answer["usage"] == {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
    assert answer["choices"][0]["finish_reason"] == "length"
    text = answer["choices"][0]["text"] if path == "/v1/completions" else answer["choices"][0]["message"]["content"]
    assert len(text) == 12 * 4


async def test_many_streams_at_once_get_exactly_their_tokens_and_metrics_add_up(
    fast: tuple[EngineServer, aiohttp.ClientSession],
) -> None:
    server, session = fast

    async def one(tokens: int) -> int:
        body = {"prompt": 700, "max_tokens": tokens, "ignore_eos": True, "stream": True}
        async with session.post("/v1/completions", json=body) as response:
            return len(await events(response))

    lengths = [1 + (index * 17) % 90 for index in range(80)]
    assert await asyncio.gather(*(one(tokens) for tokens in lengths)) == lengths
    found = await samples(session)
    assert found["vllm:generation_tokens_total"] == sum(lengths)
    assert found["vllm:prompt_tokens_total"] == 700 * len(lengths)
    assert found["vllm:request_success_total"] == len(lengths)
    assert found["vllm:time_to_first_token_seconds_count"] == len(lengths)
    assert found["vllm:num_preemptions_total"] == server.loop.counters.preemptions_total
    for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert found[f"vllm:{gauge}"] == 0


async def test_a_client_that_leaves_cancels_its_request(fast: tuple[EngineServer, aiohttp.ClientSession]) -> None:
    server, session = fast
    async with session.post("/v1/completions", json=ENDLESS) as response:
        await response.content.readuntil(b"\n\n")
        assert server.loop.counters.running == 1
        response.close()
    await eventually(lambda: server.loop.counters.cancelled_total == 1)
    whole = asyncio.create_task(session.post("/v1/completions", json={**ENDLESS, "stream": False}))
    await eventually(lambda: server.loop.in_flight == 1)
    whole.cancel()
    await eventually(lambda: server.loop.counters.cancelled_total == 2)
    counters = server.loop.counters
    assert (server.loop.in_flight, counters.running, counters.waiting, counters.kv_blocks_used) == (0, 0, 0, 0)


async def test_a_client_that_does_not_read_is_dropped() -> None:
    config = replace(FAST, profile=PROFILES["llama-3.1-8b-rtx-pro-6000"], speed=1_000.0)
    async with running(config) as (server, _):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.setblocking(False)  # noqa: FBT003 - the standard library's signature
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", server.port))
            body = json.dumps({**ENDLESS, "max_tokens": 500_000}).encode()
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            await loop.sock_sendall(client, head + body)
            await eventually(lambda: server.loop.counters.cancelled_total == 1)
            assert server.loop.in_flight == 0


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {}, "prompt"),
        ("/v1/completions", {"prompt": ""}, "prompt"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": 0}, "prompt"),
        ("/v1/completions", {"prompt": -1}, "prompt"),
        ("/v1/completions", {"prompt": 10**9}, "prompt"),
        ("/v1/completions", {"prompt": ["a", "b"]}, "prompt"),
        ("/v1/completions", {"prompt": "x" * 168_001}, "prompt"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "max_tokens": -1}, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "max_tokens": "7"}, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "max_tokens": True}, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "ignore_eos": True}, "max_tokens"),
        ("/v1/completions", {"prompt": 41_990, "max_tokens": 11, "ignore_eos": True}, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "stream": "yes"}, "stream"),
        ("/v1/completions", {"prompt": "x", "n": 2}, "n"),
        ("/v1/chat/completions", {}, "messages"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 168_001}]}, "messages"),
    ],
)
async def test_a_bad_body_is_refused_naming_the_field(
    fast: tuple[EngineServer, aiohttp.ClientSession], path: str, body: dict[str, object], param: str
) -> None:
    server, session = fast
    async with session.post(path, json=body) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["param"] == param
    assert error["type"] == "BadRequestError"
    assert error["code"] == 400
    assert error["message"]
    assert server.loop.in_flight == 0


async def test_what_is_not_json_a_known_model_or_a_path_is_refused_in_the_same_shape(
    fast: tuple[EngineServer, aiohttp.ClientSession],
) -> None:
    _, session = fast
    async with session.post("/v1/completions", data=b"{") as response:
        assert response.status == 400
        assert "JSON" in (await response.json())["error"]["message"]
    async with session.post("/v1/completions", json={"prompt": "x", "model": "another"}) as response:
        assert response.status == 404
        assert "another" in (await response.json())["error"]["message"]
    async with session.get("/v2") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, 404)
    async with session.get("/v1/completions") as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
    async with session.post("/v1/completions", data=io.BytesIO(b" " * (9 * 1024 * 1024))) as response:
        assert response.status == 413


async def test_http_1_0_cannot_stream() -> None:
    async with (
        running(FAST) as (server, _),
        aiohttp.ClientSession(version=aiohttp.HttpVersion10) as old,
        old.post(f"http://127.0.0.1:{server.port}/v1/completions", json=ENDLESS) as response,
    ):
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "stream"


async def test_models_and_health(fast: tuple[EngineServer, aiohttp.ClientSession]) -> None:
    _, session = fast
    async with session.get("/v1/models") as response:
        (model,) = (await response.json())["data"]
    assert (model["id"], model["max_model_len"]) == ("m", 42_000)
    async with session.get("/health") as response:
        assert response.status == 200


async def test_open_lengths_are_drawn_from_the_seed_and_cut_at_max_tokens() -> None:
    async def lengths(seed: int, **more: int) -> list[tuple[int, str]]:
        async with running(replace(FAST, seed=seed, speed=1_000.0)) as (_, session):
            found = []
            for _ in range(6):
                async with session.post("/v1/completions", json={"prompt": 5, **more}) as response:
                    answer = await response.json()
                found.append((answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]))
            return found

    first = await lengths(1)
    assert first == await lengths(1)
    assert first != await lengths(2)
    assert {reason for _, reason in first} == {"stop"}
    cut = await lengths(1, max_tokens=30)
    assert cut == [(min(tokens, 30), "length" if tokens >= 30 else "stop") for tokens, _ in first]


async def test_a_full_engine_says_so() -> None:
    async with (
        running(replace(FAST, max_in_flight=1)) as (_, session),
        session.post("/v1/completions", json=ENDLESS) as first,
        session.post("/v1/completions", json=ENDLESS) as second,
    ):
        assert second.status == 503
        assert second.headers["Retry-After"]
        first.close()


async def test_draining_finishes_what_is_in_flight_and_refuses_the_rest() -> None:
    async with running(FAST) as (server, session):
        body = {"prompt": 10, "max_tokens": 400, "ignore_eos": True, "stream": True}
        async with session.post("/v1/completions", json=body) as response:
            await response.content.readuntil(b"\n\n")
            draining = asyncio.create_task(server.drain(30))
            await asyncio.sleep(0)
            async with session.get("/health") as health:
                assert health.status == 503
            async with session.post("/v1/completions", json=body) as refused:
                assert refused.status == 503
            assert len(await events(response)) == 399
        await draining
        assert server.loop.in_flight == 0


async def test_draining_is_bounded() -> None:
    async with running(FAST) as (server, session), session.post("/v1/completions", json=ENDLESS) as response:
        await response.content.readuntil(b"\n\n")
        await server.drain(0)
        assert server.loop.in_flight == 1


async def test_sigterm_drains_all_instances_of_the_process() -> None:
    arguments = ("--profile", "llama-3.1-8b-rtx4090", "--port", "0", "--instances", "2", "--speed", "20")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llmrouter.testbed.engine_server", *arguments), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        urls = [(await process.stdout.readline()).decode().split()[-1] for _ in range(2)]
        assert len(set(urls)) == 2
        body = {"prompt": 10, "max_tokens": 300, "ignore_eos": True, "stream": True}
        async with aiohttp.ClientSession() as session:
            responses = [await session.post(f"{url}/v1/completions", json=body) for url in urls]
            process.send_signal(signal.SIGTERM)
            assert [len(await events(response)) for response in responses] == [300, 300]
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--profile", "none"], "none"),
        (["--profile", "h100-mix", "--speed", "0"], "--speed"),
        (["--profile", "h100-mix", "--speed", "nan"], "--speed"),
        (["--profile", "h100-mix", "--instances", "0"], "--instances"),
        (["--profile", "h100-mix", "--port", "65535", "--instances", "2"], "--port"),
        ([], "--profile"),
    ],
)
def test_a_bad_command_line_is_one_clear_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_a_taken_port_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--profile", "h100-mix", "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen" in capsys.readouterr().err

"""The OpenAI front over real HTTP: engines that die or drain, clients that leave, bounds. No test asserts a time."""

# ruff: noqa: ANN401 - fields of bodies and of resources

from __future__ import annotations

import asyncio
import io
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from support.router_world import LiveRouter, config_of, live_router, until
from support.scripted_engine import ANSWER, CHAT, COMPLETION, PROMPT, PROMPT_TOKENS, Engine, Script, engines, events_of

from llmrouter.profiles import PROFILES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PROFILE = min(PROFILES)
TEXT = "".join(ANSWER)
STAY = {"claimTimeoutSeconds": 60, "reportGraceSeconds": 60}
DEATHS = {
    "before the head": Script(dies_before_head=True),
    "a status": Script(status=503),
    "before the first token": Script(bytes_before_death=0),
    "after the role": Script(bytes_before_death=130),
    "mid-character": Script(bytes_before_death=-1),
    "mid-line": Script(bytes_before_death=600),
    "a clean end without an end": Script(bytes_before_death=700, is_clean=True),
}


@dataclass
class Front:
    """A router with a front, the engines behind it, and a client."""

    live: LiveRouter
    engines: list[Engine]
    client: aiohttp.ClientSession

    async def post(self, path: str, **more: Any) -> tuple[int, bytes]:
        async with self.client.post(path, json=asked(path, **more)) as response:
            return response.status, await response.read()

    async def streamed(self, path: str, **more: Any) -> list[dict[str, Any]]:
        status, body = await self.post(path, stream=True, **more)
        assert status == 200, body
        *events, last, rest = body.split(b"\n\n")
        assert (last, rest) == (b"data: [DONE]", b"")
        return [json.loads(one.removeprefix(b"data: ")) for one in events]

    async def empty(self) -> None:
        """Nothing is reserved or open any more, here and at the engines."""
        router = self.live.router.app
        await until(
            lambda: (
                len(router.world.open_requests) == 0
                and self.live.count("llmrouter_openai_open_requests") == 0
                and all(one.open == 0 for one in self.engines)
            ),
            what="nothing left",
        )
        assert await router.world.ledger.loads() == {}

    def count(self, name: str, **labels: str) -> float:
        return self.live.count(name, **labels)


def asked(path: str, **more: Any) -> dict[str, Any]:
    said = {"prompt": PROMPT} if path == COMPLETION else {"messages": [{"role": "user", "content": PROMPT}]}
    return {"model": "llama", **said, "max_tokens": 100, **more}


def text_of(events: list[dict[str, Any]]) -> str:
    choices = [one["choices"][0] for one in events if one["choices"]]
    return "".join(one["text"] if "text" in one else one["delta"].get("content", "") for one in choices)


def usage_of(events: list[dict[str, Any]]) -> dict[str, int]:
    found: dict[str, int] = events[-1]["usage"]
    return found


@asynccontextmanager
async def front(
    *scripts: list[Script], openai: dict[str, Any] | None = None, roles: tuple[str, ...] = (), **parts: Any
) -> AsyncIterator[Front]:
    """A front before one engine for each list of scripts; in mode Tokens unless told."""
    rules = {"resume": "Tokens", **(openai or {})}
    async with engines(*scripts) as made:
        pool = {"profile": {"name": PROFILE}, "continuesChat": True}
        endpoints = [one.endpoint for one in made]
        pools: list[dict[str, Any]] = [{**pool, "name": "main", "endpoints": endpoints}]
        if roles:
            pools = [
                {**pool, "name": role.lower(), "role": role, "endpoints": [endpoint]}
                for role, endpoint in zip(roles, endpoints, strict=True)
            ]
        config = config_of(
            **{
                "pools": pools,
                "limits": {"maxInFlightPerInstance": 64, **STAY},
                "listeners": {"openai": rules},
                **parts,
            }
        )
        async with live_router(config, openai_port=0) as live:
            app = live.router.app
            assert app.front is not None
            async with aiohttp.ClientSession(f"http://127.0.0.1:{app.front.port}") as client:
                yield Front(live, made, client)


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
@pytest.mark.parametrize("death", sorted(DEATHS))
async def test_a_stream_whose_engine_dies_goes_on_at_another_once(path: str, death: str) -> None:
    script = DEATHS[death]
    if death == "mid-character":
        body = asked(path, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
        script = Script(bytes_before_death=b"".join(events_of(path, body)).index("時".encode()) + 1)
    deaths = [script]
    async with front(deaths, deaths) as one:
        events = await one.streamed(path, stream_options={"include_usage": True})
        assert text_of(events) == TEXT
        assert usage_of(events)["completion_tokens"] == len(ANSWER)
        assert usage_of(events)["prompt_tokens"] == PROMPT_TOKENS
        assert len({(event["id"], event["created"]) for event in events}) == 1
        assert [len(engine.raw_bodies) for engine in one.engines] == [1, 1]
        await one.empty()
        resumed = sum(one.count("llmrouter_resumes_total", reason=why) for why in ("unreachable", "refused", "broken"))
        assert resumed == 1


async def test_two_deaths_are_survived_and_a_third_is_told_in_the_stream() -> None:
    script = Script(bytes_before_death=900)
    deaths = [script, script]
    async with front(deaths, deaths, deaths) as one:
        assert text_of(await one.streamed(CHAT)) == TEXT
        await one.empty()
    deaths = [script, script, script]
    async with front(deaths, deaths, deaths) as one:
        status, body = await one.post(CHAT, stream=True)
        assert status == 200
        assert b"[DONE]" not in body
        assert json.loads(body.split(b"\n\n")[-2].removeprefix(b"data: "))["error"]["code"] == "InstanceFailed"
        assert one.count("llmrouter_resumes_total", reason="broken") == 2
        await one.empty()


async def test_an_instance_that_failed_before_the_last_one_did_may_have_the_request_again() -> None:
    deaths = [Script(bytes_before_death=900), Script(bytes_before_death=700)]
    async with front(deaths, deaths) as one:
        assert text_of(await one.streamed(CHAT)) == TEXT
        assert sorted(len(engine.bodies) for engine in one.engines) == [1, 2]
        await one.empty()


async def test_where_all_instances_are_dead_the_client_is_told_so() -> None:
    for script, expected in ((Script(dies_before_head=True), 502), (Script(status=503), 503)):
        async with front([script] * 3, [script] * 3) as one:
            status, body = await one.post(CHAT, stream=True)
            assert status == expected
            assert json.loads(body)["error"]["message"]
            await one.empty()
            status, body = await one.post(COMPLETION)
            assert status == expected
            await one.empty()


async def test_what_cannot_go_on_ends_with_an_error_in_its_stream() -> None:
    for path, more in ((CHAT, {"tools": [{"type": "function"}]}), (CHAT, {"n": 2}), (COMPLETION, {"logprobs": 1})):
        script = Script(bytes_before_death=900)
        async with front([script], [script]) as one:
            _, body = await one.post(path, stream=True, **more)
            last = json.loads(body.split(b"\n\n")[-2].removeprefix(b"data: "))
            assert last["error"]["code"] == "InstanceFailed"
            assert b"[DONE]" not in body
            assert one.count("llmrouter_not_resumed_total", reason="broken") == 1
            await one.empty()


async def test_before_the_first_token_the_very_bytes_are_sent_again() -> None:
    deaths = [Script(bytes_before_death=0)]
    async with front(deaths, deaths, openai={"resume": "BeforeFirstToken"}) as one:
        raw = json.dumps(asked(CHAT, stream=True), indent=3).encode()
        async with one.client.post(CHAT, data=raw) as response:
            got = await response.read()
            assert response.headers["x-of-engine"] == "yes"
        assert got.endswith(b"data: [DONE]\n\n")
        assert [engine.raw_bodies for engine in one.engines] == [[raw], [raw]]
        await one.empty()


async def test_a_whole_answer_that_breaks_off_is_made_anew() -> None:
    deaths = [Script(bytes_before_death=50)]
    async with front(deaths, deaths) as one:
        status, body = await one.post(CHAT)
        said = json.loads(body)
        assert status == 200
        assert said["choices"][0]["message"]["content"] == TEXT
        assert said["usage"]["completion_tokens"] == len(ANSWER)
        await one.empty()


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("path", [CHAT, COMPLETION])
async def test_slices_are_one_answer(path: str, *, streams: bool) -> None:
    async with front([], [], openai={"sliceTokens": 4}) as one:
        if streams:
            events = await one.streamed(path, stream_options={"include_usage": True})
            text, usage = text_of(events), usage_of(events)
            finish = events[-2]["choices"][0]["finish_reason"]
        else:
            _, body = await one.post(path)
            said = json.loads(body)
            choice, usage = said["choices"][0], said["usage"]
            text = choice["text"] if path == COMPLETION else choice["message"]["content"]
            finish = choice["finish_reason"]
        assert (text, finish) == (TEXT, "stop")
        assert usage["prompt_tokens"] == PROMPT_TOKENS
        if streams or path == COMPLETION:
            assert usage["completion_tokens"] == len(ANSWER)
        bodies = [body for engine in one.engines for body in engine.bodies]
        assert len(bodies) >= 4
        slices = sum(one.count("llmrouter_slices_total", moved=moved) for moved in ("true", "false"))
        assert slices == len(bodies) - 1
        await one.empty()


async def test_an_engines_refusal_of_a_request_is_passed_on() -> None:
    async with front([Script(status=400)], [Script(status=400)]) as one:
        status, body = await one.post(CHAT)
        assert (status, json.loads(body)) == (400, {"error": {"message": "no", "code": 400}})
        assert sum(len(engine.bodies) for engine in one.engines) == 1
        await one.empty()


async def test_a_client_that_leaves_gives_its_place_back_in_every_phase() -> None:
    gate = asyncio.Event()
    for script in (Script(head_waits=gate), Script(waits_after=(0, gate)), Script(waits_after=(700, gate))):
        async with front([script]) as one:
            request = asyncio.create_task(one.post(CHAT, stream=True))
            await until(lambda one=one: one.engines[0].open == 1)  # type: ignore[misc]
            if script.waits_after and script.waits_after[0]:
                reservations = one.live.router.app.world.open_requests
                await until(lambda reservations=reservations: any(r.prefilled for r in reservations.reservations()))  # type: ignore[misc]
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            await one.empty()
            assert one.engines[0].cut_off == 1
            assert one.count("llmrouter_openai_requests_total", outcome="Left") == 1


async def test_a_client_that_leaves_while_it_is_held_leaves_nothing() -> None:
    gate = asyncio.Event()
    limits = {"maxInFlightPerInstance": 1, **STAY}
    async with front([Script(head_waits=gate)], limits=limits, policy={"hold": {"enabled": True}}) as one:
        first = asyncio.create_task(one.post(CHAT))
        await until(lambda: one.engines[0].open == 1)
        second = asyncio.create_task(one.post(CHAT))
        await until(lambda: one.live.router.app.service.held == 1)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        await until(lambda: one.live.router.app.service.held == 0)
        gate.set()
        status, _ = await first
        assert status == 200
        await one.empty()


async def test_a_slow_reader_slows_its_engine_alone_and_gets_everything() -> None:
    words = tuple(f" word{n:05d}" * 600 for n in range(6_000))
    async with front([]) as one:
        one.engines[0].answer = words
        async with one.client.post(CHAT, json=asked(CHAT, stream=True, max_tokens=10_000)) as slow:
            await slow.content.readuntil(b"\n\n")
            await until(lambda: one.engines[0].open == 1)
            one.engines[0].answer = ANSWER
            assert text_of(await one.streamed(COMPLETION)) == TEXT
            assert one.engines[0].open == 1
            rest = await slow.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        assert rest.count(b"word05999") == 600
        await one.empty()


async def test_requests_that_have_not_begun_move_when_their_instance_drains() -> None:
    gate = asyncio.Event()
    async with front([Script(head_waits=gate)], [Script(head_waits=gate)]) as one:
        request = asyncio.create_task(one.streamed(CHAT))
        await until(lambda: sum(engine.open for engine in one.engines) == 1)
        (busy,) = [engine for engine in one.engines if engine.open]
        for engine in one.engines:
            engine.scripts.clear()
        directory: Any = one.live.router.app.world.instances
        (gone,) = [one.instance_id for one in directory.current() if one.endpoint == busy.endpoint]
        directory.set_unreachable(frozenset({gone}))
        assert text_of(await request) == TEXT
        assert one.count("llmrouter_resumes_total", reason="drained") == 1
        assert busy.cut_off == 1
        await one.empty()


async def test_what_makes_no_tokens_is_forwarded_and_models_and_health_are_the_fronts_own() -> None:
    async with front([]) as one:
        async with one.client.get("/v1/anything?x=1") as response:
            assert (response.status, await response.read()) == (200, b"got /v1/anything?x=1")
        async with one.client.get("/v1/models") as response:
            assert [model["id"] for model in (await response.json())["data"]] == ["llama"]
        async with one.client.get("/health") as response:
            assert response.status == 200
        await one.empty()


async def test_bad_requests_are_told_in_openais_words_and_leave_nothing() -> None:
    async with front([]) as one:
        cases: list[tuple[bytes, int, str]] = [
            (b"{", 400, "InvalidRequest"),
            (b"[]", 400, "InvalidRequest"),
            (json.dumps(asked(CHAT, model="other")).encode(), 404, "UnknownModel"),
            (b" " * (17 * 1024 * 1024), 413, "BodyTooLarge"),
        ]
        for body, status, code in cases:
            async with one.client.post(CHAT, data=io.BytesIO(body)) as response:
                assert response.status == status
                assert (await response.json())["error"]["code"] == code
                assert response.headers["llmrouter-reason"] == code
        assert one.live.router.app.desk.intake.bytes == 0
        assert one.engines[0].bodies == []
        await one.empty()


async def test_more_requests_than_are_allowed_are_answered_at_once() -> None:
    gate = asyncio.Event()
    async with front([Script(head_waits=gate)], openai={"maxRequests": 1}) as one:
        first = asyncio.create_task(one.post(CHAT))
        await until(lambda: one.engines[0].open == 1)
        async with one.client.post(CHAT, json=asked(CHAT)) as response:
            assert response.status == 429
            assert response.headers["retry-after"] == "1"
            assert (await response.json())["error"]["code"] == "FrontFull"
        gate.set()
        assert (await first)[0] == 200
        await one.empty()


async def test_where_two_instances_serve_a_request_the_second_is_told_of_the_first() -> None:
    parts = {"prefillDecode": {"minPrefillTokens": 0}}
    async with front([], [], roles=("Prefill", "Decode"), **parts) as one:
        assert text_of(await one.streamed(CHAT)) == TEXT
        (head,) = one.engines[1].heads
        assert f"x-prefiller-host-port: {one.engines[0].endpoint}".encode() in head.lower()
        await one.empty()


async def test_internal_headers_of_a_client_go_nowhere_and_its_own_go_on() -> None:
    async with front([]) as one:
        forged = {"x-prefiller-host-port": "evil:1", "x-gateway-destination-endpoint": "evil:1", "x-own": "1"}
        named = {"x-request-id": "mine", "authorization": "Bearer k", "connection": "x-hop, keep-alive", "x-hop": "1"}
        async with one.client.post(CHAT, json=asked(CHAT), headers={**forged, **named}) as response:
            assert response.status == 200
        (head,) = (head.decode().lower() for head in one.engines[0].heads)
        assert "evil" not in head
        assert "x-hop" not in head
        for line in ("x-own: 1", "x-request-id: mine", "authorization: bearer k", "accept-encoding: identity"):
            assert line in head


async def test_what_is_open_when_the_router_drains_comes_to_its_end() -> None:
    gate = asyncio.Event()
    async with front([Script(waits_after=(700, gate))]) as one:
        request = asyncio.create_task(one.streamed(CHAT))
        await until(lambda: one.engines[0].open == 1)
        app = one.live.router.app
        assert app.front is not None
        draining = asyncio.create_task(app.front.drain(20.0))
        await asyncio.sleep(0.05)
        gate.set()
        assert text_of(await request) == TEXT
        await draining
        async with aiohttp.ClientSession() as late:
            with pytest.raises(aiohttp.ClientError):
                await late.get(f"http://127.0.0.1:{app.front.port}/health")


async def test_a_stream_that_stands_still_goes_on_elsewhere() -> None:
    scripts = [Script(waits_after=(900, asyncio.Event()))]
    async with front(scripts, scripts, openai={"stallSeconds": 0.2}) as one:
        assert text_of(await one.streamed(CHAT)) == TEXT
        assert one.count("llmrouter_resumes_total", reason="stalled") == 1
        await one.empty()


async def test_an_engine_that_says_an_error_in_its_stream_has_failed() -> None:
    async with front([], []) as one:
        for engine in one.engines:
            engine.error_after = 5
        _, body = await one.post(CHAT, stream=True)
        assert json.loads(body.split(b"\n\n")[-2].removeprefix(b"data: ")) == {"error": {"message": "engine dead"}}
        await one.empty()
        one.engines[0].error_after = None
        assert text_of(await one.streamed(CHAT)) == TEXT
        await one.empty()

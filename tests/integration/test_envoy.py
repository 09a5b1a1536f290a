"""A stock Envoy, a router as its endpoint picker, and simulated engines: over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from support.gateway import CHAT_PATH
from support.router_world import config_of, live_router, until

from llmrouter.profiles import PROFILES
from llmrouter.testbed.cluster.processes import free_port
from llmrouter.testbed.engine_server import EngineServer, EngineServerConfig
from llmrouter.testbed.envoy import bootstrap, start_envoy
from router_grpc.v1 import router_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.router_world import LiveRouter

ENGINE = EngineServerConfig(profile=PROFILES["llama-3.1-8b-rtx4090"], model="llama")
ENDLESS = {"max_tokens": 20_000, "ignore_eos": True, "stream": True}


def chat(**changes: object) -> dict[str, Any]:
    return {"model": "llama", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, **changes}


@dataclass
class Front:
    """Envoy's address, a client's session, the router behind it, and the engines."""

    url: str
    session: aiohttp.ClientSession
    live: LiveRouter
    servers: tuple[EngineServer, ...]

    async def post(self, path: str = CHAT_PATH, **parts: Any) -> tuple[int, bytes, aiohttp.ClientResponse]:  # noqa: ANN401
        async with self.session.post(self.url + path, **parts) as answer:
            return answer.status, await answer.read(), answer

    async def in_flight(self) -> int:
        snapshot = await self.live.stub.GetSnapshot(pb.GetSnapshotRequest())
        return sum(one.in_flight_requests for one in snapshot.instances)


@dataclass(frozen=True)
class Place:
    """Where a test's files lie, the transport that Envoy asks its router over, and Envoy's modes: see ``Front``."""

    folder: Path
    is_fast: bool
    as_gateways_do: bool


@pytest.fixture(params=[(True, True), (False, True), (True, False)], ids=["fast", "grpc", "front"])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    is_fast, as_gateways_do = request.param
    return Place(tmp_path, is_fast=is_fast, as_gateways_do=as_gateways_do)


@asynccontextmanager
async def front(
    place: Place,
    *,
    engines: int = 2,
    **parts: Any,  # noqa: ANN401 - fields of the resource
) -> AsyncIterator[Front]:
    async with AsyncExitStack() as stack:
        servers = tuple(EngineServer(ENGINE) for _ in range(engines))
        for server in servers:
            await server.start("127.0.0.1", 0)
            stack.push_async_callback(server.close)
        named = [f"127.0.0.1:{server.port}" for server in servers] or ["127.0.0.1:1"]
        live = await stack.enter_async_context(
            live_router(config_of(*named, **parts), ext_proc_port=0, ext_proc_is_fast=place.is_fast)
        )
        port = free_port()
        picker = f"127.0.0.1:{live.router.app.listener.ports['extProc.port']}"
        ports = {"port": port, "admin_port": free_port()}
        envoy = start_envoy(place.folder, bootstrap(picker=picker, as_gateways_do=place.as_gateways_do, **ports))
        stack.callback(envoy.stop)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        found = Front(f"http://127.0.0.1:{port}", session, live, servers)

        async def answers() -> bool:
            assert envoy.alive, envoy.log.read_text()[-2000:]
            try:
                async with session.get(f"{found.url}/v1/models") as answer:
                    return answer.status == 200 if engines else "llmrouter-reason" in answer.headers
            except aiohttp.ClientError:  # not listening yet
                return False

        await until(answers, what="Envoy and the instances are ready", within_s=30)
        yield found


async def test_a_request_goes_through_and_is_accounted_for(place: Place) -> None:
    async with front(place) as gateway:
        status, body, _ = await gateway.post(json=chat())
        assert status == 200
        assert json.loads(body)["usage"]["completion_tokens"] == 3
        await until(lambda: _is(gateway.in_flight(), 0), what="reservation released")
        for event in ("committed", "finished"):
            assert gateway.live.count("llmrouter_reservations_total", event=event) == 1


async def test_a_stream_comes_as_it_is_made(place: Place) -> None:
    async with front(place) as gateway:
        status, body, _ = await gateway.post(json=chat(stream=True, max_tokens=5))
        assert status == 200
        events = [line for line in body.decode().split("\n") if line.startswith("data:")]
        assert events[-1] == "data: [DONE]"
        assert len(events) >= 5
        await until(lambda: _is(gateway.in_flight(), 0), what="reservation released")


async def test_a_long_body_arrives_whole(place: Place) -> None:
    async with front(place, limits={"maxPromptTokens": 1_000_000}) as gateway:
        words = "word " * 60_000
        status, body, _ = await gateway.post(json=chat(messages=[{"role": "user", "content": words}]))
        said = json.loads(body)
        assert status in {200, 400}, said
        if status == 400:  # longer than the engine takes: its own words, so the whole of it has arrived
            assert "router" not in str(said)


async def test_a_client_that_leaves_gives_its_place_back(place: Place) -> None:
    async with front(place) as gateway:
        async with gateway.session.post(gateway.url + CHAT_PATH, json=chat(**ENDLESS)) as answer:
            await answer.content.readline()
            await until(lambda: _is(gateway.in_flight(), 1), what="in flight")
        await until(lambda: _is(gateway.in_flight(), 0), what="reservation released")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "InvalidRequest"),
        (b'{"messages": [{"content": "a"}]}', 400, "InvalidRequest"),
        (json.dumps(chat(model="unknown")).encode(), 404, "UnknownModel"),
    ],
)
async def test_what_cannot_be_routed_is_refused_with_its_reason(
    place: Place, body: bytes, status: int, code: str
) -> None:
    async with front(place, engines=1) as gateway:
        got, text, answer = await gateway.post(data=body)
        assert got == status, text
        assert json.loads(text)["error"]["code"] == code
        assert answer.headers["llmrouter-reason"] == code


async def test_no_instance_is_503_and_a_full_one_429(place: Place) -> None:
    async with front(place, engines=0, limits={"scrapeIntervalSeconds": 0.1}) as gateway:
        status, text, answer = await gateway.post(json=chat())
        assert (status, answer.headers["x-llm-d-request-dropped-reason"]) == (503, "rejected-no-endpoints"), text
    policy = {"type": "LeastInFlight", "hold": {"enabled": False}}
    async with front(place, engines=1, policy=policy, limits={"maxInFlightPerInstance": 1}) as gateway:
        running = await gateway.session.post(gateway.url + CHAT_PATH, json=chat(**ENDLESS))
        await running.content.readline()
        status, text, answer = await gateway.post(json=chat())
        running.close()
        assert (status, answer.headers["x-llm-d-request-dropped-reason"]) == (429, "rejected-saturated"), text
        assert int(answer.headers["retry-after"]) >= 1


async def test_an_instance_whose_requests_fail_is_left_out(place: Place) -> None:
    """One of two refuses everything; after so many failures in a row all requests go to the other."""
    async with front(place, outliers={"consecutiveFailures": 2, "ejectSeconds": 300}) as gateway:
        await gateway.servers[0].drain(0.0)
        statuses = [(await gateway.post(json=chat()))[0] for _ in range(30)]
        assert sorted(set(statuses)) == [200, 503]
        assert statuses.count(503) == gateway.live.count("llmrouter_reservations_total", event="failed") == 2
        assert gateway.live.count("llmrouter_ejections_total", reason="failures") == 1


async def test_paths_that_make_no_tokens_are_forwarded(place: Place) -> None:
    async with front(place) as gateway:
        async with gateway.session.get(gateway.url + "/v1/models") as answer:
            assert answer.status == 200
            assert (await answer.json())["data"][0]["id"] == "llama"
        status, _, _ = await gateway.post("/v1/messages/count_tokens", json={"anything": 1})
        assert status == 404, "the engine's own answer"
        assert gateway.live.count("llmrouter_reservations_total", event="committed") == 0


async def test_a_client_cannot_choose_the_instance(place: Place) -> None:
    async with front(place, engines=1) as gateway:
        forged = {"x-gateway-destination-endpoint": "127.0.0.1:1"}
        status, _, _ = await gateway.post(json=chat(), headers=forged)
        assert status == 200


def observing(**fields: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of the resource
    return {"listeners": {"extProc": {"port": 9002, **fields}}, "limits": {"scrapeIntervalSeconds": 0.2}}


async def test_envoy_goes_on_alone_where_answers_are_not_seen(place: Place) -> None:
    """A stream, a whole answer and a forwarded path pass; nothing is reported, and nothing stays reserved."""
    nothing = observing(responseObservation="None")
    async with front(place, **nothing) as gateway:
        for asked in (chat(stream=True, max_tokens=40), chat(max_tokens=40)):
            status, body, _ = await gateway.post(json=asked)
            assert status == 200
            assert (b"[DONE]" in body) or json.loads(body)["usage"]["completion_tokens"] == 40
        status, _, _ = await gateway.post("/v1/messages/count_tokens", json={"anything": 1})
        assert status == 404, "the engine's own answer"
        assert gateway.live.count("llmrouter_reservations_total", event="finished") == 0
        await until(lambda: _is(gateway.in_flight(), 0), what="reservations presumed over")
        assert gateway.live.count("llmrouter_reservations_total", event="presumed") == 2
        assert gateway.live.count("llmrouter_errors_total", part="picker") == 0


async def test_a_share_of_the_answers_is_seen_where_they_are_sampled(place: Place) -> None:
    async with front(place, **observing(responseObservation="Sampled", observedFraction=0.5)) as gateway:
        for _ in range(30):
            assert (await gateway.post(json=chat()))[0] == 200
        await until(lambda: _is(gateway.in_flight(), 0), what="reservations released")
        seen = gateway.live.count("llmrouter_reservations_total", event="finished")
        presumed = gateway.live.count("llmrouter_reservations_total", event="presumed")
        assert seen + presumed == 30
        assert 3 < seen < 27


async def a_byte_at_a_time(body: bytes) -> AsyncIterator[bytes]:
    for at in range(len(body)):
        yield body[at : at + 1]


async def said_to(gateway: Front, *, length: int, pieces: int) -> bytes:
    """The first line that comes to a body of so many bytes, of which so many MB are sent; then the client leaves."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rpartition(":")[2]))
    writer.write(f"POST {CHAT_PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n".encode())
    said = asyncio.create_task(reader.readline())
    with contextlib.suppress(ConnectionError):  # it was answered before it had said all
        for _ in range(pieces):
            writer.write(b"x" * 1_000_000)
            await writer.drain()
    await asyncio.wait({said}, timeout=0.5 if pieces == 1 else 10)
    writer.close()
    return await said


async def test_requests_that_are_meant_ill_get_their_status_and_leave_nothing(place: Place) -> None:
    async with front(place) as gateway:
        good = json.dumps(chat()).encode()
        asked: list[tuple[set[int], dict[str, Any]]] = [
            ({200}, {"data": good, "headers": {"x-long": "a" * 8_000}}),
            ({200}, {"data": good, "headers": {f"x-{number}": "a" for number in range(80)}}),
            ({400}, {"data": b'{"model": "\xff"'}),
            ({400}, {"data": b"[" * 100_000}),
            ({400}, {"data": good.replace(b"{", b'{"temperature": NaN, ', 1)}),
            ({404}, {"data": good.replace(b"}", b', "model": "another"}', 2)[:-1] + b', "model": "nobody"}'}),
            ({200}, {"data": a_byte_at_a_time(good)}),
        ]
        for statuses, parts in asked:
            status, text, _ = await gateway.post(**parts)
            assert status in statuses, text[:300]
        assert await said_to(gateway, length=100_000_000, pieces=100) == b"HTTP/1.1 413 Payload Too Large\r\n"
        assert await said_to(gateway, length=100_000_000, pieces=1) == b"", "it was left waiting, and left"
        assert (await gateway.post(data=good))[0] == 200
        desk = gateway.live.router.app.desk
        await until(lambda: desk.intake.bytes == 0, what="no byte of a body is kept")
        await until(lambda: _is(gateway.in_flight(), 0), what="reservations released")
        assert gateway.live.count("llmrouter_errors_total", part="picker") == 0


async def _is(value: Any, wanted: int) -> bool:  # noqa: ANN401 - an awaitable
    return bool(await value == wanted)

"""`llmrouter serve`, `llmrouter front` and simulated engines: what a client without Kubernetes gets, and keeps."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import ssl
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import yaml
from support.certificates import link_secret
from support.operator_process import CHART
from support.router_world import until

from llmrouter.errors import InvalidInputError
from llmrouter.testbed import front_command
from llmrouter.testbed.cluster.processes import Process, free_port, start
from llmrouter.testbed.envoy import Front, bootstrap, configuration, is_ready, pickers_known, start_envoy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

PATH = "/v1/completions"
TOKENS = 200


def completion(**changes: object) -> dict[str, Any]:
    asked: dict[str, Any] = {"model": "llama", "prompt": "a secret", "max_tokens": 3, "ignore_eos": True}
    return asked | changes


STREAM = completion(stream=True, max_tokens=TOKENS)


def router_file(folder: Path, endpoints: Sequence[str], *, secure: bool) -> tuple[Path, int]:
    listeners = {
        "grpcPort": free_port(),
        "metricsPort": free_port(),
        "extProc": {"port": (port := free_port()), "secureServing": secure},
    }
    spec = {
        "models": [{"name": "llama"}],
        "policyRef": {"name": "any"},
        "pools": [{"name": "engines", "profile": {"name": "llama-3.1-8b-rtx4090"}, "endpoints": list(endpoints)}],
        "listeners": listeners,
        "router": {"replicas": 1},
    }
    head = {"apiVersion": "llmrouter.dev/v1alpha1"}
    router = {**head, "kind": "LLMRouter", "metadata": {"name": "front"}, "spec": spec}
    policy = {**head, "kind": "RoutingPolicy", "metadata": {"name": "any"}, "spec": {"type": "RoundRobin"}}
    path = folder / f"router-{port}.yaml"
    path.write_text(yaml.safe_dump_all([router, policy]))
    return path, port


def command(folder: Path, *words: str) -> Process:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return start(words[0], [sys.executable, "-m", "llmrouter.cli", *words], log=folder / words[0], env=environment)


@dataclass
class World:
    """A client's session with a front, the routers behind it, and Envoy's process."""

    session: aiohttp.ClientSession
    url: str
    routers: tuple[Process, ...]
    envoy: Process

    async def post(self, **parts: Any) -> tuple[int, bytes]:  # noqa: ANN401 - as aiohttp has them
        async with self.session.post(self.url + PATH, **parts) as answer:
            return answer.status, await answer.read()

    async def ready(self, admin_port: int | None = None) -> None:
        """Answers come; and Envoy knows all routers, where its port for such questions is given."""

        async def answers() -> bool:
            assert self.envoy.alive, self.envoy.log.read_text()[-2000:]
            if admin_port and await asyncio.to_thread(pickers_known, admin_port) != len(self.routers):
                return False
            try:
                for _ in self.routers:  # each is asked in turn
                    async with self.session.get(f"{self.url}/v1/models") as answer:
                        if answer.status != 200:
                            return False
            except aiohttp.ClientError:  # not listening yet
                return False
            return True

        await until(answers, what="the front answers", within_s=60)


@asynccontextmanager
async def by_commands(folder: Path) -> AsyncIterator[World]:
    """One router and a front, both by command, which share the router's file; the picker's port has TLS."""
    async with AsyncExitStack() as stack:
        config, _ = router_file(folder, [engine(folder, stack)], secure=True)
        router = command(folder, "serve", "--config", str(config))
        stack.callback(router.stop)
        port = free_port()
        words = ("--config", str(config), "--port", str(port), "--access-log", "--show-instance")
        envoy = command(folder, "front", *words)
        stack.callback(envoy.stop)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        world = World(session, f"http://127.0.0.1:{port}", (router,), envoy)
        await world.ready()
        yield world


@asynccontextmanager
async def before_two(folder: Path, **fields: Any) -> AsyncIterator[World]:  # noqa: ANN401 - of Front
    """Two routers, which know nothing of each other, behind one Envoy."""
    async with AsyncExitStack() as stack:
        engines = [engine(folder, stack) for _ in range(2)]
        files = [router_file(folder, engines, secure=False) for _ in range(2)]
        routers = tuple(command(folder, "serve", "--config", str(path)) for path, _ in files)
        for router in routers:
            stack.callback(router.stop)
        port = free_port()
        pickers = tuple(f"127.0.0.1:{picker_port}" for _, picker_port in files)
        front = Front(pickers, port, **{"admin_port": free_port(), **fields})
        envoy = start_envoy(folder, configuration(front))
        stack.callback(envoy.stop)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        world = World(session, f"http://127.0.0.1:{port}", routers, envoy)
        await world.ready(front.admin_port)
        yield world


def engine(folder: Path, stack: AsyncExitStack) -> str:
    """Starts a simulated engine; returns its endpoint."""
    port = free_port()
    words = ("engine", "--profile", "llama-3.1-8b-rtx4090", "--model", "llama", "--port", str(port))
    stack.callback(command(folder, *words).stop)
    return f"127.0.0.1:{port}"


async def test_an_openai_request_goes_through_two_commands_and_one_file(tmp_path: Path) -> None:
    async with by_commands(tmp_path) as world:
        async with world.session.post(world.url + PATH, json=completion()) as answer:
            assert answer.status == 200
            assert (await answer.json())["usage"]["completion_tokens"] == 3
            assert answer.headers["x-llmrouter-instance"].startswith("127.0.0.1:")
            assert answer.headers["x-request-id"]
        status, body = await world.post(json=STREAM)
        assert (status, body.count(b"data: ")) == (200, TOKENS + 1)
        status, body = await world.post(data=b"{")
        assert (status, json.loads(body)["error"]["code"]) == (400, "InvalidRequest")


async def test_the_access_log_has_a_line_for_each_request_and_no_prompt(tmp_path: Path) -> None:
    async with by_commands(tmp_path) as world:
        await world.post(json=completion(), headers={"authorization": "Bearer hidden", "x-request-id": "mine"})

        def line() -> bool:
            return '"mine"' in world.envoy.log.read_text()

        await until(lambda: _now(line), what="logged", within_s=15)
        text = world.envoy.log.read_text()
        (entry,) = [json.loads(one) for one in text.splitlines() if '"mine"' in one]
        assert (entry["status"], entry["method"], entry["path"]) == (200, "POST", PATH)
        assert entry["instance"].startswith("127.0.0.1:")
        assert "secret" not in text
        assert "hidden" not in text


async def test_a_router_that_dies_takes_no_answer_with_it(tmp_path: Path) -> None:
    """Streams through both routers; one is killed: every answer is whole, and new requests go to the other."""
    async with before_two(tmp_path) as world:
        streams = [asyncio.create_task(world.post(json=STREAM)) for _ in range(8)]
        await asyncio.sleep(0.5)
        world.routers[0].stop(first=signal.SIGKILL)
        later = [asyncio.create_task(world.post(json=completion())) for _ in range(20)]
        assert not any(stream.done() for stream in streams), "they were under way when the router died"
        assert [(status, body.count(b"data: ")) for status, body in await asyncio.gather(*streams)] == [
            (200, TOKENS + 1)
        ] * 8
        assert [status for status, _ in await asyncio.gather(*later)] == [200] * 20


async def test_without_a_router_nothing_is_sent_anywhere_not_even_where_a_client_says(tmp_path: Path) -> None:
    async with before_two(tmp_path) as world:
        for router in world.routers:
            router.stop(first=signal.SIGKILL)
        async with world.session.get(world.url + "/v1/models") as answer:
            assert answer.status == 503
        async with AsyncExitStack() as stack:
            endpoint = engine(tmp_path, stack)
            await until(
                lambda: _now(lambda: _listens(int(endpoint.rpartition(":")[2]))), what="it listens", within_s=30
            )
            forged = {"x-gateway-destination-endpoint": endpoint}
            status, body = await world.post(json=completion(), headers=forged)
        assert (status, json.loads(body)["error"]["code"]) == (503, "NoRouter")


async def test_a_body_that_is_too_long_is_413_in_the_words_of_the_api(tmp_path: Path) -> None:
    async with before_two(tmp_path, body_bytes=2**20) as world:
        status, _ = await world.post(json=completion(prompt="a" * 2**12))
        assert status == 200
        status, body = await world.post(data=io.BytesIO(json.dumps(completion(prompt="a" * 2**20)).encode()))
        assert (status, json.loads(body)["error"]["code"]) == (413, "BodyTooLarge")


async def test_as_gateways_do_an_answer_breaks_with_its_router(tmp_path: Path) -> None:
    """What the front's own modes are for: with full-duplex bodies Envoy has nothing left to go on with."""
    async with before_two(tmp_path, as_gateways_do=True) as world:
        streams = [asyncio.create_task(world.post(json=STREAM)) for _ in range(8)]
        await asyncio.sleep(0.5)
        world.routers[0].stop(first=signal.SIGKILL)
        ends = await asyncio.gather(*streams, return_exceptions=True)
        assert len([end for end in ends if isinstance(end, aiohttp.ClientError)]) in range(1, 8)


async def test_what_is_under_way_ends_before_a_pod_does(tmp_path: Path) -> None:
    """The wait before SIGTERM: not ready at once, over with the last answer."""
    ports = {"admin_port": free_port(), "probe_port": free_port()}
    script = (CHART / "files" / "drain.sh").read_text()
    (tmp_path / "drain.sh").write_text(
        script.replace("${ADMIN_PORT}", str(ports["admin_port"])).replace("${DRAIN_S}", "60")
    )
    async with before_two(tmp_path, **ports) as world:
        assert is_ready(ports["probe_port"])
        stream = asyncio.create_task(world.post(json=STREAM | {"max_tokens": 700}))
        await asyncio.sleep(0.5)
        drain = await asyncio.create_subprocess_exec("bash", str(tmp_path / "drain.sh"))
        await until(lambda: _now(lambda: not is_ready(ports["probe_port"])), what="not ready", within_s=5)
        async with world.session.post(world.url + PATH, json=completion()) as late:
            assert (late.status, late.headers["connection"]) == (200, "close"), "served, and told to go elsewhere"
        assert await drain.wait() == 0
        assert stream.done()
        status, body = await stream
        assert (status, body.count(b"data: ")) == (200, 701)


async def test_clients_may_speak_tls_and_a_renewed_certificate_needs_no_restart(tmp_path: Path) -> None:
    secret, tls_file = tmp_path / "secret", tmp_path / "tls.yaml"
    secret.mkdir()
    link_secret(secret, "first", names=["front"])
    tls_file.write_text((CHART / "files" / "tls.yaml").read_text().replace("${TLS_FOLDER}", str(secret)))
    front = Front(("127.0.0.1:1",), free_port(), free_port(), tls_file=str(tls_file))
    envoy = start_envoy(tmp_path, configuration(front))
    try:
        await asyncio.to_thread(envoy.ready, lambda: _listens(front.port), within_s=30)

        def shown() -> str:
            return ssl.get_server_certificate(("127.0.0.1", front.port))

        first = await asyncio.to_thread(shown)
        assert first.strip() == (secret / "tls.crt").read_text().strip()
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        async with aiohttp.ClientSession() as session:
            url = f"https://127.0.0.1:{front.port}{PATH}"
            async with session.post(url, json=completion(), ssl=trusting) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (503, "NoRouter")
        link_secret(secret, "second", names=["front"])
        renewed = (secret / "tls.crt").read_text().strip()
        assert renewed != first.strip()
        await until(lambda: _now(lambda: shown().strip() == renewed), what="the renewed certificate", within_s=20)
    finally:
        envoy.stop()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--picker", "here"), "--picker must be HOST:PORT"),
        (("--picker", "a:1", "--port", "0"), "--port must be 1 to 65535"),
        (("--config", "none.yaml"), "none.yaml"),
        (("--config", "none.yaml", "--plain"), "--plain goes with --picker"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(words: Sequence[str], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        front_command.main(words)


def test_a_port_that_is_taken_is_told_before_envoy_starts(tmp_path: Path) -> None:
    config = bootstrap(port=(port := free_port()), picker="127.0.0.1:1", admin_port=free_port())
    envoy = start_envoy(tmp_path, config)
    try:
        envoy.ready(lambda: _listens(port), within_s=30)
        with pytest.raises(InvalidInputError, match=f"cannot listen on 127.0.0.1:{port}"):
            front_command.main(("--picker", "127.0.0.1:1", "--port", str(port)))
    finally:
        envoy.stop()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def _now(condition: Any) -> bool:  # noqa: ANN401 - a plain condition
    return bool(condition())

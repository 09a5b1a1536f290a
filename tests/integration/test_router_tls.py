"""The endpoint picker's port over TLS: both transports' peers, renewals while connections stay, plain probes."""

from __future__ import annotations

import asyncio
import ssl
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.certificates import link_secret, write_certificate, write_signed_certificate
from support.router_world import config_of, live_router, until

from llmrouter.profiles import PROFILES
from llmrouter.testbed.cluster.processes import free_port, start
from llmrouter.testbed.engine_server import EngineServer, EngineServerConfig
from llmrouter.testbed.envoy import bootstrap, start_envoy
from router_grpc.certificates import Tls
from router_grpc.v1 import ext_proc_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.router_world import LiveRouter

NAME = "llm-router.ns.svc"
STAY = {"scrapeIntervalSeconds": 60}
FIELD = "extProc.port"


@pytest.fixture(params=["Fast", "Grpc"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def serving(
    transport: str, folder: Path | None = None, endpoint: str = "127.0.0.1:1"
) -> AsyncIterator[LiveRouter]:
    config = config_of(endpoint, limits=STAY)
    tls = Tls((NAME,), folder)
    async with live_router(config, ext_proc_port=0, ext_proc_is_fast=transport == "Fast", tls=tls) as live:
        yield live


def port_of(live: LiveRouter) -> int:
    return live.router.app.listener.ports[FIELD]


def certificate_at(port: int) -> bytes:
    """What a new connection is shown; blocks."""
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=10).encode()


async def shown(live: LiveRouter) -> bytes:
    return await asyncio.to_thread(certificate_at, port_of(live))


def trusting(live: LiveRouter, roots: bytes) -> grpc.aio.Channel:
    """A channel that verifies the name and trusts ``roots`` alone."""
    options = (("grpc.ssl_target_name_override", NAME),)
    return grpc.aio.secure_channel(f"127.0.0.1:{port_of(live)}", grpc.ssl_channel_credentials(roots), options=options)


async def health(channel: grpc.aio.Channel) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service="readiness"), timeout=10)
    return int(answer.status)


async def test_tls_is_served_with_a_certificate_of_its_own_and_probes_stay_plain(transport: str) -> None:
    async with serving(transport) as live:
        roots = await shown(live)
        async with trusting(live, roots) as channel:
            assert await health(channel) == health_pb2.HealthCheckResponse.SERVING
        assert await health(live.channel) == health_pb2.HealthCheckResponse.SERVING
        said = live.acknowledgements[-1]
        assert (said.certificate_ready, said.certificate_reason) == (True, "SelfSigned")


async def test_plain_text_on_the_tls_port_gets_no_answer(transport: str) -> None:
    async with serving(transport) as live, grpc.aio.insecure_channel(f"127.0.0.1:{port_of(live)}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await health(channel)
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_without_tls_nothing_is_said_of_a_certificate(transport: str) -> None:
    async with live_router(
        config_of("127.0.0.1:1", limits=STAY), ext_proc_port=0, ext_proc_is_fast=transport == "Fast"
    ) as live:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port_of(live)}") as channel:
            assert await health(channel) == health_pb2.HealthCheckResponse.SERVING
        assert live.acknowledgements[-1].certificate_ready is None


async def test_a_renewed_certificate_is_shown_to_new_connections_and_open_streams_go_on(
    transport: str, tmp_path: Path
) -> None:
    link_secret(tmp_path, "first", names=(NAME,))
    async with serving(transport, folder=tmp_path) as live:
        before = await shown(live)
        async with trusting(live, before) as channel:
            stream = pb_grpc.ExternalProcessorStub(channel).Process()  # type: ignore[no-untyped-call]
            link_secret(tmp_path, "second", names=(NAME,))

            async def is_new() -> bool:
                return await shown(live) != before

            await until(is_new, what="the renewal is shown")
            assert await health(channel) == health_pb2.HealthCheckResponse.SERVING
            await stream.done_writing()
            assert await stream.code() is grpc.StatusCode.OK, "the stream that was open ends as it should"
        async with trusting(live, await shown(live)) as channel:
            assert await health(channel) == health_pb2.HealthCheckResponse.SERVING
        async with trusting(live, before) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await health(channel)


async def test_a_broken_renewal_is_said_and_the_one_before_stays(transport: str, tmp_path: Path) -> None:
    link_secret(tmp_path, "first", names=(NAME,))
    async with serving(transport, folder=tmp_path) as live:
        before = await shown(live)
        (link_secret(tmp_path, "second", names=(NAME,)) / "tls.key").write_bytes(b"nothing")
        await until(lambda: live.acknowledgements[-1].certificate_ready is False, what="the router says so")
        assert live.acknowledgements[-1].certificate_reason == "CertificateInvalid"
        assert live.count("llmrouter_errors_total", part="certificate") == 1
        assert await shown(live) == before
        link_secret(tmp_path, "third", names=(NAME,))
        await until(lambda: live.acknowledgements[-1].certificate_ready is True, what="mended")
        assert await shown(live) != before


async def conformance(port: int, *more: str) -> tuple[int, str]:
    """Exit status and words of the suite, without the cases that need more than one answer."""
    words = [
        "epp-conformance",
        "--target",
        f"127.0.0.1:{port}",
        "--model",
        "llama",
        "--tls",
        "--only",
        "one chunk",
        *more,
    ]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "llmrouter.cli", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


async def test_the_suite_takes_any_certificate_as_gateways_do(transport: str, tmp_path: Path) -> None:
    async with serving(transport) as live:
        assert "1 passed" in (await conformance(port_of(live)))[1]
    write_signed_certificate(tmp_path, name="picker.example")
    async with serving(transport, folder=tmp_path) as live:
        assert "1 passed" in (await conformance(port_of(live)))[1]
        status, words = await conformance(live.router.app.listener.port)
        assert status == 2
        assert "no TLS there" in words


async def test_envoy_asks_over_tls(transport: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        engine = EngineServer(EngineServerConfig(profile=PROFILES["llama-3.1-8b-rtx4090"], model="llama"))
        await engine.start("127.0.0.1", 0)
        stack.push_async_callback(engine.close)
        live = await stack.enter_async_context(serving(transport, endpoint=f"127.0.0.1:{engine.port}"))
        port, picker = free_port(), f"127.0.0.1:{port_of(live)}"
        envoy = start_envoy(tmp_path, bootstrap(port=port, picker=picker, admin_port=free_port(), picker_tls=True))
        stack.callback(envoy.stop)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        body = {"model": "llama", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}

        async def answers() -> bool:
            assert envoy.alive, envoy.log.read_text()[-2000:]
            try:
                async with session.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body) as answer:
                    return answer.status == 200
            except aiohttp.ClientError:  # not listening yet
                return False

        await until(answers, what="a request goes through", within_s=30)
        assert live.count("llmrouter_reservations_total", event="committed") >= 1


FILE = """
apiVersion: llmrouter.dev/v1alpha1
kind: LLMRouter
metadata: {name: llm}
spec:
  models: [{name: llama}]
  pools: [{name: main, endpoints: ["127.0.0.1:1"], profile: {name: llama-3.1-8b-rtx4090}}]
  policyRef: {name: policy}
  router: {replicas: 1}
  listeners: {grpcPort: GRPC, metricsPort: METRICS, extProc: {port: PICKER}}
---
apiVersion: llmrouter.dev/v1alpha1
kind: RoutingPolicy
metadata: {name: policy}
spec: {type: LeastInFlight}
"""


async def test_a_standalone_router_shows_the_certificate_of_its_folder_and_its_renewal(tmp_path: Path) -> None:
    made = write_certificate(tmp_path / "tls", names=("picker.example",))
    ports = {"GRPC": free_port(), "METRICS": free_port(), "PICKER": free_port()}
    text = FILE
    for word, port in ports.items():
        text = text.replace(word, str(port))
    (tmp_path / "router.yaml").write_text(text)
    words = ["serve", "--config", str(tmp_path / "router.yaml"), "--certificate", str(tmp_path / "tls")]
    router = start("router", [sys.executable, "-m", "llmrouter.cli", *words], log=tmp_path / "router.log")

    async def shows(wanted: bytes) -> bool:
        assert router.alive, router.log.read_text()[-2000:]
        try:
            found = await asyncio.to_thread(certificate_at, ports["PICKER"])
        except OSError:  # not listening yet
            return False
        return found.strip() == wanted.strip()

    try:
        await until(lambda: shows(made), what="the folder's certificate", within_s=60)
        newer = write_certificate(tmp_path / "tls", names=("picker.example",))
        await until(lambda: shows(newer), what="its renewal")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ports['GRPC']}") as channel:
            assert await health(channel) == health_pb2.HealthCheckResponse.SERVING
    finally:
        router.stop(grace_s=0)

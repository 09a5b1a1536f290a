"""The black-box suite of the endpoint-picker protocol, against a router and against a picker that is always wrong."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from support.router_world import PROFILE, config_of, live_router, until

from llmrouter.testbed.epp.cases import CASES
from llmrouter.testbed.epp.command import NEEDS, OPTIONS, judge, main
from llmrouter.testbed.epp.stream import Target
from llmrouter.testbed.epp.trust import tunnel
from router_grpc.certificates import Tls
from router_grpc.v1 import ext_proc_pb2 as pb
from router_grpc.v1 import ext_proc_pb2_grpc as pb_grpc
from router_grpc.v1 import router_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.router_world import LiveRouter

    from llmrouter.testbed.cluster.redis import RedisServer

pytest_plugins = ["support.redis_server"]

STAY = {"scrapeIntervalSeconds": 60, "maxPromptTokens": 1_000_000}
"""Nothing listens on the instances' ports: they are ready for as long as nobody asks them."""


STAGES = [
    {"name": role.lower(), "role": role, "endpoints": [f"127.0.0.{host}:1"], "profile": {"name": PROFILE}}
    for host, role in enumerate(("Prefill", "Decode"), start=1)
]
HOLDS_NONE = {"type": "LeastInFlight", "hold": {"enabled": False}}


def target_of(address: str, *, reached: str = "") -> Target:
    return Target(grpc.aio.insecure_channel(reached or address, options=OPTIONS), "llama", address=address)


@asynccontextmanager
async def targets(redis: RedisServer, *, is_fast: bool) -> AsyncIterator[dict[str, Target]]:
    """By what a case may need, each a router of its own but for the two that share what their instances have."""
    async with AsyncExitStack() as stack:

        async def live(name: str, *endpoints: str, tls: Tls | None = None, **parts: Any) -> LiveRouter:  # noqa: ANN401
            config = config_of(*endpoints, **parts)
            served = live_router(config, router_id=name, ext_proc_port=0, ext_proc_is_fast=is_fast, tls=tls)
            return await stack.enter_async_context(served)

        serving = await live("serving", "127.0.0.1:1", "127.0.0.2:1", limits=STAY)
        empty = await live("empty", "127.0.0.1:1", limits={"scrapeIntervalSeconds": 0.1})
        for_one: dict[str, Any] = {"limits": {**STAY, "maxInFlightPerInstance": 1}, "policy": HOLDS_NONE}
        full = await live("full", "127.0.0.1:1", **for_one)
        await full.route("taken")
        state = {"redis": {"address": f"127.0.0.1:{redis.port}"}, "heartbeatSeconds": 0.1}
        one, second = [await live(name, "127.0.0.1:1", **for_one, state=state) for name in ("one", "second")]
        secure = await live("tls", "127.0.0.1:1", limits=STAY, tls=Tls(("picker.example",)))
        staged = await live("stages", pools=STAGES, limits=STAY)
        stopping = await live("drain", "127.0.0.1:1", limits=STAY)

        async def nothing_is_ready() -> bool:
            return not (await empty.stub.GetSnapshot(router_pb2.GetSnapshotRequest())).instances

        await until(nothing_is_ready, what="the only instance is found unreachable")
        routers = {"serving": serving, "empty": empty, "full": full, "one": one, "second": second, "stages": staged}
        routers["drain"] = stopping
        ports = {name: one.router.app.listener.ports["extProc.port"] for name, one in routers.items()}
        found = {name: target_of(f"127.0.0.1:{port}") for name, port in ports.items()}
        address = f"127.0.0.1:{secure.router.app.listener.ports['extProc.port']}"
        found["tls"] = target_of(address, reached=await stack.enter_async_context(tunnel(address)))
        for target in found.values():
            stack.push_async_callback(target.channel.close, None)

        async def stop() -> None:
            ended = asyncio.create_task(stopping.router.app.listener.drain(20.0))
            stack.push_async_callback(asyncio.wait_for, ended, 20.0)

        yield {
            **found,
            "health": replace(found["serving"], health=serving.channel),
            "second": replace(found["one"], second=found["second"]),
            "drain": replace(found["drain"], drain=stop),
        }
        assert serving.count("llmrouter_errors_total") == 0
        loads = await one.router.app.world.ledger.loads({})
        assert sum(load.requests for load in loads.values()) == 0, "every place was given back"
        await until(lambda: not len(serving.router.app.world.open_requests), what="nothing is reserved any more")


@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "grpc"])
async def test_a_router_passes_every_case(redis_server: RedisServer, is_fast: bool) -> None:  # noqa: FBT001 - of a test
    async with targets(redis_server, is_fast=is_fast) as found:
        verdicts = [await judge(case, found) for case in CASES]
    assert [(one.case, one.detail) for one in verdicts if one.outcome != "passed"] == []
    assert len(verdicts) == len({one.case for one in verdicts}) >= 75


async def nothing() -> None:
    """Stops nobody."""


class Obstinate(pb_grpc.ExternalProcessorServicer):
    """Answers everything at once, with a message that is never due."""

    async def Process(  # noqa: N802 - the name is gRPC's
        self,
        request_iterator: AsyncIterator[pb.ProcessingRequest],
        context: grpc.aio.ServicerContext[pb.ProcessingRequest, pb.ProcessingResponse],
    ) -> AsyncIterator[pb.ProcessingResponse]:
        del context
        async for _ in request_iterator:
            yield pb.ProcessingResponse(response_trailers=pb.TrailersResponse())


async def test_a_picker_that_does_nothing_right_passes_none() -> None:
    server = grpc.aio.server()
    pb_grpc.add_ExternalProcessorServicer_to_server(Obstinate(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    target = target_of(f"127.0.0.1:{port}")
    target = replace(target, answer_s=0.5, health=target.channel, second=target, drain=nothing)
    try:
        verdicts = [await judge(case, dict.fromkeys(NEEDS, target)) for case in CASES]
    finally:
        await target.channel.close(None)
        await server.stop(0)
    assert [one.case for one in verdicts if one.outcome != "failed"] == []


def test_nobody_there_is_a_failure_that_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--target", "127.0.0.1:1", "--model", "llama", "--only", "one chunk", "--timeout", "0.5", "--json"]
    assert main(words) == 1
    assert '"outcome": "failed"' in capsys.readouterr().out

"""The black-box suite of the endpoint-picker protocol, against a router and against a picker that is always wrong."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from support.router_world import config_of, live_router, until

from llmrouter.testbed.epp.cases import CASES
from llmrouter.testbed.epp.command import MAX_MESSAGE_BYTES, judge, main
from llmrouter.testbed.epp.stream import Target
from router_grpc.v1 import ext_proc_pb2 as pb
from router_grpc.v1 import ext_proc_pb2_grpc as pb_grpc
from router_grpc.v1 import router_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.router_world import LiveRouter

STAY = {"scrapeIntervalSeconds": 60, "maxPromptTokens": 1_000_000}
"""Nothing listens on the instances' ports: they are ready for as long as nobody asks them."""


def target_of(address: str) -> Target:
    options = (("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),)
    return Target(grpc.aio.insecure_channel(address, options=options), "llama")


@asynccontextmanager
async def targets(*, is_fast: bool) -> AsyncIterator[dict[str, Target]]:
    async with AsyncExitStack() as stack:

        async def live(name: str, *endpoints: str, **parts: object) -> LiveRouter:
            config = config_of(*endpoints, **parts)  # type: ignore[arg-type]
            served = live_router(config, router_id=name, ext_proc_port=0, ext_proc_is_fast=is_fast)
            return await stack.enter_async_context(served)

        serving = await live("serving", "127.0.0.1:1", "127.0.0.2:1", limits=STAY)
        empty = await live("empty", "127.0.0.1:1", limits={"scrapeIntervalSeconds": 0.1})
        full = await live(
            "full",
            "127.0.0.1:1",
            limits={**STAY, "maxInFlightPerInstance": 1},
            policy={"type": "LeastInFlight", "hold": {"enabled": False}},
        )
        await full.route("taken")

        async def nothing_is_ready() -> bool:
            return not (await empty.stub.GetSnapshot(router_pb2.GetSnapshotRequest())).instances

        await until(nothing_is_ready, what="the only instance is found unreachable")
        routers = {"serving": serving, "empty": empty, "full": full}
        ports = {name: one.router.app.listener.ports["extProc.port"] for name, one in routers.items()}
        found = {name: target_of(f"127.0.0.1:{port}") for name, port in ports.items()}
        for one in found.values():
            stack.push_async_callback(one.channel.close, None)
        yield found
        assert serving.count("llmrouter_errors_total") == 0


@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "grpc"])
async def test_a_router_passes_every_case(is_fast: bool) -> None:  # noqa: FBT001 - of a test
    async with targets(is_fast=is_fast) as found:
        verdicts = [await judge(case, found) for case in CASES]
    assert [(one.case, one.detail) for one in verdicts if one.outcome != "passed"] == []
    assert len(verdicts) == len({one.case for one in verdicts}) >= 35


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
    try:
        verdicts = [await judge(case, dict.fromkeys(("serving", "empty", "full"), target)) for case in CASES]
    finally:
        await target.channel.close(None)
        await server.stop(0)
    assert [one.case for one in verdicts if one.outcome != "failed"] == []


def test_nobody_there_is_a_failure_that_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--target", "127.0.0.1:1", "--model", "llama", "--only", "one chunk", "--timeout", "0.5", "--json"]
    assert main(words) == 1
    assert '"outcome": "failed"' in capsys.readouterr().out

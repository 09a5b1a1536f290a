"""Prefix hits end to end: a router process of its own, asked and told over gRPC."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from support.router_world import until

from llmrouter.testbed.cluster.processes import free_port, start
from router_grpc.v1 import router_pb2 as pb
from router_grpc.v1 import router_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

FILE = """
apiVersion: llmrouter.dev/v1alpha1
kind: LLMRouter
metadata: {{name: llm}}
spec:
  models: [{{name: llama}}]
  pools: [{{name: main, endpoints: ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4"],
           profile: {{name: llama-3.1-8b-rtx4090}}}}]
  policyRef: {{name: policy}}
  router: {{replicas: 1}}
  predictor: {{type: Constant}}
  listeners: {{grpcPort: {grpc}, metricsPort: {metrics}}}
  limits: {{scrapeIntervalSeconds: 60}}
---
apiVersion: llmrouter.dev/v1alpha1
kind: RoutingPolicy
metadata: {{name: policy}}
spec: {{type: WorkloadImpact}}
"""

TOKENS = 3_000


def conversation(number: int, turns: int) -> bytes:
    """A conversation's prompt: of 12 KB and as many short turns more."""
    return f"{number}: what was said before. ".encode() * 500 + b"and one turn more. " * turns


class Client:
    """Calls of one router."""

    def __init__(self, stub: Any) -> None:  # noqa: ANN401 - generated code has no types
        self._stub = stub

    async def route(self, request_id: str, prompt: bytes) -> str:
        request = pb.RouteRequest(model="llama", prompt_tokens=TOKENS, request_id=request_id, prompt=prompt)
        return str((await self._stub.Route(request, timeout=10, wait_for_ready=True)).instance_id)

    async def finish(self, request_id: str, cached: int | None = None) -> None:
        usage = pb.Finished(prompt_tokens=TOKENS, output_tokens=10, cached_prompt_tokens=cached)
        event = pb.ReportEvent(request_id=request_id, finished=usage)
        assert [answer.known async for answer in self._stub.Report(iter([event]), timeout=10)] == [True]

    async def queued_tokens(self) -> int:
        snapshot = await self._stub.GetSnapshot(pb.GetSnapshotRequest(), timeout=10)
        return sum(instance.queued_prefill_tokens for instance in snapshot.instances)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    path, port = tmp_path / "router.yaml", free_port()
    path.write_text(FILE.format(grpc=port, metrics=free_port()))
    words = [sys.executable, "-m", "llmrouter.cli", "serve", "--config", str(path)]
    process = start("router", words, log=tmp_path / "router.log", env=dict(os.environ))
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    client = Client(pb_grpc.RouterStub(channel))  # type: ignore[no-untyped-call]

    async def answers() -> bool:
        assert process.alive, process.log.read_text()[-2000:]
        try:
            await client.queued_tokens()
        except grpc.aio.AioRpcError:  # not serving yet: asked again until the time is up
            return False
        return True

    try:
        await until(answers, what="router serves", within_s=60)
        yield client
    finally:
        await channel.close(None)
        process.stop(grace_s=0)


async def test_turns_go_where_their_conversation_is_until_usage_says_that_nothing_is_cached(client: Client) -> None:
    homes = {}
    for number in range(8):
        homes[number] = await client.route(f"{number}-0", conversation(number, 0))
    assert len(set(homes.values())) > 1
    for number in homes:
        await client.finish(f"{number}-0")
    for number, home in homes.items():
        assert await client.route(f"{number}-1", conversation(number, 1)) == home
        assert await client.queued_tokens() < TOKENS / 10, "what is cached is not waited for"
        await client.finish(f"{number}-1", TOKENS - 100)
    for turn in range(2, 30):
        for number in homes:
            await client.route(f"{number}-{turn}", conversation(number, turn))
            await client.finish(f"{number}-{turn}", 0)
    await client.route("last", conversation(0, 30))
    assert await client.queued_tokens() == TOKENS, "no engine has cached anything for long: nothing is expected"

"""A router process that learns, from real reports, that one of its two engines is slow; and one that knew it before."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.router_world import config_of, live_router, until

from llmrouter.profiles import PROFILES
from llmrouter.routing.calibration import ClassCalibration, Observation
from llmrouter.testbed.cluster.processes import free_port, start
from llmrouter.testbed.engine_server import EngineServer, EngineServerConfig
from llmrouter.testbed.measure import Outcome
from llmrouter.testbed.replay import ReplayPlan, Stretch, fixed, run
from llmrouter.testbed.trace import Trace, TraceRequest
from router_grpc.adapters.calibration_store import RedisCalibrationStore
from router_grpc.adapters.redis_ledger import redis_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from llmrouter.testbed.cluster.redis import RedisServer

pytest_plugins = ["support.redis_server"]

PROFILE = PROFILES["llama-3.1-8b-rtx4090"]
MODEL, PROMPT, ANSWER, RATE_RPS = "llama", 500, 120, 6.0
SLOWNESS = 2.0

FILE = """
apiVersion: llmrouter.dev/v1alpha1
kind: LLMRouter
metadata: {{name: llm}}
spec:
  models: [{{name: llama}}]
  pools: [{{name: main, endpoints: [{endpoints}], profile: {{name: llama-3.1-8b-rtx4090}}}}]
  policyRef: {{name: policy}}
  predictor: {{type: Constant, constantTokens: 120}}
  router: {{replicas: 1}}
  listeners: {{grpcPort: {grpc}, metricsPort: {metrics}}}
---
apiVersion: llmrouter.dev/v1alpha1
kind: RoutingPolicy
metadata: {{name: policy}}
spec: {{type: WorkloadImpact}}
"""


@asynccontextmanager
async def engines() -> AsyncIterator[list[str]]:
    """The endpoints of a slow engine and of one as its profile says."""
    servers = [
        EngineServer(EngineServerConfig(profile=one, model=MODEL)) for one in (PROFILE.slower(SLOWNESS), PROFILE)
    ]
    for server in servers:
        await server.start("127.0.0.1", 0)
    try:
        yield [f"127.0.0.1:{server.port}" for server in servers]
    finally:
        for server in servers:
            await server.close()


@asynccontextmanager
async def router_process(endpoints: list[str], folder: Path) -> AsyncIterator[tuple[str, int]]:
    """Its gRPC address and the port of its metrics."""
    port, metrics = free_port(), free_port()
    named = ", ".join(f'"{one}"' for one in endpoints)
    path = folder / "router.yaml"
    path.write_text(FILE.format(endpoints=named, grpc=port, metrics=metrics))
    words = [sys.executable, "-m", "llmrouter.cli", "serve", "--config", str(path)]
    process = start("router", words, log=folder / "router.log", env=dict(os.environ))
    address = f"127.0.0.1:{port}"
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)

            async def is_ready() -> bool:
                assert process.alive, process.log.read_text()[-2000:]
                try:
                    answer = await health.Check(health_pb2.HealthCheckRequest(service="readiness"), timeout=1)
                except grpc.aio.AioRpcError:  # not listening yet: asked again until the time is up
                    return False
                return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

            await until(is_ready, what="router ready", within_s=60)
        yield address, metrics
    finally:
        process.stop(grace_s=0)


async def metric(port: int, pattern: str) -> float | None:
    """The first sample whose line begins with a pattern."""
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
        found = re.search(rf"^{pattern} (\S+)$", await answer.text(), re.MULTILINE)
    return None if found is None else float(found[1])


async def test_a_slow_engine_gets_visibly_fewer_requests_once_it_is_known(tmp_path: Path) -> None:
    requests = tuple(TraceRequest(at / RATE_RPS, "chat", PROMPT, ANSWER) for at in range(400))
    stretches = (Stretch("learning", 0, 25.0), Stretch("knowing", 150, 10.0))
    outcomes: list[Outcome] = []

    def emit(kind: str, values: dict[str, Any]) -> None:
        outcomes.extend(Outcome.from_row(row) for row in values.get("rows", ()) if kind == "rows")

    async with engines() as (slow, fast), router_process([slow, fast], tmp_path) as (address, metrics):
        plan = ReplayPlan(MODEL, RATE_RPS, stretches)
        await run(plan, resolve=fixed([address]), trace=Trace(requests, 400 / RATE_RPS), emit=emit)
        labels = rf'\{{instance="{re.escape(slow)}",pool="main"\}}'
        slowness = await metric(metrics, f"llmrouter_calibration_instance_slowness{labels}")
        in_use = await metric(metrics, r'llmrouter_calibration_in_use\{part="slowness",pool="main"\}')
    assert [one.error for one in outcomes if one.failed] == []
    assert slowness is not None
    assert 1.4 <= slowness <= 2.6
    assert in_use == 1.0
    knowing = [one.instance_id for one in outcomes if one.stretch == "knowing"]
    assert len(knowing) == round(10.0 * RATE_RPS)
    assert 0 < knowing.count(slow) <= 0.28 * len(knowing), "35 % where the profile decides"


def learned(slow: str, fast: str) -> ClassCalibration:
    """What a router knows after some traffic."""
    calibration = ClassCalibration(PROFILE)
    step_s = PROFILE.base_decode_s + 5_000 * PROFILE.context_s_per_token + 10 * PROFILE.sequence_s
    for _ in range(300):
        for name, factor in ((slow, SLOWNESS), (fast, 1.0)):
            calibration.learn(Observation(name, factor * 50 * step_s, 50, 0, 50 * 5_000, 50 * 10))
    return calibration


@pytest.mark.parametrize("calibrate", ["None", "Slowness", "Full"])
async def test_a_restarted_router_decides_with_what_is_saved_before_it_is_ready(
    redis_server: RedisServer, calibrate: str
) -> None:
    slow, fast = "127.0.0.1:1", "127.0.0.1:2"
    client = redis_client(redis_server.url, password=None, timeout_s=1.0)
    try:
        store = RedisCalibrationStore(client, "tests/routers", timeout_s=1.0)
        await store.save("main", json.dumps(learned(slow, fast).state()).encode())
    finally:
        await client.aclose()
    pool = {
        "name": "main",
        "endpoints": [slow, fast],
        "profile": {"name": PROFILE.name, "calibrate": calibrate},
    }
    config = config_of(
        pools=[pool],
        policy={"type": "WorkloadImpact"},
        state={"redis": {"address": f"127.0.0.1:{redis_server.port}"}},
        limits={"scrapeIntervalSeconds": 60},
    )
    async with live_router(config) as live:
        views = {view.instance.instance_id: view for view in live.router.app.service.snapshot().views}
        ratio = views[slow].instance.profile.base_decode_s / views[fast].instance.profile.base_decode_s
        assert ratio == pytest.approx(1.0 if calibrate == "None" else SLOWNESS, rel=0.1)
        if calibrate != "None":
            assert (await live.route()).instance_id == fast
            await until(lambda: bool(live.acknowledgements and live.acknowledgements[-1].calibration))
            said = live.acknowledgements[-1].calibration[0]
            assert (said.pool, said.calibrate) == ("main", calibrate)
            assert said.slow[slow] == pytest.approx(SLOWNESS, rel=0.1)

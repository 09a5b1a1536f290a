"""The last good policy outlives whatever is started anew: operator, API server and routers, one after the other."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from kubernetes.aio import client
from support.operator_process import llm_router, routing_policy, watched
from support.played_routers import config_of, policy_in_force
from support.router_space import is_connected
from support.router_world import live_router, until

from router_grpc.adapters.kube import AcknowledgementWriter, ConfigMapSource, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.operator_process import Space
    from support.router_world import LiveRouter

    from llmrouter.testbed.cluster.control_plane import ControlPlane

pytest_plugins = ["support.control_plane"]

POOL = {"name": "fixed", "endpoints": ["127.0.0.1:9"], "profile": {"name": "llama-3.1-8b-rtx4090"}}
SELDOM = {"scrapeIntervalSeconds": 60}
BROKEN = {"type": "Onnx", "model": {"configMap": {"name": "nowhere"}, "sha256": "a" * 64}}


@asynccontextmanager
async def router(control_plane: ControlPlane, space: Space) -> AsyncIterator[LiveRouter]:
    """A router that has just been started: it knows nothing but where its configuration is."""
    api = await connect(str(control_plane.kubeconfig))
    try:
        core = client.CoreV1Api(api)
        source = ConfigMapSource(core, namespace=space.name, name="fleet-router-config", on_error=lambda _error: None)
        writer = AcknowledgementWriter(core, namespace=space.name, name="fleet-routers", key="r1")
        parts: dict[str, Any] = {"source": source, "core": core, "acknowledge": writer.write, "namespace": space.name}
        config = config_of(space)[1]
        alone = config.model_copy(update={"state": type(config.state)()})
        async with live_router(alone, **parts) as live:
            yield live
    finally:
        await api.close()
        port = int(control_plane.server.rsplit(":", 1)[1])
        await until(lambda: not is_connected(port), what="TLS connections have said goodbye")


def last_known_good(space: Space) -> bool:
    return bool(space.status("fleet").get("activePolicy", {}).get("lastKnownGood"))


async def test_the_last_good_policy_outlives_restarts_of_everything(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    ours = watched(control_plane, "last-good")
    space = ours.space
    space.apply(routing_policy("plain", type="LMetric"))
    space.apply(llm_router("fleet", pools=[POOL], limits=SELDOM))
    with ours.operator(tmp_path / "first.log"):
        await asyncio.to_thread(space.wait, lambda: policy_in_force(space) == "plain", "the first policy")
        space.apply(routing_policy("plain", **BROKEN))
        await asyncio.to_thread(space.wait, lambda: last_known_good(space), "the broken one is found out")
        async with router(control_plane, space) as live:
            assert (await live.route(model="llama")).policy == "LMetric"
            await asyncio.to_thread(control_plane.stop_api_server)
            assert (await live.route(model="llama")).policy == "LMetric"
    control_plane.start_api_server()  # here: it would end with the thread that starts it
    async with router(control_plane, space) as live:
        assert (await live.route(model="llama")).policy == "LMetric"
        space.apply(llm_router("fleet", pools=[POOL], limits=SELDOM | {"maxPromptTokens": 1000}))
        with ours.operator(tmp_path / "second.log"):
            runtime = live.router.app.service
            await until(
                lambda: runtime.runtime is not None and runtime.runtime.config.limits.max_prompt_tokens == 1000,
                what="the rest of the spec is taken up",
                within_s=60,
            )
            assert (await live.route(model="llama")).policy == "LMetric"
            await asyncio.to_thread(space.wait, lambda: last_known_good(space), "status says so")
            space.apply(routing_policy("plain", type="Random"))
            await until(lambda: runtime.runtime is not None and runtime.runtime.deciding == "Random", within_s=60)

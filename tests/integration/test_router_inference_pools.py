"""A router that follows InferencePools on a real API server: pods, ports, changes, and pools that come and go."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import aiohttp
import grpc
import pytest
from support.inference_pools import inference_pool, path, teach, unteach
from support.router_space import Space, make_ready, pod
from support.router_world import PROFILE, LiveRouter, config_of, until

from llmrouter.profiles import PROFILES
from llmrouter.testbed.cluster.processes import free_port
from llmrouter.testbed.engine_server import EngineServer, EngineServerConfig
from llmrouter.testbed.envoy import INSTANCE_HEADER, bootstrap, start_envoy
from router_grpc.adapters.instances import LOCALITY_LABEL, ROLE_LABEL
from router_grpc.certificates import Tls

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from llmrouter.config import RouterConfig
    from llmrouter.testbed.cluster.control_plane import ControlPlane

pytest_plugins = ["support.control_plane"]
QUIET = {"maxInFlightPerInstance": 500, "scrapeIntervalSeconds": 60}
PORTS = (8000, 8001)
ENGINE = EngineServerConfig(profile=PROFILES["llama-3.1-8b-rtx4090"], model="llama")


@pytest.fixture
def space(control_plane: ControlPlane) -> Space:
    teach(control_plane.api)
    return Space(control_plane)


def referring(name: str = "chat", policy: str = "LeastInFlight") -> RouterConfig:
    pool = {"name": "main", "inferencePoolRef": {"name": name}, "profile": {"name": "llama-3.1-8b-rtx4090"}}
    return config_of(pools=[pool], limits=QUIET, policy={"type": policy})


def put_pool(space: Space, labels: Mapping[str, str], ports: Sequence[int] = (8000,), name: str = "chat") -> None:
    space.api.apply(path(space.name, name), inference_pool(name, labels, ports=ports))


def add_pods(space: Space, **addresses: str) -> None:
    for name, address in addresses.items():
        space.api.apply(space.path("pods", name), pod(name, "engine"))
        make_ready(space, name, address)


def endpoints(live: LiveRouter) -> list[str]:
    return sorted(instance.endpoint for instance in live.router.app.world.instances.current())


async def sees(live: LiveRouter, *wanted: str) -> None:
    await until(lambda: endpoints(live) == sorted(wanted), what=f"{wanted}")


async def test_instances_are_the_ready_pods_of_the_pool_times_its_ports(space: Space) -> None:
    put_pool(space, {"app": "engine"}, PORTS)
    add_pods(space, e1="127.1.0.1", e2="127.1.0.2")
    space.api.apply(
        space.path("pods", "e3"),
        pod("e3", "engine", labels={LOCALITY_LABEL: "rack-1"}, annotations={"llm-d.ai/active-ports": "8001, 9999"}),
    )
    make_ready(space, "e3", "127.1.0.3")
    space.configure(referring())
    async with space.router(referring()) as live:
        await sees(live, "127.1.0.1:8000", "127.1.0.1:8001", "127.1.0.2:8000", "127.1.0.2:8001", "127.1.0.3:8001")
        known = {one.instance_id: one for one in live.router.app.world.instances.current()}
        assert sorted(known) == ["e1:8000", "e1:8001", "e2:8000", "e2:8001", "e3:8001"]
        assert (known["e1:8000"].locality, known["e3:8001"].locality) == ("", "rack-1")
        assert (await live.route()).instance_id in known
        await space.says(instancesReady=5, instancesTotal=6)
        space.api.call("DELETE", f"{space.path('pods', 'e2')}?gracePeriodSeconds=0")
        await sees(live, "127.1.0.1:8000", "127.1.0.1:8001", "127.1.0.3:8001")


async def test_requests_reach_every_port_through_envoy_and_tls(space: Space, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        engines = [EngineServer(ENGINE) for _ in range(2)]
        for engine in engines:
            await engine.start("127.0.0.1", 0)
            stack.push_async_callback(engine.close)
        put_pool(space, {"app": "engine"}, [engine.port for engine in engines])
        add_pods(space, e1="127.0.0.1")
        space.configure(referring(policy="RoundRobin"))
        live = await stack.enter_async_context(
            space.router(referring(policy="RoundRobin"), ext_proc_port=0, tls=Tls(("picker.example",)))
        )
        await sees(live, *(f"127.0.0.1:{engine.port}" for engine in engines))
        port, picker = free_port(), f"127.0.0.1:{live.router.app.listener.ports['extProc.port']}"
        envoy = start_envoy(
            tmp_path, bootstrap(port=port, picker=picker, admin_port=free_port(), picker_tls=True, show_instance=True)
        )
        stack.callback(envoy.stop)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        body = {"model": "llama", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
        served: set[str] = set()

        async def all_serve() -> bool:
            assert envoy.alive, envoy.log.read_text()[-2000:]
            try:
                async with session.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body) as answer:
                    served.add(answer.headers.get(INSTANCE_HEADER, ""))
            except aiohttp.ClientError:  # Envoy does not listen yet
                return False
            return served >= {f"127.0.0.1:{engine.port}" for engine in engines}

        await until(all_serve, what="both ports of the pod have served", within_s=30)


async def test_a_changed_pool_is_followed_and_one_port_needs_no_name(space: Space) -> None:
    put_pool(space, {"app": "engine"})
    add_pods(space, e1="127.1.0.1", e2="127.1.0.2")
    space.api.apply(space.path("pods", "other"), pod("other", "database"))
    make_ready(space, "other", "127.1.0.9")
    space.configure(referring())
    async with space.router(referring()) as live:
        await sees(live, "127.1.0.1:8000", "127.1.0.2:8000")
        assert (await live.route()).instance_id in {"e1", "e2"}
        put_pool(space, {"app": "engine"}, (9000,))
        await sees(live, "127.1.0.1:9000", "127.1.0.2:9000")
        put_pool(space, {"app": "database"}, (9000,))
        await sees(live, "127.1.0.9:9000")


async def test_a_pool_that_goes_takes_its_instances_and_brings_them_back(space: Space) -> None:
    add_pods(space, e1="127.1.0.1")
    space.configure(referring())
    async with space.router(referring()) as live:
        await space.says(instancesReady=0, instancesTotal=0)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await live.route()
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        for _ in range(2):
            put_pool(space, {"app": "engine"})
            await sees(live, "127.1.0.1:8000")
            assert (await live.route()).endpoint == "127.1.0.1:8000"
            space.api.call("DELETE", path(space.name, "chat"))
            await sees(live)
        put_pool(space, {"app": "engine"}, name="other")
        space.configure(referring("other"))
        await sees(live, "127.1.0.1:8000")


async def test_an_api_server_that_learns_and_forgets_the_kind_is_no_reason_to_start_anew(space: Space) -> None:
    unteach(space.api)
    add_pods(space, e1="127.1.0.1")
    space.configure(referring())
    async with space.router(referring()) as live:
        await space.says(instancesReady=0, instancesTotal=0)
        for _ in range(2):
            await asyncio.to_thread(teach, space.api)
            put_pool(space, {"app": "engine"})
            await sees(live, "127.1.0.1:8000")
            await asyncio.to_thread(unteach, space.api)
            await sees(live)
        assert live.count("llmrouter_errors_total", part="instances") > 0


async def test_the_api_server_goes_and_the_instances_stay(space: Space, control_plane: ControlPlane) -> None:
    put_pool(space, {"app": "engine"})
    add_pods(space, e1="127.1.0.1")
    space.configure(referring())
    async with space.router(referring()) as live:
        await sees(live, "127.1.0.1:8000")
        control_plane.stop_api_server()
        errors = live.count("llmrouter_errors_total", part="instances")
        await until(lambda: live.count("llmrouter_errors_total", part="instances") > errors, what="it is missed")
        assert (await live.route()).endpoint == "127.1.0.1:8000"
        control_plane.start_api_server()
        put_pool(space, {"app": "engine"}, (9000,))
        await sees(live, "127.1.0.1:9000")


async def test_two_pools_share_an_inference_pool_by_what_its_pods_are_made_for(space: Space) -> None:
    put_pool(space, {"app": "engine"})
    for number, made_for in enumerate(("prefill", "decode", "prefill-decode")):
        space.api.apply(space.path("pods", made_for), pod(made_for, "engine", labels={ROLE_LABEL: made_for}))
        make_ready(space, made_for, f"127.1.0.{number + 1}")
    config = of_roles("Prefill", "Decode")
    space.configure(config)
    async with space.router(config) as live:
        await sees(live, "127.1.0.1:8000", "127.1.0.2:8000")
        answer = await live.route(prompt_tokens=1_000)
        assert (answer.instance_id, answer.prefill.instance_id) == ("decode", "prefill")
        await space.says(instancesReady=2, instancesTotal=2)
        space.configure(of_roles("Prefill", "Mixed"))
        await sees(live, "127.1.0.1:8000", "127.1.0.2:8000", "127.1.0.3:8000")
        space.api.apply(space.path("pods", "prefill"), pod("prefill", "engine", labels={ROLE_LABEL: "decode"}))
        await until(
            lambda: roles(live) == {"prefill": "Mixed", "decode": "Mixed", "prefill-decode": "Mixed"}, what="moved"
        )


def of_roles(*names: str) -> RouterConfig:
    pools = [
        {"name": role.lower(), "role": role, "inferencePoolRef": {"name": "chat"}, "profile": {"name": PROFILE}}
        for role in names
    ]
    return config_of(pools=pools, limits=QUIET)


def roles(live: LiveRouter) -> dict[str, str]:
    return {one.instance_id: one.role.value for one in live.router.app.world.instances.current()}

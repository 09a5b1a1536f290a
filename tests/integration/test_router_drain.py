"""An instance that is to go gets no new request, ends those it has, and its router says when it has none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from support.router_space import Space, make_ready, pod
from support.router_world import config_of

from router_grpc.adapters.instances import DRAINING_ANNOTATION

if TYPE_CHECKING:
    from llmrouter.config import RouterConfig
    from llmrouter.testbed.cluster.control_plane import ControlPlane

pytest_plugins = ["support.control_plane"]


@pytest.fixture
def space(control_plane: ControlPlane) -> Space:
    return Space(control_plane)


def selecting() -> RouterConfig:
    quiet = {"maxInFlightPerInstance": 500, "scrapeIntervalSeconds": 60}
    pool = {"name": "main", "selector": {"matchLabels": {"app": "engine"}}, "profile": {"name": "llama-3.1-8b-rtx4090"}}
    return config_of(pools=[pool], policy={"type": "RoundRobin"}, limits=quiet)


def annotate(space: Space, name: str, value: str | None) -> None:
    body = {"metadata": {"annotations": {DRAINING_ANNOTATION: value}}}
    space.api.call("PATCH", space.path("pods", name), body, content_type="application/merge-patch+json")


async def test_a_draining_instance_ends_what_it_has_and_gets_nothing_new(space: Space) -> None:
    config = selecting()
    space.configure(config)
    for n in (1, 2):
        name = f"engine-{n}"
        space.api.apply(space.path("pods", name), pod(name, "engine"))
        make_ready(space, name, f"127.0.0.{n}")
    async with space.router(config) as live:
        await space.says(instancesReady=2)
        had = [await live.route(f"before-{n}") for n in range(4)]
        assert {one.instance_id for one in had} == {"engine-1", "engine-2"}

        await asyncio.to_thread(annotate, space, "engine-1", "2026-01-01T00:00:00Z")
        await space.says(instancesReady=1, instancesTotal=2, draining={"engine-1": 2}, quietest={"engine-2": 2})
        new = [await live.route(f"after-{n}") for n in range(4)]
        assert {one.instance_id for one in new} == {"engine-2"}

        for one in had:
            assert await live.finish(one.request_id)
        await space.says(draining={"engine-1": 0})

        await asyncio.to_thread(annotate, space, "engine-1", None)
        await space.says(instancesReady=2, draining={})
        assert {(await live.route(f"again-{n}")).instance_id for n in range(4)} == {"engine-1", "engine-2"}

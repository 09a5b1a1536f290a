"""Runs a composed router until it is told to stop: signals, metrics port, drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from router_grpc.decision_log_port import finder, told_decisions
from router_grpc.metrics_port import serving_metrics
from router_grpc.processes import told_metrics
from router_grpc.unbroken import end_tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from router_grpc.composition import Router
    from router_grpc.processes import Place

DRAIN_GRACE_S = 20.0

YOUNG_OBJECTS = 5_000
"""New objects until garbage is searched among them: a request makes about a hundred, nearly all without cycles."""

_log = logging.getLogger(__name__)


async def run_until_stopped(
    router: Router, *, metrics_host: str, metrics_port: int, place: Place | None = None
) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal cuts the drain short.

    One process among several tells its metrics to their supervisor, which has the port.

    Sets one thread for linear algebra in the process, since a router's matrices are small, and leaves what is loaded by
    now out of the search for garbage: to look through it all stops the router for a tenth of a second.

    Raises:
        InvalidConfigError: a port cannot be listened on.
    """
    threadpool_limits(1)
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with _told(router, metrics_host, metrics_port, place):
            await router.app.start()
            ports = {"grpc_port": router.app.listener.port, "metrics_port": metrics_port}
            _log.info("listening", extra=ports)
            await stop.wait()
            stop.clear()
            await _first_of(router.app.drain(DRAIN_GRACE_S), stop.wait())
            _log.info("stopped")
    finally:
        await router.close()


@asynccontextmanager
async def _told(router: Router, host: str, port: int, place: Place | None) -> AsyncIterator[None]:
    find = finder(router.app.world.decisions)
    if place is None:
        with serving_metrics(router.registry, host, port, find=find):
            yield
    else:
        async with told_metrics(router.registry, place), told_decisions(find, place):
            yield


async def _first_of(*steps: Coroutine[Any, Any, Any]) -> None:
    """Returns when one has ended, the others cancelled; raises what the one raised."""
    tasks = [asyncio.create_task(step) for step in steps]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await end_tasks(rest)
    for task in done:
        task.result()

"""Runs a composed router until it is told to stop: signals, metrics port, drain."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING

from prometheus_client import start_http_server

if TYPE_CHECKING:
    from router_grpc.composition import Router

DRAIN_GRACE_S = 20.0

_log = logging.getLogger(__name__)


async def run_until_stopped(router: Router, *, metrics_host: str, metrics_port: int) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal cuts the drain short."""
    server, thread = start_http_server(metrics_port, addr=metrics_host, registry=router.registry)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await router.app.start()
    _log.info("listening", extra={"grpc_port": router.app.listener.port, "metrics_port": metrics_port})
    try:
        await stop.wait()
        stop.clear()
        drain = asyncio.create_task(router.app.drain(DRAIN_GRACE_S))
        again = asyncio.create_task(stop.wait())
        await asyncio.wait({drain, again}, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        drain.cancel() if not drain.done() else None
        await asyncio.gather(drain, again, return_exceptions=True)
    finally:
        await router.close()
        server.shutdown()
        thread.join()

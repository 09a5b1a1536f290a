"""Runs the processes of a router pod: starts them, starts anew what died, tells them to stop, shows their metrics."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from router_grpc.decision_log_port import asking
from router_grpc.metrics_port import serving_metrics
from router_grpc.processes import FOLDER, NUMBER, Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from prometheus_client import Metric

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
STEADY_S = 60.0
"""A process that lived for so long is started anew at once should it die."""

SCRAPE_S = 2.0
BAD_INPUT = 2
_READ_BYTES = 1 << 16

_log = logging.getLogger(__name__)


class Child:
    """One process, as long as the pod lives."""

    def __init__(self, place: Place, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.place = place
        self.restarts = 0
        self.process: asyncio.subprocess.Process | None = None
        self._command = command
        self._environment = {**environment, NUMBER: str(place.number), FOLDER: str(place.folder)}
        self._stopping = asyncio.Event()

    @property
    def is_up(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.returncode is None

    async def live(self) -> int:
        """Runs the process, again whenever it dies; returns its status where it was told to stop, or had bad input."""
        pause_s = FIRST_PAUSE_S
        while True:
            started_s = time.monotonic()
            self.process = await asyncio.create_subprocess_exec(*self._command, env=self._environment)
            status = await self.process.wait()
            if self._stopping.is_set() or status == BAD_INPUT:
                return status
            pause_s = FIRST_PAUSE_S if time.monotonic() - started_s >= STEADY_S else pause_s
            said = {"number": self.place.number, "status": status, "pause_s": pause_s}
            _log.error("a process of the router died: it is started anew", extra=said)
            if await self._told_within(pause_s):
                return status
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
            self.restarts += 1

    async def _told_within(self, seconds: float) -> bool:
        """Whether it is told to stop within that time."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:  # what was waited for
            return False
        return True

    def stop(self) -> None:
        """Tells the process to stop; a second time, to stop at once."""
        self._stopping.set()
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)


class ProcessesMetrics(Collector):
    """The metrics of all processes, each sample labelled with its process; scraped when they are asked for."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = children

    def collect(self) -> Iterable[Metric]:
        """What each process says, and how the processes are."""
        up = GaugeMetricFamily(
            "llmrouter_process_up", "1 while a process runs and says its metrics.", labels=["process"]
        )
        restarts = CounterMetricFamily(
            "llmrouter_process_restarts", "Times that a process died and was started anew.", labels=["process"]
        )
        families: dict[str, Metric] = {}
        for child in self._children:
            number = str(child.place.number)
            text = told(child.place.metrics_socket) if child.is_up else None
            up.add_metric([number], 0 if text is None else 1)
            restarts.add_metric([number], child.restarts)
            for family in text_string_to_metric_families(text or ""):
                known = families.setdefault(family.name, family)
                samples = [one._replace(labels={**one.labels, "process": number}) for one in family.samples]
                known.samples = samples if known is family else known.samples + samples
        return [up, restarts, *families.values()]


def told(path: Path) -> str | None:
    """What a process says of itself; ``None`` where it does not answer, which ``llmrouter_process_up`` shows."""
    said = bytearray()
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(SCRAPE_S)
            connection.connect(str(path))
            while part := connection.recv(_READ_BYTES):
                said += part
    except OSError:
        return None
    return said.decode() or None


async def supervise(
    command: Sequence[str],
    *,
    processes: int,
    environment: Mapping[str, str],
    metrics_host: str,
    metrics_port: int,
) -> int:
    """Runs so many processes of a command until SIGTERM or SIGINT, which they are told; returns an exit status.

    One that ends for bad input ends them all, with its status.

    Raises:
        InvalidConfigError: the port for metrics cannot be listened on.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    with tempfile.TemporaryDirectory(prefix="llmrouter-") as folder:
        children = [Child(Place(number, Path(folder)), command, environment) for number in range(processes)]
        registry = CollectorRegistry()
        registry.register(ProcessesMetrics(children))

        def stop_all() -> None:
            stop.set()
            for child in children:
                child.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop_all)
        find = asking([child.place for child in children])
        with serving_metrics(registry, metrics_host, metrics_port, find=find):
            _log.info("processes begin", extra={"processes": processes, "pid": os.getpid()})
            lives = [asyncio.create_task(child.live()) for child in children]
            done, _ = await asyncio.wait(lives, return_when=asyncio.FIRST_COMPLETED)
            if not stop.is_set():
                stop_all()
            statuses = await asyncio.gather(*lives)
    return max((one.result() for one in done), default=0) or max(statuses)

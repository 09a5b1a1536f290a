"""One router pod, several processes: which of them this is, and how it says what it measured.

Each process is a whole router with a ledger client of its own; they count as one through Redis, as pods do. What they
share is the pod's ports, which the system shares out by connection, and the folder of their sockets.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import generate_latest

from llmrouter.errors import InvalidConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from prometheus_client import CollectorRegistry

MAX_PROCESSES = 16
PROCESSES, NUMBER, FOLDER = "LLMROUTER_PROCESSES", "LLMROUTER_PROCESS", "LLMROUTER_PROCESS_FOLDER"


@dataclass(frozen=True, slots=True)
class Place:
    """A process among those of its pod: ``number`` counts from 0, ``folder`` has the sockets of all."""

    number: int
    folder: Path

    @property
    def metrics_socket(self) -> Path:
        """Whoever connects is told this process's metrics."""
        return self.folder / f"metrics-{self.number}.sock"

    def named(self, router_id: str) -> str:
        """The router id of this process."""
        return f"{router_id}-{self.number}"

    def picker_port(self, port: int) -> int:
        """The port of the endpoint picker that is this process's alone: those behind the one that all share."""
        return port + 1 + self.number


def processes_in(environment: Mapping[str, str]) -> int:
    """How many processes a pod has; raises InvalidConfigError."""
    text = environment.get(PROCESSES, "1")
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PROCESSES:
        raise InvalidConfigError(f"{PROCESSES}: {text[:32]!r} is not within 1 and {MAX_PROCESSES}")
    return int(text)


def place_in(environment: Mapping[str, str]) -> Place | None:
    """Which process this one is, as its supervisor said; ``None`` for one that is alone, or is the supervisor."""
    number = environment.get(NUMBER)
    return None if number is None else Place(int(number), Path(environment[FOLDER]))


@asynccontextmanager
async def told_metrics(registry: CollectorRegistry, place: Place) -> AsyncIterator[None]:
    """Tells a registry's metrics, as text, to whoever connects to the socket of a process."""

    async def tell(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await asyncio.to_thread(generate_latest, registry))
        await writer.drain()
        writer.close()

    place.metrics_socket.unlink(missing_ok=True)  # of a process that was killed
    server = await asyncio.start_unix_server(tell, place.metrics_socket)
    try:
        yield
    finally:
        server.close()
        place.metrics_socket.unlink(missing_ok=True)

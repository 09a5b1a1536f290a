"""Records of decisions by request id, over HTTP: ``GET /decisions/<request id>`` on the port for metrics.

A pod of several processes has one such port; its supervisor asks each process at a socket of its own.
"""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from llmrouter.decisions.record import to_line
from router_grpc.calls import MAX_REQUEST_ID_LENGTH

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from pathlib import Path
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from router_grpc.decision_log import DecisionLog
    from router_grpc.processes import Place

PREFIX = "/decisions/"
ASK_S = 2.0
_READ_BYTES = 1 << 16


def finder(log: DecisionLog) -> Callable[[str], bytes | None]:
    """Brings the line of a request, ``None`` where the log does not have it."""

    def find(request_id: str) -> bytes | None:
        record = log.find(request_id)
        return None if record is None else to_line(record)

    return find


def with_decisions(metrics: WSGIApplication, find: Callable[[str], bytes | None]) -> WSGIApplication:
    """An application that answers for decisions, and has all else answered by another one."""

    def answer(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = str(environment.get("PATH_INFO", ""))
        if not path.startswith(PREFIX):
            return metrics(environment, start)
        request_id = (
            path.removeprefix(PREFIX).encode("latin-1", "replace").decode(errors="replace")
        )  # as WSGI spells it
        found = find(request_id) if 0 < len(request_id) <= MAX_REQUEST_ID_LENGTH else None
        status = "404 Not Found" if found is None else "200 OK"
        body = json.dumps({"error": "no such decision is kept here"}).encode() if found is None else found
        start(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return answer


@asynccontextmanager
async def told_decisions(find: Callable[[str], bytes | None], place: Place) -> AsyncIterator[None]:
    """Tells whoever connects to a process's socket and names a request, in a line, what its record is."""

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(ASK_S):
                asked = await reader.readline()
            found = await asyncio.to_thread(find, asked.decode(errors="replace").rstrip("\n"))
            writer.write(found or b"")
            await writer.drain()
        except (OSError, TimeoutError, ValueError):
            pass  # whoever asked has left, or does not say what: nobody waits for an answer
        finally:
            writer.close()

    path = socket_of(place)
    path.unlink(missing_ok=True)  # of a process that was killed
    server = await asyncio.start_unix_server(tell, path)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


def socket_of(place: Place) -> Path:
    """Where a process tells its decisions."""
    return place.folder / f"decisions-{place.number}.sock"


def asking(places: Sequence[Place]) -> Callable[[str], bytes | None]:
    """Asks processes one after the other; what does not answer has nothing to say."""

    def find(request_id: str) -> bytes | None:
        return next((found for place in places if (found := _ask(socket_of(place), request_id))), None)

    return find


def _ask(path: Path, request_id: str) -> bytes:
    said = bytearray()
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ASK_S)
            connection.connect(str(path))
            connection.sendall(request_id.replace("\n", " ").encode() + b"\n")
            while part := connection.recv(_READ_BYTES):
                said += part
    except OSError:  # a process that is not up has no decisions; ``llmrouter_process_up`` says so
        return b""
    return bytes(said)

"""TLS as gateways have it towards pickers: whatever certificate is shown is taken, whomever it is for.

gRPC cannot leave verification out. So a gRPC client is given a port of this machine in plain text, and what it says
there goes over TLS from here.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATIENCE_S = 10.0
PIECE_BYTES = 65_536


@asynccontextmanager
async def tunnel(address: str) -> AsyncIterator[str]:
    """Where, in plain text, the TLS port at ``host:port`` is reached.

    Raises:
        InvalidInputError: nobody answers there with TLS.
    """
    try:
        _, writer = await connect(address)
    except (OSError, ValueError, TimeoutError) as error:
        raise InvalidInputError(f"{address}: no TLS there: {error}") from error
    writer.close()
    server = await asyncio.start_server(partial(_serve, address), "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A TLS connection to ``host:port`` that offers HTTP/2 and verifies nothing.

    Raises:
        OSError: nobody answers, or not with TLS.
        ValueError: the address is none.
        TimeoutError: not in time.
    """
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    async with asyncio.timeout(PATIENCE_S):
        return await asyncio.open_connection(host.strip("[]"), int(port), ssl=context)


async def _serve(address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        there, to_there = await connect(address)
    except (OSError, TimeoutError):  # the client sees that nobody is there
        writer.close()
        return
    try:
        await asyncio.gather(_pump(reader, to_there), _pump(there, writer))
    except asyncio.CancelledError:  # the end of the run: what is left of it is these two connections
        to_there.close()
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All that comes goes on, until either side ends: then both do."""
    with suppress(OSError):
        while piece := await reader.read(PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
    writer.close()

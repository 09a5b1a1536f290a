"""The endpoint-picker listener over HTTP/2 of our own: the same sessions as over grpc.aio, at a fraction of the cost.

A port serves ``ExternalProcessor.Process`` and gRPC health, nothing else. See docs/decisions/own-http2.md.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any, cast

from router_grpc.http2.calls import Calls
from router_grpc.http2.connection import Connection
from router_grpc.http2.frames import Code
from router_grpc.http2.limits import Limits
from router_grpc.listeners.ext_proc import METHOD, PICKER_NAME
from router_grpc.listeners.health import HEALTH_NAME, HealthBoard

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from router_grpc.http2.calls import Call, Handler
    from router_grpc.picker.session import PickerDesk

TICK_S = 1.0
WRITE_BUFFER_BYTES = 256 * 1024
MAX_CONNECTIONS = 1024
HANDSHAKE_S = 10.0
GOODBYE_S = 1.0
"""For a peer's last word over TLS, which some never say."""

_log = logging.getLogger(__name__)


class FastServer:
    """Serves on one port or more; ``tls`` is the context of new connections, in plain text without it."""

    def __init__(self, desk: PickerDesk, *, tls: ssl.SSLContext | None = None, limits: Limits | None = None) -> None:
        self.health = HealthBoard()
        self.limits = limits or Limits()
        self.metrics = desk.world.metrics
        self.end_turn = desk.end_turn
        methods: dict[str, Callable[[Call], Handler]] = {
            f"/{PICKER_NAME}/{METHOD}": desk.open,
            f"/{HEALTH_NAME}/Check": self.health.check,
            f"/{HEALTH_NAME}/Watch": self.health.watch,
        }
        self.calls = Calls(methods, budget=desk.intake, failed=self._failed)
        self._tls = tls
        self._servers: list[asyncio.Server] = []
        self._wires: set[_Wire] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_empty = asyncio.Event()
        self._is_draining = False

    async def listen(self, host: str, port: int, *, reuse_port: bool = False) -> int:
        """Serves on a port; 0 is any that is free. Returns it; raises OSError where it cannot be listened on."""
        loop = asyncio.get_running_loop()
        times: dict[str, Any] = (
            {} if self._tls is None else {"ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": GOODBYE_S}
        )
        server = await loop.create_server(
            lambda: _Wire(self, loop),
            host,
            port,
            ssl=self._tls,
            **times,
            reuse_port=reuse_port or None,
            backlog=1024,
        )
        self._servers.append(server)
        if self._timer is None:
            self._tick()
        address: tuple[str, int] = server.sockets[0].getsockname()
        return address[1]

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        for wire in list(self._wires):
            wire.tick(loop.time())
        self._timer = loop.call_later(TICK_S, self._tick)

    async def drain(self, grace_s: float) -> None:
        """Takes no new call, lets those under way end within ``grace_s``, then stops."""
        self._is_draining = True
        for server in self._servers:
            server.close()
        self.health.close()
        for wire in list(self._wires):
            wire.connection.go_away("drained")
        await self._emptied(grace_s)
        for wire in list(self._wires):
            wire.connection.end(Code.NO_ERROR, "the time to end in is over")
        await self._emptied(min(grace_s, self.limits.close_s))
        for wire in list(self._wires):
            wire.abort()
        if self._timer is not None:
            self._timer.cancel()

    async def _emptied(self, within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                while self._wires:
                    self._is_empty.clear()
                    await self._is_empty.wait()
        except TimeoutError:  # those that are left are ended by the caller
            return

    def _failed(self, error: Exception) -> None:
        del error  # logged where it came up
        self.metrics.errors.labels("listener").inc()

    def admit(self, wire: _Wire) -> bool:
        """Keeps a new connection; not where there are too many."""
        if len(self._wires) >= MAX_CONNECTIONS:
            self.metrics.gateway_connections_ended.labels("refused").inc()
            return False
        self._wires.add(wire)
        self.metrics.gateway_connections.set(len(self._wires))
        if self._is_draining:
            wire.connection.go_away("drained")
        return True

    def left(self, wire: _Wire) -> None:
        """A connection is gone."""
        if wire in self._wires:
            self._wires.discard(wire)
            self.metrics.gateway_connections.set(len(self._wires))
            self.metrics.gateway_connections_ended.labels(wire.connection.reason or "closed").inc()
        if not self._wires:
            self._is_empty.set()


class _Wire(asyncio.Protocol):
    """One connection's transport. It is not read from while it cannot be written to."""

    connection: Connection
    _transport: asyncio.Transport

    def __init__(self, server: FastServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server, self._loop = server, loop
        self._is_paused = self._is_busy = self._is_scheduled = False
        self._over_s: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # of create_server; uvloop's own is no subclass
        self._transport = transport
        _say_at_once(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        server = self._server
        self.connection = Connection(
            server.calls.open, on_output=self._output, now_s=self._loop.time(), limits=server.limits
        )
        if server.admit(self):
            self._flush()
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        connection = self.connection
        self._is_busy = True
        try:
            connection.receive(data, self._loop.time())
            self._server.end_turn()
        except Exception:  # noqa: BLE001 - ends this connection alone; counted and logged
            self._server.metrics.errors.labels("listener").inc()
            _log.exception("a connection failed")
            connection.end(Code.INTERNAL_ERROR, "the router failed")
        finally:
            self._is_busy = False
        self._flush()

    def _output(self) -> None:
        if not self._is_busy and not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_scheduled = False
        connection = self.connection
        while not self._is_paused and (data := connection.take()):
            self._transport.write(data)
        if connection.is_over and not self._is_paused and not self._transport.is_closing():
            self._transport.close()

    def pause_writing(self) -> None:
        self._is_paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._is_paused = False
        self._transport.resume_reading()
        self._flush()

    def tick(self, now_s: float) -> None:
        self.connection.tick(now_s)
        if self.connection.is_over:
            if self._over_s is None:
                self._over_s = now_s
            elif now_s - self._over_s > self._server.limits.close_s:
                self.abort()

    def abort(self) -> None:
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.connection.lost()
        self._server.left(self)


def _say_at_once(transport: asyncio.Transport) -> None:
    """Small writes are not kept back."""
    found = transport.get_extra_info("socket")
    if found is not None and found.family in {socket.AF_INET, socket.AF_INET6}:
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

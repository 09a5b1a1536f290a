"""What a router listens on: its services over grpc.aio, its endpoint picker over that or the fast transport."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from llmrouter.errors import InvalidConfigError
from router_grpc.calls import MAX_PROMPT_BYTES
from router_grpc.listeners.ext_proc import PICKER_NAME
from router_grpc.v1 import router_pb2, router_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router_grpc.certificates import Certificates
    from router_grpc.listeners.ext_proc import PickerServicer
    from router_grpc.listeners.fast import FastServer
    from router_grpc.listeners.native import RouterServicer

SERVICE_NAME = router_pb2.DESCRIPTOR.services_by_name["Router"].full_name
READINESS = "readiness"
LIVENESS = "liveness"
NAMES_OF_READINESS = (READINESS, SERVICE_NAME, PICKER_NAME, "inference-extension", "")
"""Whom the health service answers alike; the last but one is what probes of endpoint pickers ask for."""

PICKER_FIELD, OWN_PICKER_FIELD = "extProc.port", "extProc.port and those behind it"
"""Ports that speak TLS where there are certificates, and that the fast transport serves where there is one.

The second is that of one process among several.
"""

MAX_MESSAGE_BYTES = MAX_PROMPT_BYTES + 256 * 1024
MAX_CONCURRENT_CALLS = 16_384
"""Held calls and report streams, health checks among them: above what the lines of held requests usually bound."""


class GrpcServer:
    """Serves on every port of ``ports``, by the field of the resource that names it; ready once told so.

    Shared ports are listened on by other processes as well: each connection is one's. The gRPC API's port has
    everything, in plain text. With ``fast``, the endpoint picker's port is that server's alone,
    TLS included; without it, that port has the same as the other, with TLS where there are ``certificates``.
    """

    def __init__(
        self,
        servicer: RouterServicer,
        picker: PickerServicer,
        *,
        host: str,
        ports: Mapping[str, int],
        certificates: Certificates | None = None,
        fast: FastServer | None = None,
        is_shared: bool = False,
    ) -> None:
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
            options=(
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", int(is_shared)),
                ("grpc.keepalive_time_ms", 20_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ),
        )
        router_pb2_grpc.add_RouterServicer_to_server(servicer, self._server)  # type: ignore[no-untyped-call]
        self._server.add_generic_rpc_handlers((picker.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        names = (SERVICE_NAME, PICKER_NAME, health_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._host, self._wanted = host, dict(ports)
        self._certificates = certificates
        self._fast = fast
        self._is_shared = is_shared
        self._retired = False
        self.is_ready = False
        self.ports: dict[str, int] = {}

    @property
    def port(self) -> int:
        """The port of the gRPC API; 0 before it is listened on."""
        return self.ports.get("grpcPort", 0)

    async def start(self) -> None:
        """Serves; alive, and not ready yet. Raises InvalidConfigError where a port cannot be listened on."""
        await self._show(ready=False)
        await self._set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        for field, port in self._wanted.items():
            try:
                self.ports[field] = await self._listen(field, port)
            except (OSError, RuntimeError) as error:
                raise InvalidConfigError(f"listeners.{field}: cannot listen on {self._host}:{port}") from error
        await self._server.start()

    async def _listen(self, field: str, port: int) -> int:
        of_picker = field in {PICKER_FIELD, OWN_PICKER_FIELD}
        if of_picker and self._fast is not None:
            return await self._fast.listen(self._host, port, reuse_port=self._is_shared)
        address = f"{self._host}:{port}"
        if of_picker and self._certificates is not None:
            return self._server.add_secure_port(address, self._certificates.credentials())
        return self._server.add_insecure_port(address)

    async def set_ready(self) -> None:
        """The readiness probe and gRPC health say yes from now on; a retired server stays so."""
        if not self._retired:
            await self._show(ready=True)

    async def retire(self) -> None:
        """The readiness probe and gRPC health say no for good; calls are still answered."""
        self._retired = True
        await self._show(ready=False)

    async def _show(self, *, ready: bool) -> None:
        self.is_ready = ready
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in NAMES_OF_READINESS:
            await self._set(name, status)

    async def _set(self, name: str, status: int) -> None:
        await self._health.set(name, status)
        if self._fast is not None:
            self._fast.health.set(name, status)

    async def drain(self, grace_s: float) -> None:
        """Takes no new call, lets those under way end within ``grace_s``, then stops."""
        await self.retire()
        stops = [self._server.stop(grace_s)]
        if self._fast is not None:
            stops.append(self._fast.drain(grace_s))
        await asyncio.gather(*stops)

    async def wait(self) -> None:
        """Returns when the server has stopped."""
        await self._server.wait_for_termination()

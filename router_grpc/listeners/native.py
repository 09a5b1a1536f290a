"""The native listener: ``llmrouter.v1.Router`` over grpc.aio, with health, reflection, deadlines and drain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from llmrouter.errors import InvalidConfigError, InvalidRequestError, LLMRouterError, NoInstanceError
from router_grpc.calls import MAX_PROMPT_BYTES, MAX_REQUEST_ID_LENGTH
from router_grpc.listeners.converters import (
    instance_state,
    report_of,
    reservation_message,
    route_ask,
    route_response,
    status_of,
    trailers_of,
)
from router_grpc.v1 import router_pb2 as pb
from router_grpc.v1 import router_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from router_grpc.reports import ReportService
    from router_grpc.service import RouterService
    from router_grpc.world import World

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Router"].full_name
READINESS = "readiness"
LIVENESS = "liveness"
MAX_MESSAGE_BYTES = MAX_PROMPT_BYTES + 256 * 1024
MAX_CONCURRENT_CALLS = 16_384
"""Held calls and report streams, health checks among them: above what the lines of held requests usually bound."""

DEADLINE_MARGIN_S = 0.005


class RouterServicer(pb_grpc.RouterServicer):
    """Converts and answers; the services decide."""

    def __init__(self, world: World, service: RouterService, reports: ReportService) -> None:
        self._world = world
        self._service = service
        self._reports = reports

    async def Route(  # noqa: N802 - the name is gRPC's
        self, request: pb.RouteRequest, context: grpc.aio.ServicerContext[pb.RouteRequest, pb.RouteResponse]
    ) -> pb.RouteResponse:
        """See router.proto."""
        started_s = self._world.clock()
        left_s = context.time_remaining()
        deadline_s = None if left_s is None else started_s + max(0.0, left_s - DEADLINE_MARGIN_S)
        try:
            answer = await self._service.route(route_ask(request), deadline_s=deadline_s)
        except LLMRouterError as error:
            self._world.metrics.requests.labels(error.reason).inc()
            await context.abort(status_of(error), str(error), trailing_metadata=trailers_of(error))
            raise  # abort has raised already
        except Exception:
            self._world.metrics.requests.labels("Error").inc()
            raise  # grpc logs it and answers UNKNOWN
        self._world.metrics.requests.labels("Routed").inc()
        self._world.metrics.route_seconds.observe(self._world.clock() - started_s)
        return route_response(answer)

    async def Report(  # noqa: N802 - the name is gRPC's
        self,
        request_iterator: AsyncIterator[pb.ReportEvent],
        context: grpc.aio.ServicerContext[pb.ReportEvent, pb.ReportAcknowledgement],
    ) -> AsyncIterator[pb.ReportAcknowledgement]:
        """See router.proto."""
        del context
        stream_id = self._reports.open_stream()
        try:
            async for message in request_iterator:
                yield await self._acknowledge(message, stream_id)
        finally:
            self._reports.close_stream(stream_id)

    async def _acknowledge(self, message: pb.ReportEvent, stream_id: int) -> pb.ReportAcknowledgement:
        try:
            known = await self._reports.report(report_of(message), stream_id=stream_id)
        except InvalidRequestError as error:
            return pb.ReportAcknowledgement(request_id=message.request_id, known=False, error=str(error))
        return pb.ReportAcknowledgement(request_id=message.request_id, known=known)

    async def GetSnapshot(  # noqa: N802 - the name is gRPC's
        self,
        request: pb.GetSnapshotRequest,
        context: grpc.aio.ServicerContext[pb.GetSnapshotRequest, pb.GetSnapshotResponse],
    ) -> pb.GetSnapshotResponse:
        """See router.proto."""
        del request
        runtime = self._service.runtime
        if runtime is None:
            error = NoInstanceError("the router has no configuration yet")
            await context.abort(status_of(error), str(error), trailing_metadata=trailers_of(error))
            raise error
        now_s = self._world.clock()
        snapshot = self._service.snapshot()
        return pb.GetSnapshotResponse(
            router_id=self._world.ledger.router_id,
            config_digest=runtime.digest,
            policy=runtime.config.policy.name,
            policy_digest=runtime.policy_digest,
            deciding=runtime.deciding,
            provider=runtime.provider,
            degraded=self._world.is_degraded(),
            held_requests=self._service.held,
            load_age_seconds=snapshot.load_age_s,
            instances=[instance_state(view, now_s=now_s) for view in snapshot.views],
        )

    async def GetReservation(  # noqa: N802 - the name is gRPC's
        self,
        request: pb.GetReservationRequest,
        context: grpc.aio.ServicerContext[pb.GetReservationRequest, pb.Reservation],
    ) -> pb.Reservation:
        """See router.proto."""
        found = await self._world.ledger.find(request.request_id[: MAX_REQUEST_ID_LENGTH + 1])
        if found is None:
            message = f"no reservation has the request id {request.request_id[:128]!r}"
            await context.abort(grpc.StatusCode.NOT_FOUND, message)
            raise InvalidRequestError(message)  # abort has raised already
        return reservation_message(found)


class NativeListener:
    """One gRPC server on one port; ready once told so."""

    def __init__(self, servicer: RouterServicer, *, host: str, port: int) -> None:
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
            options=(
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_time_ms", 20_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ),
        )
        pb_grpc.add_RouterServicer_to_server(servicer, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._address = f"{host}:{port}"
        self._retired = False
        self.is_ready = False
        self.port = 0

    async def start(self) -> None:
        """Serves; alive, and not ready yet. Raises InvalidConfigError where the port cannot be listened on."""
        try:
            self.port = self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise InvalidConfigError(f"listeners.grpcPort: cannot listen on {self._address}") from error
        await self._show(ready=False)
        await self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def set_ready(self) -> None:
        """The readiness probe and gRPC health say yes from now on; a retired listener stays so."""
        if not self._retired:
            await self._show(ready=True)

    async def retire(self) -> None:
        """The readiness probe and gRPC health say no for good; calls are still answered."""
        self._retired = True
        await self._show(ready=False)

    async def _show(self, *, ready: bool) -> None:
        self.is_ready = ready
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in (READINESS, SERVICE_NAME, ""):
            await self._health.set(name, status)

    async def drain(self, grace_s: float) -> None:
        """Takes no new call, lets those under way end within ``grace_s``, then stops."""
        await self.retire()
        await self._server.stop(grace_s)

    async def wait(self) -> None:
        """Returns when the server has stopped."""
        await self._server.wait_for_termination()

"""The native listener: ``llmrouter.v1.Router`` over grpc.aio."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from llmrouter.errors import InvalidRequestError, LLMRouterError, NoInstanceError
from router_grpc.calls import MAX_REQUEST_ID_LENGTH
from router_grpc.counted import counted_route
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
        left_s = context.time_remaining()
        deadline_s = None if left_s is None else self._world.clock() + max(0.0, left_s - DEADLINE_MARGIN_S)
        try:
            answer = await counted_route(self._world, self._service, route_ask(request), deadline_s=deadline_s)
        except LLMRouterError as error:
            await context.abort(status_of(error), str(error), trailing_metadata=trailers_of(error))
            raise  # abort has raised already
        except Exception:
            self._world.metrics.requests.labels("Error").inc()
            raise  # grpc logs it and answers UNKNOWN
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

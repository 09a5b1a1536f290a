"""The endpoint-picker listener: Envoy's external processing, one stream for each HTTP request, over grpc.aio."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import grpc

from llmrouter.errors import LLMRouterError
from router_grpc.forwarding import least_loaded
from router_grpc.picker.exchange import Exchange, Forward, Pick, ProtocolError, Send, ServedElsewhere, Tell
from router_grpc.v1 import ext_proc_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from router_grpc.picker.exchange import Effect
    from router_grpc.reports import ReportService
    from router_grpc.service import RouterService
    from router_grpc.v1 import ext_proc_pb2 as pb
    from router_grpc.world import World

_log = logging.getLogger(__name__)


class PickerServicer(pb_grpc.ExternalProcessorServicer):
    """Carries what an ``Exchange`` wants done to the services, and their answers back."""

    def __init__(self, world: World, service: RouterService, reports: ReportService) -> None:
        self._world = world
        self._service = service
        self._reports = reports

    async def Process(  # noqa: N802 - the name is gRPC's
        self,
        request_iterator: AsyncIterator[pb.ProcessingRequest],
        context: grpc.aio.ServicerContext[pb.ProcessingRequest, pb.ProcessingResponse],
    ) -> AsyncIterator[pb.ProcessingResponse]:
        """See ext_proc.proto."""
        exchange, stream_id = Exchange(), self._reports.open_stream()
        try:
            async for message in request_iterator:
                effects = exchange.receive(message)
                while effects:
                    effect, *effects = effects
                    if isinstance(effect, Send):
                        yield effect.message
                    else:
                        effects += await self._follow(effect, exchange, stream_id)
        except ProtocolError as error:
            self._world.metrics.requests.labels(error.reason).inc()
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except LLMRouterError as error:
            self._world.metrics.requests.labels(error.reason).inc()
            await context.abort(grpc.StatusCode.INTERNAL, str(error))
        finally:
            for effect in exchange.closed():
                await self._follow(effect, exchange, stream_id)
            self._reports.close_stream(stream_id)

    async def _follow(self, effect: Effect, exchange: Exchange, stream_id: int) -> Sequence[Effect]:
        """Does what is no message for the gateway; returns what follows from it."""
        if isinstance(effect, Tell):
            await self._reports.report(effect.report, stream_id=stream_id)
        elif isinstance(effect, ServedElsewhere):
            self._world.metrics.served_elsewhere.inc()
            _log.info("served elsewhere", extra={"request_id": exchange.request_id, "endpoint": effect.endpoint})
        elif isinstance(effect, Pick):
            return await self._pick(effect, exchange, stream_id)
        elif isinstance(effect, Forward):
            return self._forward(effect, exchange)
        return ()

    async def _pick(self, effect: Pick, exchange: Exchange, stream_id: int) -> Sequence[Effect]:
        started_s = self._world.clock()
        try:
            answer = await self._service.route(effect.ask)
        except LLMRouterError as error:
            self._world.metrics.requests.labels(error.reason).inc()
            return exchange.refused(error)
        self._world.metrics.requests.labels("Routed").inc()
        self._world.metrics.route_seconds.observe(self._world.clock() - started_s)
        self._world.open_requests.attended(answer.request_id, stream_id=stream_id)
        return exchange.picked(answer.endpoint, answer.request_id)

    def _forward(self, effect: Forward, exchange: Exchange) -> Sequence[Effect]:
        try:
            endpoint = least_loaded(self._world, effect.subset)
        except LLMRouterError as error:
            self._world.metrics.requests.labels(error.reason).inc()
            return exchange.refused(error)
        self._world.metrics.requests.labels("Forwarded").inc()
        return exchange.picked(endpoint, "")

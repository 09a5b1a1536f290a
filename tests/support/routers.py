"""A router that places requests in turn and remembers what it was told: what a replay talks to in tests."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from router_grpc.v1 import router_pb2 as messages
from router_grpc.v1.router_pb2_grpc import RouterServicer, add_RouterServicer_to_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


@dataclass
class SharedReservations:
    """The ledger of all turn-taking routers: request id to instance."""

    held: dict[str, str] = field(default_factory=dict)
    finished: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


class TurnRouter(RouterServicer):
    def __init__(self, endpoints: Sequence[str], ledger: SharedReservations) -> None:
        self.endpoints = list(endpoints)
        self.ledger = ledger
        self.policy = "first"
        self.refuse: grpc.StatusCode | None = None
        self.routed: list[messages.RouteRequest] = []
        self.reports: list[messages.ReportEvent] = []
        self._turn = itertools.count()

    async def Route(  # noqa: N802 - the service's name
        self,
        request: messages.RouteRequest,
        context: grpc.aio.ServicerContext[messages.RouteRequest, messages.RouteResponse],
    ) -> messages.RouteResponse:
        self.routed.append(request)
        if self.refuse is not None:
            await context.abort(self.refuse, "refused by the test")
        free = [endpoint for endpoint in self.endpoints if endpoint not in request.excluded_instance_ids]
        endpoint = free[next(self._turn) % len(free)]
        self.ledger.held[request.request_id] = endpoint
        return messages.RouteResponse(
            request_id=request.request_id, instance_id=endpoint, endpoint=endpoint, policy=self.policy
        )

    async def Report(  # noqa: N802 - the service's name
        self,
        request_iterator: AsyncIterator[messages.ReportEvent],
        context: grpc.aio.ServicerContext[messages.ReportEvent, messages.ReportAcknowledgement],
    ) -> AsyncIterator[messages.ReportAcknowledgement]:
        del context
        async for event in request_iterator:
            self.reports.append(event)
            known = event.request_id in self.ledger.held
            if event.WhichOneof("event") == "finished":
                self.ledger.finished[event.request_id] = event.finished.output_tokens
            if event.WhichOneof("event") == "failed":
                self.ledger.failed.append(event.request_id)
            if event.WhichOneof("event") in {"finished", "failed", "cancelled"}:
                self.ledger.held.pop(event.request_id, None)
            yield messages.ReportAcknowledgement(request_id=event.request_id, known=known)

    async def GetSnapshot(  # noqa: N802 - the service's name
        self,
        request: messages.GetSnapshotRequest,
        context: grpc.aio.ServicerContext[messages.GetSnapshotRequest, messages.GetSnapshotResponse],
    ) -> messages.GetSnapshotResponse:
        del request, context
        counts = dict.fromkeys(self.endpoints, 0)
        for endpoint in self.ledger.held.values():
            counts[endpoint] = counts.get(endpoint, 0) + 1
        return messages.GetSnapshotResponse(
            router_id="turn",
            policy=self.policy,
            policy_digest=self.policy,
            instances=[messages.InstanceState(instance_id=e, in_flight_requests=n) for e, n in counts.items()],
        )


@asynccontextmanager
async def serving(router: TurnRouter) -> AsyncIterator[tuple[str, grpc.aio.Server]]:
    """The router's address while it runs."""
    server = grpc.aio.server()
    add_RouterServicer_to_server(router, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        await server.stop(None)

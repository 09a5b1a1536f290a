"""The endpoint-picker listener over grpc.aio: the reference of what a transport does with a session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from router_grpc.status import Status
from router_grpc.v1 import ext_proc_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from router_grpc.picker.session import PickerDesk

PICKER_NAME = ext_proc_pb2.DESCRIPTOR.services_by_name["ExternalProcessor"].full_name
METHOD = "Process"

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class _Outlet:
    """What a session has said since it was asked last."""

    def __init__(self) -> None:
        self._messages: list[bytes] = []
        self.ended: tuple[Status, str] | None = None

    def send(self, message: bytes) -> None:
        self._messages.append(message)

    def finish(self, status: Status, detail: str) -> None:
        self.ended = (status, detail)

    def resumed(self) -> None:
        """Nothing: the next message is read when the pick is over."""

    def take(self) -> list[bytes]:
        taken, self._messages = self._messages, []
        return taken


class PickerServicer:
    """Takes a message, waits for what it leads to, sends that, and only then reads the next."""

    def __init__(self, desk: PickerDesk) -> None:
        self._desk = desk

    def handler(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        """The service as a server takes it: messages as bytes."""
        method = grpc.stream_stream_rpc_method_handler(self.process)
        return grpc.method_handlers_generic_handler(PICKER_NAME, {METHOD: method})

    async def process(
        self, messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        """See ext_proc.proto."""
        outlet = _Outlet()
        session = self._desk.open(outlet)
        try:
            async for message in messages:
                session.receive(message)
                await session.picked()
                for answer in outlet.take():
                    yield answer
                if outlet.ended is not None:
                    break
            session.half_closed()
        finally:
            session.broken()
        if outlet.ended is not None and outlet.ended[0] is not Status.OK:
            status, detail = outlet.ended
            await context.abort(_CODES[status], detail)

"""The endpoint-picker listener over grpc.aio: the reference of what a transport does with a session."""

from __future__ import annotations

import asyncio
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
    """What a session has said and is not written yet; what it says unasked goes out at once."""

    def __init__(self, desk: PickerDesk, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        self._desk, self._context = desk, context
        self._messages: list[bytes] = []
        self._writing = asyncio.Lock()
        self.ended: tuple[Status, str] | None = None
        self.is_listening = True

    def send(self, message: bytes) -> None:
        self._messages.append(message)
        if self.is_listening:
            self._desk.keep(self.write())

    def finish(self, status: Status, detail: str) -> None:
        self.ended = (status, detail)

    def resumed(self) -> None:
        """Nothing: the next message is read when the pick is over."""

    async def write(self) -> None:
        """Writes all of it, in its order."""
        async with self._writing:
            while self._messages:
                taken, self._messages = self._messages, []
                for message in taken:
                    await self._context.write(message)


class PickerServicer:
    """Takes a message, waits for what it leads to, sends that, and only then reads the next."""

    def __init__(self, desk: PickerDesk) -> None:
        self._desk = desk

    def handler(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        """The service as a server takes it: messages as bytes."""
        method = grpc.stream_stream_rpc_method_handler(self.process)
        return grpc.method_handlers_generic_handler(PICKER_NAME, {METHOD: method})

    async def process(self, messages: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """See ext_proc.proto."""
        outlet = _Outlet(self._desk, context)
        session = self._desk.open(outlet)
        try:
            async for message in messages:
                outlet.is_listening = False
                session.receive(message)
                await session.picked()
                await outlet.write()
                if outlet.ended is not None:
                    break
                outlet.is_listening = True
            session.half_closed()
        finally:
            session.broken()
        if outlet.ended is not None and outlet.ended[0] is not Status.OK:
            status, detail = outlet.ended
            await context.abort(_CODES[status], detail)

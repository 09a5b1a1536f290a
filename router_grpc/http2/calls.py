"""gRPC calls over HTTP/2 streams: messages in, messages out, a status at the end.

A call's handler takes messages in their order. A call whose handler is waiting, or whose answers do not get out, is
granted no more of its window. However it ends, its handler is told ``broken`` and the others go on.
"""

from __future__ import annotations

import logging
import struct
from typing import TYPE_CHECKING, Protocol

from router_grpc.http2 import blocks
from router_grpc.http2.stream import Stream
from router_grpc.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from router_grpc.http2.connection import Connection

_log = logging.getLogger(__name__)

PREFIX = struct.Struct(">BL")
"""Before every message: whether it is compressed, and its length."""
PREFIX_BYTES = 5


class Handler(Protocol):
    """Who serves a call."""

    @property
    def is_waiting(self) -> bool:
        """What comes now is kept, not dealt with: no more should come."""
        ...

    @property
    def is_done(self) -> bool:
        """All is said: that the peer ends the call by a reset, as some gateways do, is no giving up."""
        ...

    def receive(self, message: bytes) -> None:
        """The next message."""
        ...

    def half_closed(self) -> None:
        """The peer has no more messages."""
        ...

    def broken(self) -> None:
        """The call ended otherwise than by ``finish``."""
        ...


class Budget(Protocol):
    """How many bytes all calls together may keep."""

    def take(self, size: int) -> None:
        """So many more are kept; raises an error, and takes none, where they are too many."""
        ...

    def hold(self, size: int) -> None:
        """So many more are kept, which cannot be refused."""
        ...

    def give(self, size: int) -> None:
        """So many are kept no longer."""
        ...


class Calls:
    """The calls that a server knows, by path; opens them as streams of connections.

    Attributes:
        failed: is told of an error that is the server's own, once per call that it ended.
    """

    def __init__(
        self,
        methods: Mapping[str, Callable[[Call], Handler]],
        *,
        budget: Budget,
        failed: Callable[[Exception], None],
    ) -> None:
        self.methods = {path.encode(): opened for path, opened in methods.items()}
        self.budget, self.failed = budget, failed

    def open(self, connection: Connection, stream_id: int, headers: dict[bytes, bytes]) -> Call:
        """The call that a request's headers ask for."""
        call = Call(connection, stream_id, self)
        call.begin(headers)
        return call


class Call(Stream):
    """One call; what its handler answers through."""

    __slots__ = ("_budget", "_buffer", "_calls", "_handler", "_has_begun", "_held", "_is_over", "_taken")

    def __init__(self, connection: Connection, stream_id: int, calls: Calls) -> None:
        super().__init__(connection, stream_id)
        self._calls, self._budget = calls, calls.budget
        self._buffer = bytearray()
        self._taken = self._held = 0
        self._has_begun = self._is_over = False
        self._handler: Handler | None = None

    def begin(self, headers: dict[bytes, bytes]) -> None:
        """Finds the handler, or says at once that there is none."""
        if headers[b":method"] != b"POST" or not headers.get(b"content-type", b"").startswith(b"application/grpc"):
            self._end(blocks.unsupported("405" if headers[b":method"] != b"POST" else "415"))
            return
        opened = self._calls.methods.get(headers[b":path"])
        if opened is None:
            self.finish(Status.UNIMPLEMENTED, "no such method")
            return
        try:
            self._handler = opened(self)
        except Exception as error:  # noqa: BLE001 - ends this call alone, is counted and logged
            self._failed(error)

    # What the handler says.

    def send(self, message: bytes) -> None:
        """The next message of the answer."""
        if self._is_over or self.is_closed:
            return
        if not self._has_begun:
            self.head, self._has_begun = blocks.GRPC_HEAD, True
        size = len(message)
        self.queue.append(PREFIX.pack(0, size) + message)
        self.unsent += PREFIX_BYTES + size
        if not self.is_ready:
            self.connection.sending.ready(self)
            self.connection.wake()

    def finish(self, status: Status, detail: str) -> None:
        """The end of the answer, after what has been sent."""
        made = blocks.trailers if self._has_begun else blocks.trailers_only
        self._end(made(status, detail))

    def _end(self, block: bytes) -> None:
        if not self._is_over and not self.is_closed:
            self._is_over = True
            self._handler = None  # which refers to the call: without it both go at once, uncollected
            self._forget()
            self.tail = block
            self.connection.sending.ready(self)
            self.connection.wake()

    def resumed(self) -> None:
        """The handler takes messages again."""
        self._grant()
        self.connection.wake()

    # What the connection says.

    def received(self, data: bytes) -> None:
        """See Stream."""
        if self._is_over:
            return  # what was under way when it ended
        if not self._buffer and len(data) >= PREFIX_BYTES:
            flag, size = PREFIX.unpack_from(data)
            if not flag and size == len(data) - PREFIX_BYTES:
                self._deliver(data[PREFIX_BYTES:])
                self._grant()
                return
        if self._buffer:
            self._buffer += data
            at = self._cut(self._buffer)
            if at and not self._is_over:
                del self._buffer[:at]
        else:
            at = self._cut(data)
            if at < len(data) and not self._is_over:
                self._buffer = bytearray(data[at:])
        self._grant()

    def _cut(self, buffer: bytes | bytearray) -> int:
        """Delivers what is whole; how many bytes that is."""
        at, have = 0, len(buffer)
        while have - at >= PREFIX_BYTES and not self._is_over:
            flag, size = PREFIX.unpack_from(buffer, at)
            end = at + PREFIX_BYTES + size
            if flag:
                self._refuse(Status.UNIMPLEMENTED, "messages are not compressed here")
            elif size > self.connection.limits.message_bytes:
                self._refuse(Status.RESOURCE_EXHAUSTED, f"a message of {size} bytes is too long")
            elif end > have:
                self._take(size)
                break
            else:
                part = slice(at + PREFIX_BYTES, end)
                message = buffer[part] if isinstance(buffer, bytes) else bytes(memoryview(buffer)[part])
                at = end
                self._give()
                self._deliver(message)
        return at

    def _take(self, size: int) -> None:
        """Counts a long message that has begun to come."""
        if self._taken or size <= self.granted:
            return
        try:
            self._budget.take(size)
        except Exception as error:  # noqa: BLE001 - whatever is full, this call alone ends, and says so
            self._refuse(Status.RESOURCE_EXHAUSTED, str(error))
        else:
            self._taken = size

    def _give(self) -> None:
        if self._taken:
            self._budget.give(self._taken)
            self._taken = 0

    def _deliver(self, message: bytes) -> None:
        handler = self._handler
        if handler is None:
            return
        try:
            handler.receive(message)
        except Exception as error:  # noqa: BLE001 - ends this call alone, is counted and logged
            self._failed(error)

    def _refuse(self, status: Status, detail: str) -> None:
        """Ends a call otherwise than its handler does."""
        handler = self._handler
        self.finish(status, detail)
        self._break(handler)

    def _failed(self, error: Exception) -> None:
        self._calls.failed(error)
        _log.error("a call failed", exc_info=error)
        self._refuse(Status.INTERNAL, "the router failed")

    def _grant(self) -> None:
        if 2 * (self.granted - self.receive_window) < self.granted:
            return  # not worth a frame
        handler = self._handler
        if handler is not None and not handler.is_waiting and self.unsent <= self.connection.limits.unsent_bytes:
            self.connection.granting(self)

    @property
    def is_done(self) -> bool:
        """See Stream."""
        return self._handler is None or self._handler.is_done

    def sent(self) -> None:
        """See Stream."""
        if self.unsent > self._held:
            self._budget.hold(self.unsent - self._held)
        elif self.unsent < self._held:
            self._budget.give(self._held - self.unsent)
        self._held = self.unsent
        if not self._is_over:
            self._grant()

    def ended(self) -> None:
        """See Stream."""
        if self._is_over or self._handler is None:
            return
        if self._buffer:
            self._refuse(Status.INTERNAL, "the stream ended within a message")
            return
        try:
            self._handler.half_closed()
        except Exception as error:  # noqa: BLE001 - ends this call alone, is counted and logged
            self._failed(error)

    def broken(self) -> None:
        """See Stream."""
        handler, self._handler = self._handler, None
        self._is_over = True
        self._forget()
        self._break(handler)

    def _break(self, handler: Handler | None) -> None:
        if handler is None:
            return
        try:
            handler.broken()
        except Exception as error:  # noqa: BLE001 - the call is over already; counted and logged
            self._calls.failed(error)
            _log.exception("a call did not end well")

    def _forget(self) -> None:
        """What came of an unfinished message."""
        self._buffer = bytearray()
        self._give()

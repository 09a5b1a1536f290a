"""What goes out on one HTTP/2 connection: frames that are made already, and what streams have to say in turns."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from router_grpc.http2 import frames as wire
from router_grpc.http2.blocks import NO_TABLE
from router_grpc.http2.frames import Code

if TYPE_CHECKING:
    from collections.abc import Callable

    from router_grpc.http2.stream import Stream

TURN_BYTES = 64 * 1024
"""A stream sends so much, then the next one has its turn."""

TAKE_BYTES = 256 * 1024
"""What ``take`` gives at once, about."""


class Sending:
    """Keeps to the windows that the peer grants; ``closed`` is told of a stream whose end has been said."""

    def __init__(self, closed: Callable[[Stream], None]) -> None:
        self._closed = closed
        self._window, self._frame_bytes = wire.DEFAULT_WINDOW, wire.DEFAULT_FRAME_BYTES
        self._has_answered = False
        self._ready: deque[Stream] = deque()
        self._starved: list[Stream] = []
        self._out: list[bytes | memoryview] = []

    def say(self, frame: bytes) -> None:
        """A frame goes out, before what streams have to say."""
        self._out.append(frame)

    def take_frames_of(self, size: int) -> None:
        """The peer takes frames of so many bytes."""
        self._frame_bytes = min(size, TURN_BYTES)

    def granted(self, size: int) -> bool:
        """The peer takes so many bytes more, of all streams together; ``False`` where it cannot mean that."""
        self._window += size
        if not size or self._window > wire.LARGEST_WINDOW:
            return False
        self._ready.extend(self._starved)
        self._starved.clear()
        return True

    def ready(self, stream: Stream) -> None:
        """A stream may have something to send."""
        if not stream.is_ready and (stream.queue or stream.head is not None or stream.tail is not None):
            stream.is_ready = True
            self._ready.append(stream)

    def stop(self) -> None:
        """Streams say nothing more."""
        self._ready.clear()
        self._starved.clear()

    def take(self) -> bytes:
        """What is to be written now; nothing where there is nothing, or windows are closed."""
        if self._ready:
            self._pack()
        if not self._out:
            return b""
        out, self._out = self._out, []
        return b"".join(out)

    def _pack(self) -> None:
        """Gives every ready stream turns, in order, as long as the connection's window is open."""
        ready, budget = self._ready, TAKE_BYTES
        while ready and budget > 0:
            stream = ready.popleft()
            stream.is_ready = False
            if stream.is_closed:
                continue
            if stream.queue and not self._window:
                stream.is_ready = True
                self._starved.append(stream)
                stream.sent()
                continue
            budget -= self._pack_stream(stream)

    def _pack_stream(self, stream: Stream) -> int:
        out, sent = self._out, 0
        if stream.head is not None:
            block, stream.head = self._first(stream.head), None
            out.append(wire.frame(wire.HEADERS, wire.END_HEADERS, stream.stream_id, block))
        if stream.queue:
            sent = min(stream.unsent, stream.send_window, self._window, TURN_BYTES)
            if sent > 0:
                self._pack_data(stream, sent)
                stream.send_window -= sent
                self._window -= sent
            stream.sent()
            if stream.queue:
                self._next_turn(stream)
                return max(sent, 0)
        if stream.tail is not None:
            block, stream.tail = self._first(stream.tail), None
            out.append(wire.frame(wire.HEADERS, wire.END_HEADERS | wire.END_STREAM, stream.stream_id, block))
            if not stream.has_ended:
                out.append(wire.rst_stream(stream.stream_id, Code.NO_ERROR))
            self._closed(stream)
        return sent

    def _next_turn(self, stream: Stream) -> None:
        """A stream has more to send than it could: the first to go on if it was the connection's window that ended."""
        if stream.send_window <= 0:
            return
        if self._window:
            self.ready(stream)
        else:
            stream.is_ready = True
            self._starved.insert(0, stream)

    def _pack_data(self, stream: Stream, size: int) -> None:
        """Moves ``size`` bytes of a stream's queue into frames."""
        out, queue = self._out, stream.queue
        stream.unsent -= size
        if not stream.unsent and size <= self._frame_bytes:
            out.append(wire.head(size, wire.DATA, 0, stream.stream_id))
            out.extend(queue)
            queue.clear()
            return
        while size:
            left = min(size, self._frame_bytes)
            size -= left
            out.append(wire.head(left, wire.DATA, 0, stream.stream_id))
            while left:
                chunk = queue.popleft()
                if len(chunk) > left:
                    chunk = memoryview(chunk)
                    queue.appendleft(chunk[left:])
                    chunk = chunk[:left]
                out.append(chunk)
                left -= len(chunk)

    def _first(self, block: bytes) -> bytes:
        if self._has_answered:
            return block
        self._has_answered = True
        return NO_TABLE + block

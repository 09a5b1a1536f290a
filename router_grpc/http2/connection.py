"""The server's side of one HTTP/2 connection (RFC 9113), without a transport.

Bytes that came go to ``receive``; ``take`` gives what is to be written. The transport does not read while it cannot
write, so that nothing the peer does makes answers pile up here; what streams have to say waits in their own queues.
What comes is granted anew at once for the connection, and for a stream when it is dealt with: a stream that is not read
holds up no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router_grpc.http2 import frames as wire
from router_grpc.http2.blocks import BlockReader, TooLongError
from router_grpc.http2.frames import Code, PeerError
from router_grpc.http2.limits import Limits
from router_grpc.http2.sending import Sending
from router_grpc.rates import Meter

if TYPE_CHECKING:
    from collections.abc import Callable

    from router_grpc.http2.stream import Stream

    Opener = Callable[["Connection", int, dict[bytes, bytes]], Stream]

ALIVE, DRAINING = b"alive???", b"drained?"
"""What pings carry: whether the peer is there, and whether it has heard that no more streams are taken."""


class Connection:
    """See the module's docstring.

    ``opened`` makes the stream of a request from its headers; ``on_output`` is told that there is something to take
    when that comes about otherwise than by ``receive``.

    Attributes:
        first_send_window: of streams that begin now, as the peer wishes.
        sending: what goes out.
        is_over: no more frames are read; the transport closes once what ``take`` gives is written.
        reason: why it ended, in one of a few words; empty before, and where the peer closed it.
    """

    def __init__(
        self, opened: Opener, *, on_output: Callable[[], None], now_s: float, limits: Limits | None = None
    ) -> None:
        self.limits = limits or Limits()
        self._opened, self._on_output = opened, on_output
        self.first_send_window = wire.DEFAULT_WINDOW
        self._receive_window = self.limits.connection_window_bytes
        self._blocks = BlockReader(self.limits.header_bytes)
        self._rest = b""
        self._has_begun = False
        self._continued: tuple[int, int, list[bytes]] | None = None
        self._streams: dict[int, Stream] = {}
        self._last_id = 0
        self._is_gone = self.is_over = False
        self.reason = ""
        self._idle_frames = Meter(self.limits.idle_frames, now_s)
        self._settings = Meter(self.limits.settings, now_s)
        self._resets = Meter(self.limits.resets, now_s)
        self._now_s = self._began_s = self._heard_s = self._used_s = now_s
        self._asked_s: float | None = None
        self._went_s: float | None = None
        self.sending = Sending(self._close)
        self._say = self.sending.say
        self._say(self._greeting())

    def _greeting(self) -> bytes:
        limits = self.limits
        announced = wire.settings(
            {
                wire.HEADER_TABLE_SIZE: 0,
                wire.MAX_CONCURRENT_STREAMS: limits.streams,
                wire.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
                wire.MAX_HEADER_LIST_SIZE: limits.header_bytes,
            }
        )
        return announced + wire.window_update(0, limits.connection_window_bytes - wire.DEFAULT_WINDOW)

    @property
    def streams(self) -> int:
        """Open ones."""
        return len(self._streams)

    def receive(self, data: bytes, now_s: float) -> None:
        """Takes bytes as they come, however they are cut."""
        if self.is_over:
            return
        self._now_s = self._heard_s = now_s
        self._asked_s = None
        try:
            self._read(self._rest + data if self._rest else data)
        except PeerError as error:
            self.end(error.code, str(error))

    def _read(self, data: bytes) -> None:
        at, have = 0, len(data)
        if not self._has_begun:
            start = data[: len(wire.PREFACE)]
            if not wire.PREFACE.startswith(start):
                raise PeerError(Code.PROTOCOL_ERROR, "no HTTP/2")
            if have < len(wire.PREFACE):
                self._rest = data
                return
            at, self._has_begun = len(start), True
        unpack, most = wire.HEAD.unpack_from, wire.DEFAULT_FRAME_BYTES
        while have - at >= wire.HEAD_BYTES:
            upper, lower, kind, flags, stream_id = unpack(data, at)
            length = upper << 8 | lower
            if length > most:
                raise PeerError(Code.FRAME_SIZE_ERROR, "a frame that is too long")
            end = at + wire.HEAD_BYTES + length
            if end > have:
                break
            payload = data[at + wire.HEAD_BYTES : end]
            if kind == wire.DATA and self._continued is None:
                self._on_data(flags, stream_id & wire.LARGEST_STREAM, payload)
            else:
                self._on_frame(kind, flags, stream_id & wire.LARGEST_STREAM, payload)
            at = end
            if self.is_over:
                return
        self._rest = data[at:] if at else data

    def _on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._continued is not None and kind != wire.CONTINUATION:
            raise PeerError(Code.PROTOCOL_ERROR, "a frame within a header block")
        if kind == wire.WINDOW_UPDATE:
            self._on_window_update(stream_id, payload)
        elif kind == wire.HEADERS:
            self._on_headers(flags, stream_id, payload)
        elif kind == wire.RST_STREAM:
            self._on_reset(stream_id, payload)
        elif kind == wire.CONTINUATION:
            self._on_continuation(flags, stream_id, payload)
        else:
            self._on_seldom(kind, flags, stream_id, payload)

    def _on_seldom(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Unknown frames are let go, and a client's GOAWAY: it is of streams that a server opens."""
        if kind == wire.SETTINGS:
            if not self._settings.allows(self._now_s):
                raise PeerError(Code.ENHANCE_YOUR_CALM, "too many settings")
            self._on_settings(flags, stream_id, payload)
            return
        self._count_idle()
        if kind == wire.PING:
            self._on_ping(flags, stream_id, payload)
        elif kind == wire.PUSH_PROMISE:
            raise PeerError(Code.PROTOCOL_ERROR, "a client pushes nothing")

    def _count_idle(self) -> None:
        if not self._idle_frames.allows(self._now_s):
            raise PeerError(Code.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        length = len(payload)
        self._receive_window -= length
        if self._receive_window < 0:
            raise PeerError(Code.FLOW_CONTROL_ERROR, "more than the connection's window")
        if 2 * self._receive_window <= self.limits.connection_window_bytes:
            granted = self.limits.connection_window_bytes - self._receive_window
            self._receive_window += granted
            self._say(wire.window_update(0, granted))
        stream = self._streams.get(stream_id)
        if stream is None or stream.has_ended:
            self._not_open(stream_id, stream)
            return
        stream.receive_window -= length
        if stream.receive_window < 0:
            self.reset(stream, Code.FLOW_CONTROL_ERROR)
            return
        data = wire.without_padding(flags, payload) if flags & wire.PADDED else payload
        if length:
            stream.received(data)
        if not data and not flags & wire.END_STREAM:
            self._count_idle()
        if flags & wire.END_STREAM and not stream.is_closed:
            stream.has_ended = True
            stream.ended()

    def _not_open(self, stream_id: int, stream: Stream | None) -> None:
        """Data of a stream that has ended here is what was under way; of one that ended there, or never was, not."""
        if stream is not None:
            self.reset(stream, Code.STREAM_CLOSED)
        elif stream_id > self._last_id or not stream_id % 2:
            raise PeerError(Code.PROTOCOL_ERROR, "data of a stream that was not opened")

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = wire.without_padding(flags, payload)
        if flags & wire.WITH_PRIORITY:
            if len(block) < wire.PRIORITY_BYTES:
                raise PeerError(Code.FRAME_SIZE_ERROR, "HEADERS of a wrong length")
            block = block[wire.PRIORITY_BYTES :]
        if not stream_id % 2:
            raise PeerError(Code.PROTOCOL_ERROR, "a stream with a number that is not a client's")
        if flags & wire.END_HEADERS:
            self._on_block(flags, stream_id, block)
        else:
            self._continued = (stream_id, flags, [block])

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._continued is None or self._continued[0] != stream_id:
            raise PeerError(Code.PROTOCOL_ERROR, "CONTINUATION of no header block")
        _, first_flags, parts = self._continued
        parts.append(payload)
        if len(parts) > self.limits.header_frames or sum(map(len, parts)) > self.limits.header_bytes:
            raise PeerError(Code.ENHANCE_YOUR_CALM, "a header block that is too long")
        if flags & wire.END_HEADERS:
            self._continued = None
            self._on_block(first_flags, stream_id, b"".join(parts))

    def _on_block(self, flags: int, stream_id: int, block: bytes) -> None:
        try:
            headers = self._blocks.read(block)
        except TooLongError:
            headers = None
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._on_trailers(stream, flags)
        elif stream_id > self._last_id:
            self._last_id = stream_id
            self._open(flags, stream_id, headers)
        # else it ended here while this was under way

    def _on_trailers(self, stream: Stream, flags: int) -> None:
        if stream.has_ended or not flags & wire.END_STREAM:
            self.reset(stream, Code.PROTOCOL_ERROR)
            return
        stream.has_ended = True
        stream.ended()

    def _open(self, flags: int, stream_id: int, headers: dict[bytes, bytes] | None) -> None:
        if self._is_gone or len(self._streams) >= self.limits.streams:
            self._say(wire.rst_stream(stream_id, Code.REFUSED_STREAM))
            return
        if headers is None:
            self._say(wire.rst_stream(stream_id, Code.ENHANCE_YOUR_CALM))
            return
        if b":path" not in headers or b":method" not in headers:
            self._say(wire.rst_stream(stream_id, Code.PROTOCOL_ERROR))
            return
        stream = self._streams[stream_id] = self._opened(self, stream_id, headers)
        if flags & wire.END_STREAM:
            stream.has_ended = True
            stream.ended()

    def _on_reset(self, stream_id: int, payload: bytes) -> None:
        wire.read_word(payload)
        if not stream_id or stream_id > self._last_id:
            raise PeerError(Code.PROTOCOL_ERROR, "RST_STREAM of a stream that was not opened")
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if not stream.has_ended and not stream.is_done and not self._resets.allows(self._now_s):
            self.go_away("resets")  # the streams that are left are other clients'
        self._close(stream)
        stream.broken()

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or (flags & wire.ACK and payload):
            raise PeerError(Code.PROTOCOL_ERROR, "SETTINGS that are none")
        if flags & wire.ACK:
            self._blocks.acknowledged()
            return
        for name, value in wire.read_settings(payload):
            if name == wire.INITIAL_WINDOW_SIZE:
                self._set_first_window(value)
            elif name == wire.MAX_FRAME_SIZE:
                if not wire.DEFAULT_FRAME_BYTES <= value <= wire.LARGEST_FRAME_BYTES:
                    raise PeerError(Code.PROTOCOL_ERROR, "a largest frame that is out of bounds")
                self.sending.take_frames_of(value)
        self._say(wire.frame(wire.SETTINGS, wire.ACK, 0))

    def _set_first_window(self, value: int) -> None:
        if value > wire.LARGEST_WINDOW:
            raise PeerError(Code.FLOW_CONTROL_ERROR, "a window that is too large")
        change, self.first_send_window = value - self.first_send_window, value
        for stream in self._streams.values():
            stream.send_window += change
            self.sending.ready(stream)

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) != wire.PING_BYTES:
            raise PeerError(Code.FRAME_SIZE_ERROR, "a PING that is none")
        if not flags & wire.ACK:
            self._say(wire.frame(wire.PING, wire.ACK, 0, payload))
        elif payload == DRAINING and self._went_s is not None:
            self._gone()

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        size = wire.read_word(payload) & wire.LARGEST_WINDOW
        if not stream_id:
            if not self.sending.granted(size):
                raise PeerError(Code.FLOW_CONTROL_ERROR, "a window of nothing, or one that is too large")
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            if stream_id > self._last_id:
                raise PeerError(Code.PROTOCOL_ERROR, "a window of a stream that was not opened")
            return
        stream.send_window += size
        if not size or stream.send_window > wire.LARGEST_WINDOW:
            self.reset(stream, Code.FLOW_CONTROL_ERROR)
            return
        self.sending.ready(stream)

    def granting(self, stream: Stream) -> None:
        """Lets the peer send on a stream what has been dealt with, once it is worth a frame."""
        size = stream.granted - stream.receive_window
        if 2 * size >= stream.granted and not stream.has_ended and not stream.is_closed:
            stream.receive_window += size
            self._say(wire.window_update(stream.stream_id, size))

    def wake(self) -> None:
        """There is something to take."""
        self._on_output()

    def reset(self, stream: Stream, code: Code) -> None:
        """Ends a stream at once, for both sides."""
        if not stream.is_closed:
            self._say(wire.rst_stream(stream.stream_id, code))
            self._close(stream)
            stream.broken()

    def _close(self, stream: Stream) -> None:
        stream.is_closed = True
        self._streams.pop(stream.stream_id, None)
        self._used_s = self._now_s
        if stream.queue:
            stream.queue.clear()
            stream.unsent = 0
            stream.sent()
        stream.head = stream.tail = None
        if self._is_gone and not self._streams:
            self.is_over = True

    def take(self) -> bytes:
        """What is to be written now; nothing where there is nothing, or windows are closed."""
        return self.sending.take()

    def go_away(self, reason: str) -> None:
        """Takes no new stream, once the peer knows: those that are open, or on their way, go on."""
        if self._went_s is None and not self.is_over:
            self._went_s = self._now_s
            self.reason = reason
            if not self._has_begun:
                self.is_over = True
                return
            self._say(wire.goaway(wire.LARGEST_STREAM, Code.NO_ERROR) + wire.frame(wire.PING, 0, 0, DRAINING))
            self._on_output()

    def _gone(self) -> None:
        if not self._is_gone:
            self._is_gone = True
            self._say(wire.goaway(self._last_id, Code.NO_ERROR))
            self.is_over = self.is_over or not self._streams
            self._on_output()

    def end(self, code: Code, detail: str) -> None:
        """Ends the connection and says why; its streams are broken."""
        if not self.is_over:
            self.reason = self.reason or code.name
            self._say(wire.goaway(self._last_id, code, detail))
            self.lost()
            self._on_output()

    def lost(self) -> None:
        """The transport is gone, or the connection ends: its streams are broken."""
        self.is_over = True
        self._rest = b""
        self.sending.stop()
        for stream in list(self._streams.values()):
            self._close(stream)
            stream.broken()

    def tick(self, now_s: float) -> None:
        """Keeps the times; to be called about every second."""
        limits = self.limits
        if self.is_over:
            return
        if not self._has_begun:
            if now_s - self._began_s > limits.preface_s:
                self.reason = "silent"
                self.end(Code.PROTOCOL_ERROR, "no preface in time")
        elif self._asked_s is not None:
            if now_s - self._asked_s > limits.answer_s:
                self.reason = "silent"
                self.end(Code.NO_ERROR, "no answer to a ping")
        elif now_s - self._heard_s > limits.keepalive_s:
            self._asked_s = now_s
            self._say(wire.frame(wire.PING, 0, 0, ALIVE))
            self._on_output()
        self._now_s = now_s
        if not self._streams and now_s - self._used_s > limits.idle_s:
            self.go_away("idle")
        if self._went_s is not None and now_s - self._went_s > limits.answer_s:
            self._gone()

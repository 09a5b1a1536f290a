"""One stream of a connection: what is still to be sent on it, and both of its windows."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router_grpc.http2.connection import Connection


class Stream:
    """What comes on it is told to ``received``, ``ended`` and ``broken``, which those who serve it implement.

    Attributes:
        head: a header block that is to be sent first.
        queue: bytes that are to be sent then, ``unsent`` of them.
        tail: a header block that is to be sent last; nothing is queued once it is there.
        has_ended: the peer has said everything.
        is_ready: it stands in the connection's line of streams that may have something to send.
    """

    __slots__ = ("connection", "granted", "has_ended", "head", "is_closed", "is_ready", "queue", "receive_window",
                 "send_window", "stream_id", "tail", "unsent")  # fmt: skip

    def __init__(self, connection: Connection, stream_id: int) -> None:
        self.connection, self.stream_id = connection, stream_id
        self.send_window = connection.first_send_window
        self.receive_window = connection.limits.stream_window_bytes
        self.granted = self.receive_window
        self.head: bytes | None = None
        self.queue: deque[bytes | memoryview] = deque()
        self.unsent = 0
        self.tail: bytes | None = None
        self.has_ended = self.is_closed = self.is_ready = False

    def received(self, data: bytes) -> None:
        """Bytes came."""
        raise NotImplementedError

    def ended(self) -> None:
        """No more bytes come."""
        raise NotImplementedError

    def broken(self) -> None:
        """The peer gave it up, or the connection is gone; nothing more is sent."""
        raise NotImplementedError

    @property
    def is_done(self) -> bool:
        """All is said: a peer that resets it gives up nothing."""
        raise NotImplementedError

    def sent(self) -> None:
        """What is unsent was looked at: some has gone out, or none could, or it is no longer to be sent."""
        raise NotImplementedError

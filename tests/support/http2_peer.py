"""A client of one HTTP/2 connection in memory: frames in, frames out, and handlers that tests set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from hpack import Decoder, Encoder

from llmrouter.errors import SaturatedError
from router_grpc.http2 import frames as wire
from router_grpc.http2.calls import PREFIX, Calls
from router_grpc.http2.connection import Connection
from router_grpc.http2.limits import Limits
from router_grpc.rates import Rate
from router_grpc.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from router_grpc.http2.calls import Call, Handler

PATH = "/service/Method"
WIDE = wire.settings({wire.INITIAL_WINDOW_SIZE: 2**30}) + wire.window_update(0, 2**30)
"""A peer that takes everything."""

SMALL = Limits(
    streams=4,
    stream_window_bytes=1_000,
    connection_window_bytes=100_000,
    header_bytes=2_000,
    header_frames=4,
    message_bytes=5_000,
    unsent_bytes=500,
    idle_frames=Rate(20, 0.0),
    settings=Rate(20, 0.0),
    resets=Rate(5, 0.0),
)
"""Bounds that a test reaches."""


class Frame(NamedTuple):
    kind: int
    flags: int
    stream_id: int
    payload: bytes


class Echo:
    """Answers every message with itself; ends well when the peer does."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.got: list[bytes] = []
        self.is_waiting = self.is_done = False
        self.broke = 0

    def receive(self, message: bytes) -> None:
        self.got.append(message)
        if message == b"fail":
            raise RuntimeError("a handler's own error")
        self.call.send(message)

    def half_closed(self) -> None:
        self.call.finish(Status.OK, "")

    def broken(self) -> None:
        self.broke += 1


@dataclass
class CountedBudget:
    """Keeps count; refuses above ``most``."""

    most: int = 2**40
    bytes: int = 0

    def take(self, size: int) -> None:
        if self.bytes + size > self.most:
            raise SaturatedError("bodies: too many bytes", reason="BodiesFull", retry_after_s=1.0)
        self.bytes += size

    def hold(self, size: int) -> None:
        self.bytes += size

    def give(self, size: int) -> None:
        self.bytes -= size


@dataclass
class Answer:
    """What a call was answered with."""

    headers: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    reset: int | None = None

    @property
    def messages(self) -> list[bytes]:
        found, at = [], 0
        while at < len(self.data):
            _, size = PREFIX.unpack_from(self.data, at)
            found.append(self.data[at + 5 : at + 5 + size])
            at += 5 + size
        return found

    @property
    def status(self) -> int | None:
        said = self.trailers.get("grpc-status", self.headers.get("grpc-status"))
        return None if said is None else int(said)


class Peer:
    """Speaks to a connection of its own; what came back is kept in ``frames`` and ``answers``."""

    def __init__(
        self, *, limits: Limits | None = None, greets: bool = True, budget: CountedBudget | None = None
    ) -> None:
        self.handlers: list[Echo] = []
        self.failures: list[Exception] = []
        self.budget = budget or CountedBudget()
        self.outputs = 0
        self.now_s = 100.0
        methods: dict[str, Callable[[Call], Handler]] = {PATH: self._open}
        calls = Calls(methods, budget=self.budget, failed=self.failures.append)
        self.connection = Connection(calls.open, on_output=self._output, now_s=self.now_s, limits=limits)
        self.encoder, self._decoder = Encoder(), Decoder()
        self.frames: list[Frame] = []
        self.answers: dict[int, Answer] = {}
        self._rest = b""
        if greets:
            self.send(wire.PREFACE + WIDE + wire.frame(wire.SETTINGS, wire.ACK, 0))
            self.encoder.header_table_size = 0

    def _open(self, call: Call) -> Handler:
        self.handlers.append(Echo(call))
        return self.handlers[-1]

    def _output(self) -> None:
        self.outputs += 1

    def send(self, data: bytes, *, cuts: Iterable[int] = ()) -> list[Frame]:
        """Sends bytes, cut at places; what came back since."""
        before = len(self.frames)
        at = 0
        for cut in (*sorted(cuts), len(data)):
            if data[at:cut]:
                self.connection.receive(data[at:cut], self.now_s)
                self.take()
            at = max(at, cut)
        return self.frames[before:]

    def take(self) -> None:
        """Reads what is to be written."""
        while data := self.connection.take():
            self._rest += data
        while len(self._rest) >= wire.HEAD_BYTES:
            upper, lower, kind, flags, stream_id = wire.HEAD.unpack_from(self._rest)
            end = wire.HEAD_BYTES + (upper << 8 | lower)
            if len(self._rest) < end:
                return
            self._note(Frame(kind, flags, stream_id, self._rest[wire.HEAD_BYTES : end]))
            self._rest = self._rest[end:]

    def _note(self, frame: Frame) -> None:
        self.frames.append(frame)
        answer = self.answers.setdefault(frame.stream_id, Answer())
        if frame.kind == wire.HEADERS:
            said = {str(name): str(value) for name, value in self._decoder.decode(frame.payload)}
            if answer.headers:
                answer.trailers = said
            else:
                answer.headers = said
        elif frame.kind == wire.DATA:
            answer.data += frame.payload
        elif frame.kind == wire.RST_STREAM:
            answer.reset = wire.read_word(frame.payload)

    def headers(self, stream_id: int, *, flags: int = wire.END_HEADERS, **changes: str) -> bytes:
        """A call's HEADERS frame; ``changes`` are headers, ``_`` for ``-`` and ``path`` for ``:path``."""
        return wire.frame(wire.HEADERS, flags, stream_id, self.encoder.encode(list(request(**changes).items())))

    def reasons(self) -> list[int]:
        """The codes of the GOAWAY frames so far."""
        return [int.from_bytes(one.payload[4:8]) for one in self.frames if one.kind == wire.GOAWAY]


def request(**changes: str) -> dict[str, str]:
    """A call's headers."""
    usual = {":method": "POST", ":scheme": "http", ":path": PATH, "content-type": "application/grpc", "te": "trailers"}
    given = {f":{name}" if name in {"path", "method"} else name.replace("_", "-"): one for name, one in changes.items()}
    return usual | given


def message(body: bytes, *, flag: int = 0, size: int | None = None) -> bytes:
    """A gRPC message."""
    return PREFIX.pack(flag, len(body) if size is None else size) + body


def data(stream_id: int, body: bytes, *, ends: bool = False) -> bytes:
    """DATA frames of a stream."""
    most = wire.DEFAULT_FRAME_BYTES
    parts = [body[at : at + most] for at in range(0, len(body), most)] or [b""]
    return b"".join(
        wire.frame(wire.DATA, wire.END_STREAM if ends and place == len(parts) else 0, stream_id, part)
        for place, part in enumerate(parts, start=1)
    )


def call(peer: Peer, stream_id: int, *messages: bytes) -> bytes:
    """A whole call: its headers, its messages, its end."""
    return peer.headers(stream_id) + data(stream_id, b"".join(map(message, messages)), ends=True)

"""What one connection may take up, and how often it may do what costs it nothing."""

from __future__ import annotations

from dataclasses import dataclass

from router_grpc.rates import Rate

KIB, MIB = 1024, 1024 * 1024
IDLE_FRAMES, SETTINGS, RESETS = Rate(1_000, 200), Rate(100, 10), Rate(20_000, 2_000)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one connection.

    Attributes:
        streams: open at once.
        stream_window_bytes: what a peer may send on a stream before it is granted more.
        connection_window_bytes: the same over all of its streams.
        header_bytes: of a header block as it is sent, and of the headers that it says.
        header_frames: frames of one header block.
        message_bytes: of a gRPC message.
        unsent_bytes: waiting to be sent on a stream; above it the peer is granted nothing more on that stream.
        idle_frames: frames that carry nothing: pings, priorities, empty data, unknown ones.
        settings: frames that change every stream's window.
        resets: streams that the peer gives up before all is said.
        preface_s: within which a client begins.
        keepalive_s: of silence, after which the peer is asked whether it is there.
        answer_s: within which it must say so.
        idle_s: without a stream, after which the connection is closed.
        close_s: within which a connection that has ended takes what was said last.
    """

    streams: int = 8192
    stream_window_bytes: int = 256 * KIB
    connection_window_bytes: int = 4 * MIB
    header_bytes: int = 16 * KIB
    header_frames: int = 64
    message_bytes: int = 16 * MIB + 256 * KIB
    unsent_bytes: int = 256 * KIB
    idle_frames: Rate = IDLE_FRAMES
    settings: Rate = SETTINGS
    resets: Rate = RESETS
    preface_s: float = 10.0
    keepalive_s: float = 20.0
    answer_s: float = 10.0
    idle_s: float = 900.0
    close_s: float = 5.0

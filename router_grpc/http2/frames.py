"""Frames as they stand on the wire (RFC 9113, sections 4 and 6)."""

from __future__ import annotations

import struct
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client begins with."""

HEAD_BYTES = 9
HEAD = struct.Struct(">HBBBL")
"""Before every frame: length (16 upper bits, 8 lower bits), kind, flags, stream."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9

END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = 1, 2, 3
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 4, 5, 6

DEFAULT_WINDOW = 65_535
DEFAULT_FRAME_BYTES = 16_384
LARGEST_FRAME_BYTES = 16_777_215
LARGEST_WINDOW = LARGEST_STREAM = 2**31 - 1
PRIORITY_BYTES, SETTING_BYTES, PING_BYTES, WORD_BYTES = 5, 6, 8, 4

_SETTING = struct.Struct(">HL")
_WORD = struct.Struct(">L")
_TWO_WORDS = struct.Struct(">LL")


class Code(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class PeerError(Exception):
    """The peer broke the rules of the connection, which ends with ``code``."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A frame."""
    return head(len(payload), kind, flags, stream_id) + payload


def head(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """What stands before a payload of ``length`` bytes."""
    return HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream_id)


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(name, value) for name, value in values.items()))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Names and values in their order; raises PeerError where the length is wrong."""
    if len(payload) % SETTING_BYTES:
        raise PeerError(Code.FRAME_SIZE_ERROR, "SETTINGS of a wrong length")
    return list(_SETTING.iter_unpack(payload))


def window_update(stream_id: int, size: int) -> bytes:
    """Grants ``size`` bytes; of the connection where ``stream_id`` is 0."""
    return frame(WINDOW_UPDATE, 0, stream_id, _WORD.pack(size))


def rst_stream(stream_id: int, code: Code) -> bytes:
    """Ends a stream at once."""
    return frame(RST_STREAM, 0, stream_id, _WORD.pack(code))


def goaway(last_stream_id: int, code: Code, detail: str = "") -> bytes:
    """No stream after ``last_stream_id`` is taken."""
    return frame(GOAWAY, 0, 0, _TWO_WORDS.pack(last_stream_id, code) + detail.encode()[:256])


def read_word(payload: bytes) -> int:
    """The number that a payload is; raises PeerError where the length is wrong."""
    if len(payload) != WORD_BYTES:
        raise PeerError(Code.FRAME_SIZE_ERROR, "a frame of a wrong length")
    found: int = _WORD.unpack(payload)[0]
    return found


def without_padding(flags: int, payload: bytes) -> bytes:
    """What a padded frame carries."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise PeerError(Code.PROTOCOL_ERROR, "more padding than frame")
    return payload[1 : len(payload) - payload[0]]

"""Pieces of an answer's body, read and sent on without a message object.

``HttpBody`` and ``StreamedBodyResponse`` have one layout on the wire: field 1 the bytes, field 2 whether they are the
last. What came within a ``ProcessingRequest`` goes on, as it is, within a ``ProcessingResponse``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

RESPONSE_BODY = 0x2A
"""``ProcessingRequest.response_body``: field 5 with a length."""

_BODY = 0x0A
_ENDS, _GOES_ON = b"\x10\x01", (b"", b"\x10\x00")
REQUEST, RESPONSE = 0x1A, 0x22
"""Tags of ``ProcessingResponse.request_body`` and ``response_body``."""

_AROUND = (0x1A, 0x1A, 0x0A)
"""Tags around a piece, from the inside: streamed_response, body_mutation, response."""

_LOW, _MORE = 0x7F, 0x80
_SHIFT, _MOST_BYTES = 7, 5


class Piece(NamedTuple):
    """A piece of a body: as it stands on the wire, its bytes, and whether it is the last."""

    wire: bytes
    body: bytes
    ends: bool


def piece_of(message: bytes) -> Piece | None:
    """The piece that a message carries; ``None`` where it is another message, or says more than a piece."""
    if not message or message[0] != RESPONSE_BODY:
        return None
    length, at = _number(message, 1)
    if length != len(message) - at:
        return None
    wire = message[at:]
    if not wire or wire[0] != _BODY:
        return _whole(wire, b"", wire)
    length, at = _number(wire, 1)
    if length < 0 or at + length > len(wire):
        return None
    return _whole(wire, wire[at : at + length], wire[at + length :])


def sent_on(wire: bytes) -> bytes:
    """A ``ProcessingResponse`` that sends a piece on."""
    return _before(len(wire), RESPONSE) + wire


def piece_message(body: bytes, *, ends: bool, of: int) -> bytes:
    """A ``ProcessingResponse`` with a piece of a body, ``of`` a request or a response."""
    begin = _begin(len(body)) if body else b""
    end = _ENDS if ends else b""
    return b"".join((_before(len(begin) + len(body) + len(end), of), begin, body, end))


@lru_cache(maxsize=4096)
def _begin(length: int) -> bytes:
    return bytes((_BODY,)) + _varint(length)


def _whole(wire: bytes, body: bytes, rest: bytes) -> Piece | None:
    if rest == _ENDS:
        return Piece(wire, body, ends=True)
    return Piece(wire, body, ends=False) if rest in _GOES_ON else None


@lru_cache(maxsize=4096)
def _before(length: int, of: int) -> bytes:
    found = b""
    for tag in (*_AROUND, of):
        found = bytes((tag,)) + _varint(length + len(found)) + found
    return found


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > _LOW:
        found.append(value & _LOW | _MORE)
        value >>= _SHIFT
    found.append(value)
    return bytes(found)


def _number(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, and the place after it; −1 where it does not end."""
    found = shift = 0
    for place in range(at, min(len(data), at + _MOST_BYTES)):
        part = data[place]
        found |= (part & _LOW) << shift
        if part <= _LOW:
            return found, place + 1
        shift += _SHIFT
    return -1, at

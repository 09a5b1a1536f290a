"""Pieces of a body as they are sent on: written without a message object.

``StreamedBodyResponse`` has the bytes in field 1 and whether they are the last in field 2, within a
``ProcessingResponse``.
"""

from __future__ import annotations

from functools import lru_cache

_BODY = 0x0A
_ENDS = b"\x10\x01"
REQUEST, RESPONSE = 0x1A, 0x22
"""Tags of ``ProcessingResponse.request_body`` and ``response_body``."""

_AROUND = (0x1A, 0x1A, 0x0A)
"""Tags around a piece, from the inside: streamed_response, body_mutation, response."""

_LOW, _MORE = 0x7F, 0x80
_SHIFT = 7


def piece_message(body: bytes, *, ends: bool, of: int) -> bytes:
    """A ``ProcessingResponse`` with a piece of a body, ``of`` a request or a response."""
    begin = _begin(len(body)) if body else b""
    end = _ENDS if ends else b""
    return b"".join((_before(len(begin) + len(body) + len(end), of), begin, body, end))


@lru_cache(maxsize=4096)
def _begin(length: int) -> bytes:
    return bytes((_BODY,)) + _varint(length)


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

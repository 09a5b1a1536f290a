"""Header blocks (HPACK, RFC 7541), without a dynamic table on either side.

The server announces a table of no bytes. Until the peer has acknowledged that, its blocks may use one and are decoded
in their order; after it a block is a function of its bytes alone, and a gateway's blocks are few different ones: what
they say is remembered.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote

from hpack import Decoder, Encoder, HPACKError, OversizedHeaderListError

from router_grpc.http2.frames import Code, PeerError

if TYPE_CHECKING:
    from collections.abc import Iterable

NO_TABLE = b"\x20"
"""Begins the first block that is sent: its sender uses no dynamic table."""

REMEMBERED_BYTES = 2048
"""Longer blocks are not remembered."""

_MANY_SIZES = re.compile(rb"(?:[\x20-\x3e]|\x3f[\x80-\xff]*[\x00-\x7f]){3}")
"""More updates of a table's size than there may be before a block's headers; each takes a while."""

_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""What stands for itself in a gRPC message of an error."""


class TooLongError(Exception):
    """A block that stands alone says more than is read; the next is not harmed."""


class BlockReader:
    """Reads a peer's blocks in their order."""

    __slots__ = ("_decoder", "_max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._decoder: Decoder | None = Decoder(max_header_list_size=max_bytes)

    def acknowledged(self) -> None:
        """The peer knows that there is no table: its next block says so."""
        if self._decoder is not None:
            self._decoder.max_allowed_table_size = 0

    def read(self, block: bytes) -> dict[bytes, bytes]:
        """Names and values; of a name that comes twice the first.

        Raises:
            TooLongError: the headers are too long; only where no later block depends on this one.
            PeerError: the block cannot be read, or is too long where later ones depend on it.
        """
        decoder = self._decoder
        if decoder is not None:
            try:
                found = _decoded(decoder, block)
            except TooLongError:
                raise PeerError(Code.ENHANCE_YOUR_CALM, "headers that are too long") from None
            if decoder.header_table_size == 0 == decoder.max_allowed_table_size:
                self._decoder = None
            return found
        if len(block) > REMEMBERED_BYTES:
            return _alone(block, self._max_bytes)
        return _remembered(block, self._max_bytes)


def _alone(block: bytes, max_bytes: int) -> dict[bytes, bytes]:
    decoder = Decoder(max_header_list_size=max_bytes)
    decoder.header_table_size = decoder.max_allowed_table_size = 0
    return _decoded(decoder, block)


_remembered = lru_cache(maxsize=512)(_alone)


def _decoded(decoder: Decoder, block: bytes) -> dict[bytes, bytes]:
    if _MANY_SIZES.match(block):
        raise PeerError(Code.COMPRESSION_ERROR, "a header block that sets the size of the table again and again")
    try:
        pairs: Iterable[tuple[bytes, bytes]] = decoder.decode(block, raw=True)
    except OversizedHeaderListError:
        raise TooLongError from None
    except (HPACKError, IndexError, ValueError) as error:
        raise PeerError(Code.COMPRESSION_ERROR, f"a header block that cannot be read: {error}") from error
    found: dict[bytes, bytes] = {}
    for name, value in pairs:
        found.setdefault(bytes(name), bytes(value))
    return found


def block_of(*headers: tuple[str, str]) -> bytes:
    """A block that uses no dynamic table and leaves nothing in one."""
    return Encoder().encode([(name, value, True) for name, value in headers], huffman=False)


GRPC_HEAD = block_of((":status", "200"), ("content-type", "application/grpc"))
"""Begins an answer."""


@lru_cache(maxsize=64)
def unsupported(status: str) -> bytes:
    """The whole answer to what is no gRPC call."""
    return block_of((":status", status))


@lru_cache(maxsize=64)
def trailers(status: int, detail: str) -> bytes:
    """Ends an answer."""
    return block_of(*_end(status, detail))


@lru_cache(maxsize=64)
def trailers_only(status: int, detail: str) -> bytes:
    """Begins and ends an answer that has no message."""
    return block_of((":status", "200"), ("content-type", "application/grpc"), *_end(status, detail))


def _end(status: int, detail: str) -> list[tuple[str, str]]:
    said = [("grpc-status", str(int(status)))]
    return [*said, ("grpc-message", quote(detail[:1024], safe=_PLAIN, errors="replace"))] if detail else said

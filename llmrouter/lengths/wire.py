"""Counts of lengths as bytes: what routers send each other and what is kept for newcomers.

One byte of version, one of the bins' version, then a zlib stream of both ``Counts``, each in columns: number of keys,
lengths of keys, bins in use by key (all little-endian), the keys, the bins, and their counts as float32.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from llmrouter.errors import InvalidInputError
from llmrouter.lengths.bins import BINS, BINS_VERSION
from llmrouter.lengths.sketches import MAX_MERGED, Counts

VERSION = 1
MAX_KEYS = 8_192
"""Of each ``Counts``; a learner has at most 4,096 groups."""

MAX_KEY_BYTES = 1_024
MAX_ENCODED_BYTES = 8 * 2**20
MAX_BODY_BYTES = 16 * 2**20
_HEAD = struct.Struct("<BB")
_NUMBER = struct.Struct("<I")
_LEVEL = 1
_UTF8 = ("utf-8", "surrogatepass")


def encode(counts: tuple[Counts, Counts]) -> bytes:
    """What ``decode`` reads. Counts lose all but seven digits; zeros take no room.

    Raises:
        InvalidInputError: what ``decode`` would refuse.
    """
    body = b"".join(_packed(one) for one in counts)
    if len(body) > MAX_BODY_BYTES:
        raise InvalidInputError(f"counts take {len(body)} bytes, more than {MAX_BODY_BYTES}")
    raw = _HEAD.pack(VERSION, BINS_VERSION) + zlib.compress(body, _LEVEL)
    if len(raw) > MAX_ENCODED_BYTES:
        raise InvalidInputError(f"counts take {len(raw)} bytes compressed, more than {MAX_ENCODED_BYTES}")
    return raw


def decode(raw: bytes) -> tuple[Counts, Counts]:
    """What was encoded: (all requests, groups); memory is bounded whatever the bytes.

    Raises:
        InvalidInputError: another version, no such bytes, too many or too long keys, or counts that are not finite,
            negative or too many.
    """
    if not _HEAD.size < len(raw) <= MAX_ENCODED_BYTES:
        raise InvalidInputError(f"encoded counts have {len(raw)} bytes, not {_HEAD.size + 1} to {MAX_ENCODED_BYTES}")
    version, bins_version = _HEAD.unpack_from(raw)
    if (version, bins_version) != (VERSION, BINS_VERSION):
        raise InvalidInputError(
            f"encoded counts are of version {version} in bins of version {bins_version}, "
            f"here it is {VERSION} in {BINS_VERSION}"
        )
    reader = _Reader(_inflated(raw[_HEAD.size :]))
    counts = _unpacked(reader), _unpacked(reader)
    reader.end()
    return counts


def _inflated(compressed: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        body = stream.decompress(compressed, MAX_BODY_BYTES)
    except zlib.error as error:
        raise InvalidInputError(f"encoded counts are no zlib stream: {error}") from None
    if not stream.eof or stream.unused_data:
        raise InvalidInputError(f"encoded counts are cut, go on past their end or take over {MAX_BODY_BYTES} bytes")
    return body


def _packed(counts: Counts) -> bytes:
    keys = [key.encode(*_UTF8) for key in counts.keys]
    values_KB = np.asarray(counts.counts, dtype="<f4")
    _check(keys, values_KB)
    used_KB = values_KB > 0.0
    return b"".join(
        (
            _NUMBER.pack(len(keys)),
            np.array([len(key) for key in keys], dtype="<u2").tobytes(),
            used_KB.sum(axis=1).astype(np.uint8).tobytes(),
            b"".join(keys),
            np.nonzero(used_KB)[1].astype(np.uint8).tobytes(),
            values_KB[used_KB].tobytes(),
        )
    )


def _unpacked(reader: _Reader) -> Counts:
    (number,) = _NUMBER.unpack(reader.take(_NUMBER.size))
    if number > MAX_KEYS:
        raise InvalidInputError(f"encoded counts have {number} keys, more than {MAX_KEYS}")
    sizes_K = np.frombuffer(reader.take(2 * number), dtype="<u2")
    used_K = np.frombuffer(reader.take(number), dtype=np.uint8)
    keys = [reader.take(size) for size in sizes_K.tolist()]
    total = int(used_K.sum())
    bins_U = np.frombuffer(reader.take(total), dtype=np.uint8)
    values_U = np.frombuffer(reader.take(4 * total), dtype="<f4")
    rows_U = np.repeat(np.arange(number), used_K)
    if (bins_U >= BINS).any() or (np.diff(rows_U * BINS + bins_U) <= 0).any():
        raise InvalidInputError(f"bins of a key must ascend and be below {BINS}")
    values_KB = np.zeros((number, BINS), dtype=np.float32)
    values_KB[rows_U, bins_U] = values_U
    _check(keys, values_KB)
    try:
        return Counts(tuple(key.decode(*_UTF8) for key in keys), values_KB.astype(np.float64))
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"a key is not UTF-8: {error}") from None


def _check(keys: list[bytes], values_KB: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    if values_KB.shape != (len(keys), BINS):
        raise InvalidInputError(f"counts have the shape {values_KB.shape}, not {(len(keys), BINS)}")
    if len(keys) > MAX_KEYS or max(map(len, keys), default=0) > MAX_KEY_BYTES:
        raise InvalidInputError(f"counts have over {MAX_KEYS} keys or a key of over {MAX_KEY_BYTES} bytes")
    if len(set(keys)) < len(keys):
        raise InvalidInputError("a key of counts comes twice")
    if not np.isfinite(values_KB).all() or (values_KB < 0.0).any():
        raise InvalidInputError("counts must be finite and at least 0")
    if len(keys) and values_KB.sum(axis=1, dtype=np.float64).max() > MAX_MERGED:
        raise InvalidInputError(f"a key has more than {MAX_MERGED:g} counts")


class _Reader:
    """Takes bytes from the front."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def take(self, size: int) -> bytes:
        taken = self._body[self._at : self._at + size]
        if len(taken) < size:
            raise InvalidInputError("encoded counts end too soon")
        self._at += size
        return taken

    def end(self) -> None:
        if self._at < len(self._body):
            raise InvalidInputError(f"encoded counts have {len(self._body) - self._at} bytes too many")

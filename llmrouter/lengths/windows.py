"""Windows of text as one run of bytes: where their words are, how words and 4-grams hash, what they are made of.

All windows of a batch are worked on at once. A word is a run of letters, digits and bytes beyond ASCII; ASCII letters
count as lower case. The hash of bytes b is the sum of (b + 1) · prime^place modulo 2^64, the same on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]
    Bytes = NDArray[np.uint8]
    Places = NDArray[np.int64]

MAX_WINDOW_BYTES = 4_096
GRAM = 4

CLASSES = ("space", "newline", "code_sign", "punctuation", "control", "lower", "upper", "digit", "beyond_ascii")
SPACE, NEWLINE, CODE, PUNCTUATION, CONTROL, LOWER, UPPER, DIGIT, BEYOND = range(len(CLASSES))
IN_WORD = slice(LOWER, len(CLASSES))
"""Classes of bytes that words are made of."""


def _class_of_byte(byte: int) -> int:  # noqa: PLR0911 - one line a class
    sign = chr(byte)
    if byte >= 0x80:  # noqa: PLR2004 - end of ASCII
        return BEYOND
    if sign.isupper():
        return UPPER
    if sign.islower():
        return LOWER
    if sign.isdigit():
        return DIGIT
    if sign == "\n":
        return NEWLINE
    if sign in " \t\r":
        return SPACE
    if sign in "{}()[]<>=;_\\":
        return CODE
    return PUNCTUATION if sign.isprintable() else CONTROL


_CLASS_OF_BYTE = bytes(_class_of_byte(byte) for byte in range(256))
_LOWER_PLUS_1 = np.array([byte + (33 if 65 <= byte <= 90 else 1) for byte in range(256)], dtype=np.uint64)  # noqa: PLR2004

_SEPARATOR = b"\0"
_PADDING = bytes(8)
_MODULUS = 1 << 64
_PRIME = 0x100000001B3
_PAIR = np.uint64(0xC2B2AE3D27D4EB4F)


def _powers(base: int) -> Hashes:
    powers = np.ones(MAX_WINDOW_BYTES, dtype=np.uint64)
    powers[1:] = np.multiply.accumulate(np.full(MAX_WINDOW_BYTES - 1, base, dtype=np.uint64))
    return powers


_POWERS = _powers(_PRIME)
_INVERSE_POWERS = _powers(pow(_PRIME, -1, _MODULUS))


class Windows:
    """W windows of at most ``MAX_WINDOW_BYTES`` bytes of UTF-8 each: heads of texts, then tails.

    A byte stands before and between them, and 9 behind them. Where a method chooses, it takes from a head the first so
    many and from a tail the last so many, in order; 0 where there are no more.

    Attributes:
        heads: how many of the windows are heads.
        sizes_W: bytes of each.
        starts_W: where each begins among all bytes B.
        bytes_B: all bytes.
        word_starts_V, word_ends_V: where the V words of all windows begin and end, in order.
        first_word_W, words_W: number of each window's first word, and how many it has.
    """

    def __init__(self, heads: Sequence[bytes], tails: Sequence[bytes]) -> None:
        joined = _SEPARATOR.join((b"", *heads, *tails, _PADDING))
        self.heads = len(heads)
        self.sizes_W = np.array([*map(len, heads), *map(len, tails)], dtype=np.int64)
        self.starts_W = np.cumsum(self.sizes_W + 1) - self.sizes_W
        self.bytes_B = np.frombuffer(joined, dtype=np.uint8)
        self._classes_B = np.frombuffer(joined.translate(_CLASS_OF_BYTE), dtype=np.uint8)
        in_word_B = self._classes_B >= IN_WORD.start
        edges = np.flatnonzero(in_word_B[1:] != in_word_B[:-1]) + 1
        self.word_starts_V, self.word_ends_V = edges[0::2], edges[1::2]
        self.first_word_W = self.word_starts_V.searchsorted(self.starts_W)
        self.words_W = self.word_starts_V.searchsorted(self.starts_W + self.sizes_W) - self.first_word_W

    def words_and_pairs(self, of_head: int, of_tail: int) -> tuple[Hashes, Hashes, Hashes, Hashes]:
        """Hashes of words and of pairs of neighbours: words of heads and of tails, pairs of heads and of tails."""
        words, pairs = self._empty(of_head, of_tail), self._empty(of_head, of_tail)
        for part, row, first, count in self._chosen(self.first_word_W, self.words_W, of_head + 1, of_tail + 1):
            hashes_V = self._hashes(first, count)
            most = words[part].shape[1]
            kept_V = hashes_V[-most:] if part else hashes_V[:most]
            words[part][row, : len(kept_V)] = kept_V
            pairs[part][row, : count - 1] = hashes_V[:-1] * _PAIR + hashes_V[1:]
        return *words, *pairs

    def grams(self, of_head: int, of_tail: int) -> tuple[Hashes, Hashes]:
        """Hashes of runs of 4 bytes: of heads and of tails."""
        grams = self._empty(of_head, of_tail)
        more = GRAM - 1
        for part, row, first, count in self._chosen(self.starts_W, self.sizes_W, of_head + more, of_tail + more):
            if count >= GRAM:
                bytes_B = _LOWER_PLUS_1[self.bytes_B[first : first + count]]
                grams[part][row, : count - more] = np.correlate(bytes_B, _POWERS[:GRAM])
        return grams

    def class_counts(self) -> NDArray[np.int64]:
        """How many bytes of each of ``CLASSES`` the heads have (heads, classes)."""
        ranges = zip(self.starts_W.tolist(), self.sizes_W[: self.heads].tolist(), strict=False)
        parts = [self._classes_B[start : start + size] for start, size in ranges]
        return np.array([np.bincount(part, minlength=len(CLASSES)) for part in parts])

    def _empty(self, of_head: int, of_tail: int) -> tuple[Hashes, Hashes]:
        tails = len(self.sizes_W) - self.heads
        return np.zeros((self.heads, of_head), dtype=np.uint64), np.zeros((tails, of_tail), dtype=np.uint64)

    def _chosen(
        self, first_W: Places, count_W: Places, of_head: int, of_tail: int
    ) -> Iterator[tuple[int, int, int, int]]:
        """What is chosen of each window that has any: 0 of heads or 1 of tails, its row there, first place, count."""
        for window, (first, count) in enumerate(zip(first_W.tolist(), count_W.tolist(), strict=True)):
            part = int(window >= self.heads)
            chosen = min(count, (of_head, of_tail)[part])
            if chosen:
                yield part, window - part * self.heads, first + part * (count - chosen), chosen

    def _hashes(self, first: int, count: int) -> Hashes:
        """Of words from ``first`` on: differences of prefix sums of byte · prime^place, moved to each word's start."""
        starts_V, ends_V = self.word_starts_V[first : first + count], self.word_ends_V[first : first + count]
        start, end = starts_V.item(0), ends_V.item(-1)
        sums_B = np.zeros(end - start + 1, dtype=np.uint64)
        np.cumsum(_LOWER_PLUS_1[self.bytes_B[start:end]] * _POWERS[: end - start], out=sums_B[1:])
        starts_V = starts_V - start
        hashes_V: Hashes = (sums_B[ends_V - start] - sums_B[starts_V]) * _INVERSE_POWERS[starts_V]
        return hashes_V

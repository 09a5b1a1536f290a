"""Windows of text as one run of bytes: where their words are, how words and 4-grams hash, what they are made of.

All windows of a batch are worked on at once. A word is a run of letters, digits and bytes beyond ASCII; ASCII letters
count as lower case. The hash of bytes b is the sum of (b + 1) · prime^place modulo 2^64, the same on every machine.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

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
_PRIMES = tuple(np.uint64(pow(_PRIME, place, _MODULUS)) for place in range(GRAM))
_PAIR = np.uint64(0xC2B2AE3D27D4EB4F)
_PLACES = np.arange(MAX_WINDOW_BYTES)
_LEAST_POWERS = 1 << 14


@lru_cache(maxsize=8)
def _powers(size: int) -> tuple[Hashes, Hashes]:
    """Powers of the prime, and of its inverse modulo 2^64, from the zeroth on."""
    made = []
    for base in (_PRIME, pow(_PRIME, -1, _MODULUS)):
        powers = np.ones(size, dtype=np.uint64)
        powers[1:] = np.multiply.accumulate(np.full(size - 1, base, dtype=np.uint64))
        made.append(powers)
    return made[0], made[1]


def _field(values_V: Hashes, first_W: Places, count_W: Places, width: int) -> Hashes:
    """From the first place of each row on so many values (rows, width); 0, which is the last value, behind them."""
    columns = _PLACES[:width]
    places_WF = first_W[:, None] + columns
    places_WF[columns >= count_W[:, None]] = -1
    values_WF: Hashes = values_V[places_WF]
    return values_WF


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
        joined = self._joined = _SEPARATOR.join((b"", *heads, *tails, _PADDING))
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
        heads, width = self.heads, max(of_head, of_tail)
        most_W = self._most(of_head, of_tail)
        count_W = np.minimum(self.words_W, most_W + 1)
        first_W = self.first_word_W.copy()
        first_W[heads:] += (self.words_W - count_W)[heads:]
        hashes_V = self._hashes(first_W, count_W)
        pairs_V = hashes_V * _PAIR
        pairs_V[:-1] += hashes_V[1:]
        at_W, words_W = count_W.cumsum() - count_W, np.minimum(count_W, most_W)
        pairs_WF = _field(pairs_V, at_W, count_W - 1, width)
        at_W[heads:] += (count_W - words_W)[heads:]
        words_WF = _field(hashes_V, at_W, words_W, width)
        return *self._split(words_WF, of_head, of_tail), *self._split(pairs_WF, of_head, of_tail)

    def grams(self, of_head: int, of_tail: int) -> tuple[Hashes, Hashes]:
        """Hashes of runs of 4 bytes: of heads and of tails."""
        heads, width, more = self.heads, max(of_head, of_tail), GRAM - 1
        count_W = np.minimum(self.sizes_W, self._most(of_head, of_tail) + more)
        first_W = self.starts_W.copy()
        first_W[heads:] += (self.sizes_W - count_W)[heads:]
        bytes_WB = _LOWER_PLUS_1[self.bytes_B.take(first_W[:, None] + _PLACES[: width + more], mode="clip")]
        grams_WG = bytes_WB[:, :width].copy()
        for place in range(1, GRAM):
            grams_WG += bytes_WB[:, place : width + place] * _PRIMES[place]
        grams_WG[_PLACES[:width] >= (count_W - more)[:, None]] = 0
        return self._split(grams_WG, of_head, of_tail)

    def _split(self, values_WF: Hashes, of_head: int, of_tail: int) -> tuple[Hashes, Hashes]:
        """Those of heads and those of tails."""
        return values_WF[: self.heads, :of_head], values_WF[self.heads :, :of_tail]

    def class_counts(self) -> NDArray[np.int64]:
        """How many bytes of each of ``CLASSES`` the heads have (heads, classes)."""
        ranges = zip(self.starts_W.tolist(), self.sizes_W[: self.heads].tolist(), strict=False)
        parts = [self._classes_B[start : start + size] for start, size in ranges]
        return np.array([np.bincount(part, minlength=len(CLASSES)) for part in parts])

    def _most(self, of_head: int, of_tail: int) -> Places:
        """How much is chosen of each window at most."""
        most_W = np.full(len(self.sizes_W), of_head)
        most_W[self.heads :] = of_tail
        return most_W

    def _hashes(self, first_W: Places, count_W: Places) -> Hashes:
        """Of so many words of each window from its first on, in order, and a 0 behind all of them.

        Differences of prefix sums of byte · prime^place, moved to each word's start. Only those words' bytes are read.
        """
        words = int(count_W.sum())
        hashes_V = np.zeros(words + 1, dtype=np.uint64)
        if not words:
            return hashes_V
        filled_W = count_W > 0
        first_W, count_W = first_W[filled_W], count_W[filled_W]
        begin_W, end_W = self.word_starts_V[first_W], self.word_ends_V[first_W + count_W - 1]
        joined = self._joined
        read = b"".join([joined[begin:end] for begin, end in zip(begin_W.tolist(), end_W.tolist(), strict=True)])
        powers_B, inverse_powers_B = _powers(max(_LEAST_POWERS, 1 << len(read).bit_length()))
        sums_B = np.zeros(len(read) + 1, dtype=np.uint64)
        bytes_B = _LOWER_PLUS_1[np.frombuffer(read, dtype=np.uint8)]
        bytes_B *= powers_B[: len(read)]
        bytes_B.cumsum(out=sums_B[1:])
        size_W = end_W - begin_W
        moved_V = (begin_W - (size_W.cumsum() - size_W)).repeat(count_W)
        words_V = np.arange(words) + (first_W - (count_W.cumsum() - count_W)).repeat(count_W)
        starts_V, ends_V = self.word_starts_V[words_V] - moved_V, self.word_ends_V[words_V] - moved_V
        np.multiply(sums_B[ends_V] - sums_B[starts_V], inverse_powers_B[starts_V], out=hashes_V[:-1])
        return hashes_V

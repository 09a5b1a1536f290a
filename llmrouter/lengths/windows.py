"""Windows of text as one run of bytes: where their words are, how words and 4-grams hash, what they are made of.

All windows of a batch are worked on at once. A word is a run of letters, digits and bytes beyond ASCII; ASCII letters
count as lower case. The hash of bytes b is the sum of (b + 1) · prime^place modulo 2^64, the same on every machine.
"""

from __future__ import annotations

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
        first_W, known_WP = self._chosen(self.first_word_W, self.words_W, of_head + 1, of_tail + 1)
        hashes_WP = np.zeros(known_WP.shape, dtype=np.uint64)
        hashes_WP[known_WP] = self._hashes(first_W, known_WP)
        pairs_WP = hashes_WP[:, :-1] * _PAIR + hashes_WP[:, 1:]
        pairs_WP[~known_WP[:, 1:]] = 0
        heads, tails_WP = self.heads, hashes_WP[self.heads :]
        spare_W1 = known_WP[heads:, of_tail, None]
        tails_WP = np.where(spare_W1, tails_WP[:, 1 : of_tail + 1], tails_WP[:, :of_tail])
        return hashes_WP[:heads, :of_head], tails_WP, pairs_WP[:heads, :of_head], pairs_WP[heads:, :of_tail]

    def grams(self, of_head: int, of_tail: int) -> tuple[Hashes, Hashes]:
        """Hashes of runs of 4 bytes: of heads and of tails."""
        first_W, known_WP = self._chosen(self.starts_W, self.sizes_W, of_head + GRAM - 1, of_tail + GRAM - 1)
        wide_WP = np.zeros(known_WP.shape, dtype=np.uint64)
        wide_WP[known_WP] = _LOWER_PLUS_1[self.bytes_B[(first_W[:, None] + np.arange(known_WP.shape[1]))[known_WP]]]
        grams_WP: Hashes = wide_WP[:, : 1 - GRAM].copy()
        for place in range(1, GRAM):
            grams_WP += wide_WP[:, place : place + grams_WP.shape[1]] * _POWERS[place]
        grams_WP[~known_WP[:, GRAM - 1 :]] = 0
        return grams_WP[: self.heads, :of_head], grams_WP[self.heads :, :of_tail]

    def class_counts(self) -> NDArray[np.int64]:
        """How many bytes of each of ``CLASSES`` the heads have (heads, classes)."""
        ranges = zip(self.starts_W.tolist(), self.sizes_W[: self.heads].tolist(), strict=False)
        parts = [self._classes_B[start : start + size] for start, size in ranges]
        return np.array([np.bincount(part, minlength=len(CLASSES)) for part in parts])

    def _chosen(self, first_W: Places, count_W: Places, of_head: int, of_tail: int) -> tuple[Places, NDArray[np.bool_]]:
        """Where the chosen part of each window's run begins, and which of its places there are (W, places)."""
        width_W = np.full(len(count_W), of_tail)
        width_W[: self.heads] = of_head
        first_W, left_W = first_W.copy(), np.maximum(count_W - width_W, 0)
        first_W[self.heads :] += left_W[self.heads :]
        return first_W, np.arange(max(of_head, of_tail)) < (count_W - left_W)[:, None]

    def _hashes(self, first_W: Places, known_WP: NDArray[np.bool_]) -> Hashes:
        """Of the words from each window's ``first_W`` on, those known: prefix sums of byte · prime^place.

        Places count from the window's first such word; each sum is moved to its word's own start.
        """
        words_W = known_WP.sum(axis=1)
        some_W = words_W > 0
        first_W, words_W, known_WP = first_W[some_W], words_W[some_W], known_WP[some_W]
        from_W, to_W = self.word_starts_V[first_W], self.word_ends_V[first_W + words_W - 1]
        upto_W = np.cumsum(to_W - from_W)
        ranges = list(zip(from_W.tolist(), to_W.tolist(), strict=True))
        if not ranges:
            return np.zeros(0, dtype=np.uint64)
        terms_B = _LOWER_PLUS_1[np.concatenate([self.bytes_B[start:end] for start, end in ranges])]
        terms_B *= np.concatenate([_POWERS[: end - start] for start, end in ranges])
        sums_B = np.zeros(len(terms_B) + 1, dtype=np.uint64)
        np.cumsum(terms_B, out=sums_B[1:])
        words_V = (first_W[:, None] + np.arange(known_WP.shape[1]))[known_WP]
        starts_V, ends_V = self.word_starts_V[words_V], self.word_ends_V[words_V]
        moved_V = np.repeat(upto_W - to_W, words_W)
        hashes_V: Hashes = sums_B[ends_V + moved_V] - sums_B[starts_V + moved_V]
        hashes_V *= _INVERSE_POWERS[starts_V - np.repeat(from_W, words_W)]
        return hashes_V

"""The length that a prompt asks for: "in 500 words", "three paragraphs"."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.windows import Windows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.lengths.windows import Bytes, Hashes, Places

ASKED_CHARS = 2_048

_COUNTED = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBER_WORDS = {word: number for number, word in enumerate(_COUNTED, start=1)}
_NUMBER_WORDS |= {"fifteen": 15, "twenty": 20, "fifty": 50, "hundred": 100}

TOKENS_PER_UNIT = {
    "token": 1.0,
    "character": 0.25,
    "word": 1.35,
    "line": 14.0,
    "sentence": 25.0,
    "verse": 25.0,
    "stanza": 45.0,
    "paragraph": 110.0,
    "page": 600.0,
    "chapter": 600.0,
    "bullet": 25.0,
    "item": 25.0,
    "point": 40.0,
    "step": 40.0,
    "example": 40.0,
    "reason": 40.0,
    "tip": 40.0,
    "idea": 40.0,
    "way": 40.0,
    "question": 25.0,
}
"""About how many tokens one of a kind has; only the order of magnitude matters."""

_ASKED = re.compile(
    rf"\b(\d{{1,6}}|{'|'.join(_NUMBER_WORDS)})[\s-]{{1,2}}(?:[a-z]{{1,14}}[\s-]{{1,2}})?"
    rf"({'|'.join(TOKENS_PER_UNIT)})s?\b"
)


def asked_tokens(text: str) -> float | None:
    """The length that a text asks for in words, sentences, points and the like: the largest; ``None`` where none is."""
    lowered = text.lower()
    asked = [
        float(_NUMBER_WORDS.get(number, 0) or number) * TOKENS_PER_UNIT[unit]
        for number, unit in _ASKED.findall(lowered)
    ]
    return min(max(asked), 1e6) if asked else None


def all_asked_tokens(prompts: Sequence[str], windows: Windows) -> list[float | None]:
    """``asked_tokens`` of the first ``ASKED_CHARS`` characters of each prompt.

    Args:
        prompts: N of them.
        windows: their heads, of ``ASKED_CHARS`` bytes or all of the prompt at least.
    """
    likely_N = _may_ask(windows).tolist()
    texts = [prompt[:ASKED_CHARS] for prompt in prompts]
    return [
        asked_tokens(text) if likely or not text.isascii() else None
        for text, likely in zip(texts, likely_N, strict=True)
    ]


_NUMBER, _UNIT = np.uint8(1), np.uint8(2)
_SLOT_BITS = 13
"""So that the table of ``_kinds`` is small; of other words in its slots, one text in a hundred looks as if it asked."""

_MIX = np.uint64(0x9E3779B97F4A7C15)
_KEY_BYTES = 8
_LOWER = np.uint64(0x2020202020202020)
"""Makes ASCII letters lower-case and leaves digits as they are."""

_KEEP = np.array([(1 << 8 * size) - 1 for size in range(_KEY_BYTES + 1)], dtype="<u8")
"""What of a key belongs to a word of so many bytes."""


def _slots(bytes_B: Bytes, starts_V: Places, ends_V: Places) -> Hashes:
    """A number below 2^``_SLOT_BITS`` of the first 8 bytes of each word; 8 bytes at least follow every start."""
    keys_B = np.ndarray((len(bytes_B) - _KEY_BYTES + 1,), dtype="<u8", buffer=bytes_B, strides=(1,))
    keys_V = (keys_B[starts_V] | _LOWER) & _KEEP[np.minimum(ends_V - starts_V, _KEY_BYTES)]
    slots_V: Hashes = (keys_V * _MIX) >> np.uint64(64 - _SLOT_BITS)
    return slots_V


def _kinds() -> NDArray[np.uint8]:
    """What the words of a slot may be; other words may share the slot."""
    kinds_S = np.zeros(1 << _SLOT_BITS, dtype=np.uint8)
    units = [unit + ending for unit in TOKENS_PER_UNIT for ending in ("", "s")]
    for kind, words in ((_NUMBER, list(_NUMBER_WORDS)), (_UNIT, units)):
        known = Windows([word.encode() for word in words], ())
        kinds_S[_slots(known.bytes_B, known.word_starts_V, known.word_ends_V)] |= kind
    return kinds_S


_KINDS_S = _kinds()
_DIGITS = 10


def _may_ask(windows: Windows) -> NDArray[np.bool_]:
    """Whether a head of ASCII may ask for a length (heads,): a number, then a unit one or two words later.

    A word that the end of what is read may cut counts as a unit.
    """
    count = windows.heads
    first_W, end_W = windows.first_word_W[:count], windows.starts_W[:count] + ASKED_CHARS
    upto_W = np.minimum(np.searchsorted(windows.word_starts_V, end_W), first_W + windows.words_W[:count])
    ranges = [slice(*pair) for pair in zip(first_W.tolist(), upto_W.tolist(), strict=True)]
    starts_V = np.concatenate([windows.word_starts_V[one] for one in ranges])
    ends_V = np.concatenate([windows.word_ends_V[one] for one in ranges])
    kinds_V = _KINDS_S[_slots(windows.bytes_B, starts_V, ends_V)]
    number_V = windows.bytes_B[starts_V] - np.uint8(ord("0")) < _DIGITS
    number_V |= (kinds_V & _NUMBER) > 0
    may_W = np.zeros(count, dtype=np.bool_)
    if not number_V.any():
        return may_W
    unit_V = (kinds_V & _UNIT) > 0
    after_W = np.cumsum(upto_W - first_W)
    some_W = upto_W > first_W
    lasts = after_W[some_W] - 1
    unit_V[lasts] |= ends_V[lasts] > end_W[some_W]
    near_V = np.zeros(len(unit_V), dtype=np.bool_)
    near_V[:-1] = unit_V[1:]
    near_V[:-2] |= unit_V[2:]
    may_W[np.searchsorted(after_W, np.flatnonzero(number_V & near_V), side="right")] = True
    return may_W

"""The length that a prompt asks for: "in 500 words", "three paragraphs"."""

from __future__ import annotations

import re

from llmrouter.lengths.scan import SLOT_BITS, slot_of

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


def _kinds() -> bytes:
    """For ``scan``: what the words of a slot may be, 1 a number, 2 a unit; other words may share the slot."""
    kinds_S = bytearray(1 << SLOT_BITS)
    units = [unit + ending for unit in TOKENS_PER_UNIT for ending in ("", "s")]
    for kind, words in ((1, list(_NUMBER_WORDS)), (2, units)):
        for word in words:
            kinds_S[slot_of(word.encode())] |= kind
    return bytes(kinds_S)


KINDS = _kinds()
"""Of other words in its slots, one text in a hundred looks as if it asked."""

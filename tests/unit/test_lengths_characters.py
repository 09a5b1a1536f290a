"""Characters by class against the words of Python's own strings."""

from __future__ import annotations

import re

from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmrouter.lengths.characters import counts_of

CJK = ((0x2E80, 0xA4D0), (0xAC00, 0xD7B0), (0xF900, 0xFB00), (0xFF00, 0xFFF0), (0x20000, 0x32000))
EDGES = "".join(chr(edge + step) for pair in CJK for edge in pair for step in (-1, 0))
TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(st.characters(max_codepoint=127), max_size=60),
    st.text(st.sampled_from("aZ0 .\n\x1c\x7f東é\ud800\U0001f642" + EDGES), max_size=60),
    st.sampled_from(["a" * 4_095, "a " * 4_096, "0" * 8_190 + "A", "\x1f" * 4_096]),
)


def plain(text: str) -> tuple[float, ...]:
    ascii_only = [sign for sign in text if sign.isascii()]
    letters = [sign for sign in ascii_only if sign.isalpha()]
    digits, spaces = sum(map(str.isdigit, ascii_only)), sum(map(str.isspace, ascii_only))
    words = len(re.findall("[A-Za-z]+", text))
    cjk = sum(any(low <= ord(sign) < high for low, high in CJK) for sign in text)
    return (
        1,
        words,
        len(letters),
        sum(map(str.isupper, letters)),
        digits,
        len(ascii_only) - len(letters) - digits - spaces,
        max(0, spaces - words),
        cjk,
        len(text) - len(ascii_only) - cjk,
    )


@settings(max_examples=300)
@given(text=TEXTS, start=st.integers(-3, 70), end=st.integers(-3, 70))
@example(text=EDGES, start=0, end=len(EDGES))
def test_counts_are_those_of_the_part(text: str, start: int, end: int) -> None:
    assert counts_of(text, 0, len(text)) == plain(text)
    assert counts_of(text, start, end) == plain(text[max(start, 0) : max(end, 0)])

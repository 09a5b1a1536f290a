"""Words, pairs, 4-grams, classes and asked lengths of a prompt against what is worked out plainly."""

from __future__ import annotations

import itertools
import re
import string
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmrouter.lengths.asked import ASKED_CHARS, KINDS, TOKENS_PER_UNIT, asked_tokens
from llmrouter.lengths.scan import MAX_WINDOW_BYTES, SLOT_BITS, scan

if TYPE_CHECKING:
    from numpy.typing import NDArray

PRIME, PAIR, MODULUS = 0x100000001B3, 0xC2B2AE3D27D4EB4F, 1 << 64
WORD = re.compile(rb"[A-Za-z0-9\x80-\xff]+")
SALTS = (zlib.crc32(b"a"), 0, 7)

TEXTS = st.one_of(
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=60),
    st.lists(st.sampled_from([b"a", b"B1", b" ", b"-", b"", b"\x00", "é".encode()]), max_size=900).map(b"".join),
    st.sampled_from(
        [b"x" * MAX_WINDOW_BYTES, b" " * MAX_WINDOW_BYTES, b"ab " * 1_365, b"1-" * 2_048, b"-1" * 2_048, b"a b" * 2_000]
    ),
)


def naive_hash(text: bytes) -> int:
    value = 0
    for byte in reversed(bytes(one + 32 if 65 <= one <= 90 else one for one in text)):
        value = (value * PRIME + byte + 1) % MODULUS
    return value


def naive_id(value: int, salt: int) -> int:
    mixed = (value ^ salt) * 0x9E3779B97F4A7C15 % MODULUS
    return max((mixed ^ (mixed >> 31)) * 0xC2B2AE3D27D4EB4F % MODULUS >> 49, 1)


def first_or_last(values: list[int], width: int, *, last: bool) -> list[int]:
    chosen = values[-width:] if last else values[:width]
    return chosen + [0] * (width - len(chosen))


def read(
    head: bytes, tail: bytes, *, of_head: int = 4, of_tail: int = 3, grams: tuple[int, int] = (5, 2)
) -> tuple[int, bool, list[int], NDArray[np.int32]]:
    widths = (of_head, of_tail, of_head, of_tail, *grams)
    ids = np.full(sum(widths), -1, dtype=np.int32)
    return *scan(head, tail, ids, widths, SALTS, KINDS, ASKED_CHARS), ids


@settings(deadline=None, max_examples=120)
@given(TEXTS, TEXTS, st.integers(1, 9), st.integers(1, 9), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_every_field_is_what_is_worked_out_plainly(
    head: bytes, tail: bytes, of_head: int, of_tail: int, grams: tuple[int, int]
) -> None:
    words_of_head, _, _, ids = read(head, tail, of_head=of_head, of_tail=of_tail, grams=grams)
    wanted: list[int] = []
    texts = [head[:MAX_WINDOW_BYTES], tail[:MAX_WINDOW_BYTES]]
    words = [[naive_hash(word) for word in WORD.findall(text)] for text in texts]
    pairs = [[(one * PAIR + other) % MODULUS for one, other in itertools.pairwise(some)] for some in words]
    runs = [[naive_hash(text[place : place + 4]) for place in range(len(text) - 3)] for text in texts]
    widths = ((of_head, of_tail), (of_head, of_tail), grams)
    for values, width, salt in zip((words, pairs, runs), widths, SALTS, strict=True):
        for where in (0, 1):
            made = [naive_id(value, salt) for value in values[where]]
            wanted += first_or_last(made, width[where], last=bool(where))
    assert ids.tolist() == wanted
    assert words_of_head == len(words[0])


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_the_classes_of_a_head_are_all_its_bytes(text: bytes) -> None:
    text = text[:MAX_WINDOW_BYTES]
    _, _, counts, _ = read(text, b"")
    signs = "{}()[]<>=;_\\"
    wanted = {
        " \t\r": 0,
        "\n": 1,
        signs: 2,
        "".join(set(string.punctuation) - set(signs)): 3,
        string.ascii_lowercase: 5,
        string.ascii_uppercase: 6,
        string.digits: 7,
    }
    assert sum(counts) == len(text)
    for members, place in wanted.items():
        assert counts[place] == sum(chr(byte) in members for byte in text if byte < 128)
    assert counts[8] == sum(byte >= 128 for byte in text)


NUMBERS = ["3", "500", "1234567", "three", "Twelve", "hundred", "3rd", "a_2", "\u0663", "one"]
UNITS = [form for unit in TOKENS_PER_UNIT for form in (unit, f"{unit}s", unit.upper(), f"{unit}-", f"{unit}\u2019s")]
SEPARATORS = [" ", "-", " - ", "\n", "\t", "\x1c", "\u00a0", "_", ".", "  ", "   "]
PIECES = st.tuples(
    st.sampled_from(NUMBERS),
    st.sampled_from(SEPARATORS),
    st.sampled_from(["", "", "short ", "very long ", "a"]),
    st.sampled_from(UNITS),
    st.sampled_from(SEPARATORS),
).map("".join)
ASKING = st.lists(st.one_of(PIECES, st.text(max_size=12)), max_size=4).map("".join)


@settings(deadline=None, max_examples=200)
@given(ASKING, st.integers(0, 40))
@example("two hundred words", 0)
@example("x 500 wordsmiths", 11)
@example("x 500 wordsmiths", 0)
def test_no_asked_length_is_overlooked(text: str, before_end: int) -> None:
    """Also where the end of what is read cuts a word."""
    padding = "x" * (ASKED_CHARS - before_end - 1) + " "
    for prompt in (text, padding + text):
        _, may_ask, _, _ = read(prompt.encode("utf-8", "surrogatepass")[:MAX_WINDOW_BYTES], b"")
        asks = asked_tokens(prompt[:ASKED_CHARS]) is not None
        assert may_ask or not asks or not prompt[:ASKED_CHARS].isascii()


def test_texts_without_words() -> None:
    words, may_ask, _, ids = read(b"", b" ")
    assert words == 0
    assert not may_ask
    assert not ids.any()


@pytest.mark.parametrize(
    ("ids", "widths", "kinds"),
    [
        (np.zeros(9, dtype=np.int32), (1, 1, 1, 1, 1, 1), KINDS),
        (np.zeros(6, dtype=np.int32), (1, 1, 2, 1, 1, 0), KINDS),
        (np.zeros(6, dtype=np.int32), (1, 1, 1, 1, 1, 1), KINDS[1:]),
        (np.zeros(6, dtype=np.int32), (-1, 1, -1, 1, 3, 3), KINDS),
    ],
)
def test_sizes_that_do_not_belong_together_are_refused(
    ids: NDArray[np.int32], widths: tuple[int, int, int, int, int, int], kinds: bytes
) -> None:
    with pytest.raises(ValueError, match=r"as many pairs|of the size"):
        scan(b"a", b"b", ids, widths, SALTS, kinds, 2_048)
    assert len(KINDS) == 1 << SLOT_BITS

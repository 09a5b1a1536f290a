"""Words, pairs, 4-grams and asked lengths of whole batches against what each text alone gives, worked out plainly."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmrouter.lengths.asked import ASKED_CHARS, TOKENS_PER_UNIT, all_asked_tokens, asked_tokens
from llmrouter.lengths.windows import CLASSES, MAX_WINDOW_BYTES, Windows

PRIME, PAIR, MODULUS = 0x100000001B3, 0xC2B2AE3D27D4EB4F, 1 << 64
WORD = re.compile(rb"[A-Za-z0-9\x80-\xff]+")

TEXTS = st.one_of(
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=60).map(lambda raw: raw.replace(b"\xff", b"")),
    st.lists(st.sampled_from([b"a", b"B1", b" ", b"-", b"", b"\x00", "é".encode()]), max_size=900).map(b"".join),
    st.sampled_from([b"x" * MAX_WINDOW_BYTES, b" " * MAX_WINDOW_BYTES, b"ab " * 1_365, b"1-" * 2_048]),
)


def naive_hash(text: bytes) -> int:
    value = 0
    for byte in reversed(text.lower()):
        value = (value * PRIME + byte + 1) % MODULUS
    return value


def first_or_last(values: list[int], width: int, *, last: bool) -> list[int]:
    chosen = values[-width:] if last else values[:width]
    return chosen + [0] * (width - len(chosen))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4), st.integers(1, 9), st.integers(1, 9))
def test_every_field_is_what_each_text_alone_gives(pairs: list[tuple[bytes, bytes]], head: int, tail: int) -> None:
    windows = Windows([one for one, _ in pairs], [other for _, other in pairs])
    found = [*windows.words_and_pairs(head, tail), *windows.grams(head, tail)]
    for row, texts in enumerate(pairs):
        for where, text in enumerate(texts):
            words = [naive_hash(word) for word in WORD.findall(text)]
            neighbours = [(one * PAIR + other) % MODULUS for one, other in itertools.pairwise(words)]
            grams = [naive_hash(text[place : place + 4]) for place in range(len(text) - 3)]
            for field, values in enumerate((words, neighbours, grams)):
                wanted = first_or_last(values, (head, tail)[where], last=bool(where))
                assert found[2 * field + where][row].tolist() == wanted


@settings(deadline=None, max_examples=60)
@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_the_classes_of_a_head_are_all_its_bytes(texts: list[bytes]) -> None:
    counts = Windows(texts, texts).class_counts()
    assert counts.shape == (len(texts), len(CLASSES))
    assert counts.sum(axis=1).tolist() == [len(text) for text in texts]
    assert counts[:, CLASSES.index("newline")].tolist() == [text.count(b"\n") for text in texts]
    assert counts[:, CLASSES.index("control")].tolist() == [
        sum(byte < 32 or byte == 127 for byte in text) - sum(text.count(sign) for sign in (b"\n", b"\t", b"\r"))
        for text in texts
    ]


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


@settings(deadline=None, max_examples=60)
@given(st.lists(ASKING, min_size=1, max_size=4), st.integers(0, 40))
@example(["two hundred words", "x 500 wordsmiths", "no", ""], 0)
@example(["x 500 wordsmiths"], 11)
def test_no_asked_length_is_overlooked(texts: list[str], before_end: int) -> None:
    """Also where the end of what is read cuts a word."""
    padding = "x" * (ASKED_CHARS - before_end - 1) + " "
    prompts = [*texts, *(padding + text for text in texts)]
    windows = Windows(
        [one.encode("utf-8", "surrogatepass")[:MAX_WINDOW_BYTES] for one in prompts], [b""] * len(prompts)
    )
    assert all_asked_tokens(prompts, windows) == [asked_tokens(prompt[:ASKED_CHARS]) for prompt in prompts]


@pytest.mark.parametrize("count", [1, 3])
def test_texts_without_words(count: int) -> None:
    windows = Windows([b""] * count, [b" "] * count)
    assert not np.concatenate([*windows.words_and_pairs(5, 3), *windows.grams(5, 3)], axis=1).any()
    assert all_asked_tokens([""] * count, windows) == [None] * count

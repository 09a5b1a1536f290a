"""Keyed hashes of a prompt's beginnings against SipHash as its authors wrote it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_grpc.beginnings import KEY_BYTES, hash_each, hashes_of

BITS = (1 << 64) - 1
KEYS = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES)
PAPERS_KEY = bytes(range(KEY_BYTES))


def turned(value: int, bits: int) -> int:
    return (value << bits | value >> (64 - bits)) & BITS


def rounds(state: list[int], times: int) -> None:
    a, b, c, d = state
    for _ in range(times):
        a = (a + b) & BITS
        b = turned(b, 13) ^ a
        a = turned(a, 32)
        c = (c + d) & BITS
        d = turned(d, 16) ^ c
        a = (a + d) & BITS
        d = turned(d, 21) ^ a
        c = (c + b) & BITS
        b = turned(b, 17) ^ c
        c = turned(c, 32)
    state[:] = a, b, c, d


def siphash(text: bytes, key: bytes) -> int:
    low, high = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    state = [low ^ 0x736F6D6570736575, high ^ 0x646F72616E646F6D, low ^ 0x6C7967656E657261, high ^ 0x7465646279746573]
    padded = text + bytes(7 - len(text) % 8) + bytes([len(text) % 256])
    for place in range(0, len(padded), 8):
        word = int.from_bytes(padded[place : place + 8], "little")
        state[3] ^= word
        rounds(state, 2)
        state[0] ^= word
    state[2] ^= 0xFF
    rounds(state, 4)
    return state[0] ^ state[1] ^ state[2] ^ state[3]


def test_the_papers_own_vector() -> None:
    assert siphash(bytes(range(15)), PAPERS_KEY) == 0xA129CA6149BE45E5
    assert hashes_of(bytes(range(8)), PAPERS_KEY, 8, 1) == (0x93F5F5799A932462,)


@given(text=st.binary(max_size=300), key=KEYS, words=st.integers(1, 8), most=st.integers(-1, 20))
def test_each_beginning_of_whole_blocks_has_its_hash(text: bytes, key: bytes, words: int, most: int) -> None:
    block = 8 * words
    ends = range(block, len(text) + 1, block)[: max(most, 0)]
    assert hashes_of(text, key, block, most) == tuple(siphash(text[:end], key) for end in ends)


def test_a_beginning_of_many_blocks() -> None:
    text = bytes(place % 251 for place in range(2_000))
    assert hashes_of(text, PAPERS_KEY, 256, 7)[-1] == siphash(text[:1_792], PAPERS_KEY)


@given(numbers=st.lists(st.integers(0, BITS), max_size=8), key=KEYS)
def test_numbers_are_hashed_each_by_itself(numbers: list[int], key: bytes) -> None:
    assert hash_each(numbers, key) == tuple(siphash(one.to_bytes(8, "little"), key) for one in numbers)


def test_what_is_refused() -> None:
    for number in (-1, BITS + 1):
        with pytest.raises(OverflowError):
            hash_each([number], PAPERS_KEY)
    with pytest.raises(ValueError, match="key"):
        hash_each([], b"short")
    with pytest.raises(ValueError, match="key"):
        hashes_of(b"", bytes(17), 8, 1)
    for block in (0, -8, 7, 12):
        with pytest.raises(ValueError, match="block_bytes"):
            hashes_of(bytes(64), PAPERS_KEY, block, 1)

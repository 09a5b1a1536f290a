"""Uses of prefix caches as bytes, and the room they wait in."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrouter.errors import InvalidInputError
from llmrouter.routing.prefixes import MAX_BLOCKS
from router_grpc.prefix_batches import MAX_BATCH_BYTES, MAX_WAITING_BYTES, Outbox, ToldUse, decode, encode

KEY_ID = b"k" * 8
HASHES = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30).map(tuple)
USES = st.builds(
    ToldUse, st.text(st.characters(codec="utf-8"), min_size=1, max_size=60), HASHES, st.floats(1e-6, 1e9),
    st.integers(1, 2**31 - 1),
)  # fmt: skip


def use(number: int = 0, blocks: int = 64) -> ToldUse:
    rng = random.Random(number)
    return ToldUse(f"pod-{number}", tuple(rng.getrandbits(64) for _ in range(blocks)), 64.0, 64 * blocks + 1)


@given(st.lists(USES, max_size=8))
def test_uses_arrive_as_they_were(uses: list[ToldUse]) -> None:
    assert decode(encode(KEY_ID, uses)) == (KEY_ID, uses)


@given(st.binary(max_size=400))
def test_any_bytes_are_uses_or_refused(raw: bytes) -> None:
    for tried in (raw, b"\x01" + KEY_ID + raw):
        try:
            _, uses = decode(tried)
        except InvalidInputError:
            continue
        assert decode(encode(KEY_ID, uses))[1] == uses


@given(st.data())
def test_what_is_cut_is_refused(data: st.DataObject) -> None:
    whole = encode(KEY_ID, [use(1), use(2)])
    ends = {9, len(encode(KEY_ID, [use(1)])), len(whole)}
    end = data.draw(st.integers(0, len(whole)).filter(lambda at: at not in ends))
    with pytest.raises(InvalidInputError, match="a batch of uses"):
        decode(whole[:end])


@pytest.mark.parametrize(
    ("block_tokens", "prompt_tokens", "hashes"),
    [(0.0, 9, 1), (float("nan"), 9, 1), (float("inf"), 9, 1), (1e-300, 9, 1), (-1.0, 9, 1), (64.0, 0, 1), (64.0, 9, 0),
     (64.0, 9, MAX_BLOCKS + 1)],
)  # fmt: skip
def test_numbers_out_of_bounds_are_refused(block_tokens: float, prompt_tokens: int, hashes: int) -> None:
    made = ToldUse("a", tuple(range(hashes)), block_tokens, prompt_tokens)
    with pytest.raises(InvalidInputError, match="out of bounds"):
        decode(encode(KEY_ID, [made]))


def test_another_version_and_what_is_too_large_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="version 2"):
        decode(struct.pack("<B8s", 2, KEY_ID))
    with pytest.raises(InvalidInputError, match="bytes"):
        decode(encode(KEY_ID, [use()] * 50))


def test_the_largest_prompt_fits_and_a_batch_is_bounded() -> None:
    outbox = Outbox()
    for number in range(3):
        outbox.add(use(number, MAX_BLOCKS))
    for number in range(3):
        taken = outbox.take()
        assert taken == [use(number, MAX_BLOCKS)]
        assert len(encode(KEY_ID, taken)) <= MAX_BATCH_BYTES
    assert (outbox.take(), outbox.dropped) == ([], 0)


def test_what_waits_is_bounded_and_the_oldest_give_way() -> None:
    outbox = Outbox()
    for number in range(5_000):
        outbox.add(use(number))
    assert outbox.dropped == 5_000 - len(outbox)
    told: list[ToldUse] = []
    while taken := outbox.take():
        assert len(encode(KEY_ID, taken)) <= MAX_BATCH_BYTES
        told += taken
    assert told == [use(number) for number in range(outbox.dropped, 5_000)]
    assert 0.9 * MAX_WAITING_BYTES < len(encode(KEY_ID, told)) <= MAX_WAITING_BYTES + 9


def test_what_is_cleared_is_dropped() -> None:
    outbox = Outbox()
    outbox.add(use())
    outbox.clear()
    assert (len(outbox), outbox.dropped, outbox.take()) == (0, 1, [])

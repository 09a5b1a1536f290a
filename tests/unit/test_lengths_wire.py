from __future__ import annotations

import math
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrouter.errors import InvalidInputError
from llmrouter.lengths.bins import BINS, BINS_VERSION
from llmrouter.lengths.online import OnlineQuantiles
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.lengths.sketches import Counts
from llmrouter.lengths.wire import MAX_BODY_BYTES, MAX_KEY_BYTES, MAX_KEYS, VERSION, decode, encode

NONE = Counts((), np.zeros((0, BINS)))


def learned(answers: int = 500, *, applications: int = 20) -> OnlineQuantiles:
    predictor = OnlineQuantiles(shared=True)
    rng = np.random.default_rng(3)
    for place, tokens in enumerate(np.exp(rng.normal(math.log(200), 0.8, answers))):
        request = LengthRequest(prompt_tokens=place % 900, application=f"app {place % applications}", model="m")
        predictor.learn(request, float(max(1, round(tokens))))
    return predictor


def packed(body: bytes, *, version: int = VERSION, bins_version: int = BINS_VERSION) -> bytes:
    return struct.pack("<BB", version, bins_version) + zlib.compress(body)


def one_key(*, key: bytes = b"a", used: int = 1, bins: bytes = b"\x03", value: float = 1.0) -> bytes:
    values = struct.pack(f"<{len(bins)}f", *([value] * len(bins)))
    return struct.pack("<IHB", 1, len(key), used) + key + bins + values


NO_KEY = struct.pack("<I", 0)


def test_what_was_learned_comes_back() -> None:
    counts = learned().counts()
    for before, after in zip(counts, decode(encode(counts)), strict=True):
        assert after.keys == before.keys
        assert after.counts == pytest.approx(before.counts, rel=1e-6)


def test_nothing_comes_back_as_nothing() -> None:
    everything, groups = decode(encode((NONE, NONE)))
    assert everything.keys == groups.keys == ()
    assert everything.counts.shape == (0, BINS)


@given(st.lists(st.tuples(st.text(max_size=64), st.lists(st.floats(0, 1e4, width=32), max_size=BINS)), max_size=9))
@settings(max_examples=60, deadline=None)
def test_any_counts_come_back(rows: list[tuple[str, list[float]]]) -> None:
    unique = dict(rows)
    counts = np.array([row + [0.0] * (BINS - len(row)) for row in unique.values()]).reshape(-1, BINS)
    _, after = decode(encode((NONE, Counts(tuple(unique), counts))))
    assert after.keys == tuple(unique)
    assert (after.counts == counts).all()


def test_labels_of_broken_unicode_come_back() -> None:
    counts = Counts(("\ud800" * 64,), np.ones((1, BINS)))
    assert decode(encode((NONE, counts)))[1].keys == counts.keys


def test_a_delta_is_small_and_a_whole_learner_too() -> None:
    predictor = learned(100)
    assert len(encode(predictor.delta())) < 3_000
    full = learned(20_000, applications=900)
    assert full.groups > 2_500
    assert len(encode(full.counts())) < 400_000


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "0 bytes"),
        (b"\x01\x01", "2 bytes"),
        (b"\x01" * (9 * 2**20), "bytes, not"),
        (packed(NO_KEY * 2, version=9), "version 9"),
        (packed(NO_KEY * 2, bins_version=9), "bins of version 9"),
        (b"\x01\x01not zlib", "no zlib stream"),
        (packed(NO_KEY * 2)[:-1], "cut"),
        (packed(NO_KEY * 2) + b"x", "cut"),
        (packed(b"\0" * (MAX_BODY_BYTES + 1)), "cut"),
        (packed(b""), "end too soon"),
        (packed(NO_KEY), "end too soon"),
        (packed(NO_KEY * 2 + b"x"), "1 bytes too many"),
        (packed(struct.pack("<I", 2**32 - 1)), "4294967295 keys"),
        (packed(struct.pack("<I", MAX_KEYS) + b"\0" * 9), "end too soon"),
        (packed(one_key(key=b"x" * (MAX_KEY_BYTES + 1)) + NO_KEY), "a key of over"),
        (packed(one_key(key=b"\xff") + NO_KEY), "UTF-8"),
        (packed(one_key(bins=bytes([BINS])) + NO_KEY), "ascend"),
        (packed(one_key(used=2, bins=b"\x05\x05") + NO_KEY), "ascend"),
        (packed(one_key(value=math.nan) + NO_KEY), "finite"),
        (packed(one_key(value=math.inf) + NO_KEY), "finite"),
        (packed(one_key(value=-1.0) + NO_KEY), "at least 0"),
        (packed(one_key(value=1e7) + NO_KEY), "more than"),
        (packed(struct.pack("<IHHBB", 2, 1, 1, 0, 0) + b"aa" + NO_KEY), "twice"),
    ],
)
def test_hostile_bytes_are_refused(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        decode(raw)


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for raw in (body, packed(body)):
        try:
            decode(raw)
        except InvalidInputError:
            continue


def test_a_bomb_takes_bounded_memory() -> None:
    bomb = packed(b"\0" * (64 * 2**20))
    assert len(bomb) < 2**20
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInputError):
            decode(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * MAX_BODY_BYTES


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (Counts(("a",), np.ones((1, 5))), "shape"),
        (Counts(("a",), np.full((1, BINS), np.nan)), "finite"),
        (Counts(("a",), -np.ones((1, BINS))), "at least 0"),
        (Counts(("a", "a"), np.ones((2, BINS))), "twice"),
        (Counts(("x" * 2_000,), np.ones((1, BINS))), "a key of over"),
        (Counts(tuple(map(str, range(9_000))), np.ones((9_000, BINS))), "over 8192 keys"),
    ],
)
def test_what_others_would_refuse_is_not_sent(counts: Counts, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        encode((NONE, counts))

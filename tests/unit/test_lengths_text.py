from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrouter.lengths.asked import asked_tokens
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.lengths.text import (
    DENSE,
    DENSE_NAMES,
    FIELD_WIDTHS,
    FIELDS,
    HASH_BUCKETS,
    HEAD_BYTES,
    IDS,
    TAIL_BYTES,
    TEXT_FEATURE_NAMES,
    text_features,
)


def ids(prompt: str | None, field: str, *, application: str = "", model: str = "") -> list[int]:
    request = LengthRequest(prompt=prompt, application=application, model=model)
    found: list[int] = text_features([request]).ids[0, FIELDS[field]].tolist()
    return [one for one in found if one]


def dense(request: LengthRequest) -> dict[str, float]:
    return dict(zip(DENSE_NAMES, text_features([request]).dense[0].tolist(), strict=True))


class TestIds:
    def test_the_fields_fill_the_columns(self) -> None:
        assert sum(FIELD_WIDTHS.values()) == IDS
        assert [FIELDS[name].stop - FIELDS[name].start for name in FIELDS] == list(FIELD_WIDTHS.values())

    def test_a_word_is_the_same_wherever_it_stands(self) -> None:
        first, second, third = ids("poem about poem", "words_head")
        assert first == third != second
        assert ids("a poem", "words_head")[1] == first
        assert ids("A POEM!", "words_head")[1] == first
        assert ids("x" * 500 + " poem", "words_head")[1] == first
        assert ids("x" * 9_000 + " poem", "words_tail")[-1] == first

    def test_pairs_are_ordered(self) -> None:
        assert ids("new york", "pairs_head") != ids("york new", "pairs_head")
        assert len(ids("one two three", "pairs_head")) == 2

    def test_the_tail_is_the_end(self) -> None:
        tail = ids(" ".join(f"w{place}" for place in range(5_000)), "words_tail")
        assert len(tail) == FIELD_WIDTHS["words_tail"]
        assert tail[-1] == ids("w4999", "words_head")[0]

    def test_labels_are_their_own(self) -> None:
        assert ids(None, "labels") == []
        assert len(ids(None, "labels", application="a", model="m")) == 3
        assert ids(None, "labels", application="m") != ids(None, "labels", model="m")

    def test_they_are_the_same_in_every_process(self) -> None:
        code = (
            "from llmrouter.lengths.predictor import LengthRequest as R\n"
            "from llmrouter.lengths.text import text_features\n"
            "print(text_features([R(prompt='Write 3 haikus, please 東京', application='poetry', model='m')]).ids.sum())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        request = LengthRequest(prompt="Write 3 haikus, please 東京", application="poetry", model="m")
        assert int(done.stdout) == text_features([request]).ids.sum()

    def test_they_are_what_models_were_trained_on(self) -> None:
        found = text_features([LengthRequest(prompt="Hello world", application="chat", model="m")]).ids[0]
        assert found[found > 0].tolist() == GOLDEN

    def test_words_spread_over_the_table(self) -> None:
        found = {ids(f"word{place}", "words_head")[0] for place in range(2_000)}
        assert len(found) > 1_900


class TestDense:
    def test_what_is_not_known_has_no_flag(self) -> None:
        assert not any(dense(LengthRequest()).values())

    def test_request_fields(self) -> None:
        request = LengthRequest(max_output_tokens=99, temperature=0.0, tools=0, stop=1, turn=3, thinking=False)
        values = dense(request)
        assert [
            values[f"{name}_known"]
            for name in ("max_output_tokens", "temperature", "tools", "stop", "turn", "thinking")
        ]
        assert values["log_max_output_tokens"] == pytest.approx(np.log(100))
        assert values["thinking"] == 0.0

    def test_shares_of_the_head(self) -> None:
        values = dense(LengthRequest(prompt="AB 12\n{é}"))
        size = len("AB 12\n{é}".encode())
        assert values["share_upper"] == pytest.approx(2 / size)
        assert values["share_code_sign"] == pytest.approx(2 / size)
        assert values["share_beyond_ascii"] == pytest.approx(2 / size)

    def test_the_ending(self) -> None:
        assert dense(LengthRequest(prompt="Why? "))["ends_with_question"] == 1.0
        assert dense(LengthRequest(prompt="Text:\n"))["ends_with_colon"] == 1.0

    @pytest.mark.parametrize(
        ("text", "tokens"),
        [
            ("Write a 500 word essay", 675.0),
            ("in five short sentences", 125.0),
            ("2 paragraphs, 3 pages", 1_800.0),
            ("Give me ten ideas", 400.0),
            ("no number of words", None),
            ("999999999 words", None),
        ],
    )
    def test_a_length_that_is_asked_for(self, text: str, tokens: float | None) -> None:
        assert asked_tokens(text) == tokens


class TestStrangePrompts:
    @pytest.mark.parametrize(
        "prompt",
        ["", " ", "a", "\x00\x01\x02", "\ud800", "🙂" * 5_000, "x" * 10_000_000, "a b " * 3_000_000, "0" * 6_000],
    )
    def test_give_bounded_finite_features(self, prompt: str) -> None:
        features = text_features([LengthRequest(prompt=prompt)])
        assert features.ids.shape == (1, IDS)
        assert features.dense.shape == (1, DENSE)
        assert ((features.ids >= 0) & (features.ids < HASH_BUCKETS)).all()
        assert np.isfinite(features.dense).all()

    def test_only_the_windows_are_read(self) -> None:
        head, tail = "a word " * HEAD_BYTES, " an end" * TAIL_BYTES
        first = text_features([LengthRequest(prompt=head + "x" * 9_000 + tail)])
        second = text_features([LengthRequest(prompt=head + "y z" * 3_000 + tail)])
        assert (first.ids == second.ids).all()
        assert first.dense == pytest.approx(second.dense)

    def test_an_empty_batch(self) -> None:
        assert text_features([]).ids.shape == (0, IDS)


@given(st.lists(st.one_of(st.none(), st.text(max_size=200)), max_size=4))
def test_a_batch_gives_what_its_requests_give_alone(prompts: list[str | None]) -> None:
    requests = [LengthRequest(prompt=prompt, prompt_tokens=3, model="m") for prompt in prompts]
    batch = text_features(requests)
    for place, request in enumerate(requests):
        alone = text_features([request])
        assert (batch.ids[place] == alone.ids[0]).all()
        assert (batch.dense[place] == alone.dense[0]).all()


def test_a_batch_larger_than_a_block_gives_the_same() -> None:
    requests = [LengthRequest(prompt=None if row % 7 == 0 else f"Tell {row} jokes. " * row) for row in range(150)]
    batch = text_features(requests)
    for row in (0, 1, 63, 64, 127, 128, 149):
        alone = text_features([requests[row]])
        assert (batch.ids[row] == alone.ids[0]).all()
        assert (batch.dense[row] == alone.dense[0]).all()


def test_every_feature_has_a_name_of_its_own() -> None:
    assert len(set(TEXT_FEATURE_NAMES)) == len(TEXT_FEATURE_NAMES) == len(FIELD_WIDTHS) + DENSE


GOLDEN = [
    358,
    26409,
    26908,
    786,
    3126,
    786,
    3126,
    27985,
    27985,
    6730,
    2980,
    19077,
    14998,
    1068,
    10718,
    12172,
    23713,
    6730,
    2980,
    19077,
    14998,
    1068,
    10718,
    12172,
    23713,
]

"""Reading answers while they pass, however they are cut."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_grpc.picker.usage import MAX_KEPT_BYTES, MAX_LINE_BYTES, AnswerScan, Usage


def event(**content: object) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"


SAID = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}
CHAT = b"".join(
    [
        *(event(choices=[{"delta": {"content": text}}]) for text in ("Hé", "llo", "!")),
        event(choices=[], usage=SAID),
        b"data: [DONE]\n\n",
    ]
)
ANTHROPIC = b"".join(
    [
        b"event: message_start\n",
        event(type="message_start", message={"usage": {"input_tokens": 9, "cache_read_input_tokens": 2}}),
        event(type="content_block_start"),
        event(type="content_block_delta", delta={"text": "a"}),
        event(type="content_block_delta", delta={"text": "b"}),
        event(type="message_delta", delta={}, usage={"output_tokens": 4}),
        event(type="message_stop"),
    ]
)


def scanned(*chunks: bytes, is_stream: bool = True) -> AnswerScan:
    scan = AnswerScan(is_stream=is_stream)
    for chunk in chunks:
        scan.feed(chunk)
    scan.end()
    return scan


@given(st.sampled_from([(CHAT, 3), (ANTHROPIC, 2)]), st.lists(st.integers(0, 600), max_size=12))
def test_a_stream_reads_the_same_however_it_is_cut(answer: tuple[bytes, int], cuts: list[int]) -> None:
    text, events = answer
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    scan = scanned(*(text[begin:end] for begin, end in itertools.pairwise(places)))
    assert scan.events == events
    assert scan.usage == Usage(prompt_tokens=9, output_tokens=4, cached_tokens=2)
    assert scan.output_tokens == 4


def test_the_first_token_is_seen_when_it_comes() -> None:
    scan = AnswerScan(is_stream=True)
    scan.feed(b": a comment\n\ndata: ")
    assert not scan.has_begun
    scan.feed(b'{"choices": [{"text": "a"}]}\n')
    assert scan.has_begun


def test_without_usage_events_are_counted() -> None:
    assert scanned(CHAT.split(b'data: {"choices": []')[0]).output_tokens == 3
    assert scanned(b"data: [DONE]\n\n").output_tokens is None


def test_a_last_line_without_its_end_counts() -> None:
    assert scanned(b'data: {"choices": [{"text": "a"}]}').events == 1


def test_lines_that_are_too_long_are_counted_and_not_kept() -> None:
    scan = AnswerScan(is_stream=True)
    for begin in (b"data: ", b"id: "):
        scan.feed(begin)
        for _ in range(3 * MAX_LINE_BYTES // 1024):
            scan.feed(b"x" * 1024)
        scan.feed(b"\n")
    assert len(scan._line) <= MAX_LINE_BYTES
    scan.feed(CHAT)
    assert scan.events == 1 + 3


USAGE = {"prompt_tokens": 3, "completion_tokens": 5}


class TestOneObject:
    def test_usage_of_an_answer(self) -> None:
        body = json.dumps({"choices": [{"message": {"content": "x" * 1_000}}], "usage": USAGE}).encode()
        scan = scanned(body[:7], body[7:], is_stream=False)
        assert (scan.usage.prompt_tokens, scan.output_tokens) == (3, 5)

    def test_of_a_long_answer_the_end_is_enough(self) -> None:
        text = 'x"usage"' * MAX_KEPT_BYTES
        body = json.dumps({"choices": [{"text": text}], "usage": USAGE, "id": "a"}).encode()
        scan = scanned(*(body[at : at + 5_000] for at in range(0, len(body), 5_000)), is_stream=False)
        assert (scan.usage.prompt_tokens, scan.output_tokens) == (3, 5)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>",
            b"{",
            b"[1]",
            b'{"usage": 5}',
            b'{"usage": {"completion_tokens": -1}}',
            b'x"usage": {"a"',
            b"[" * 70_000,
        ],
    )
    def test_an_answer_that_says_nothing_is_not_known(self, body: bytes) -> None:
        scan = scanned(body, is_stream=False)
        assert scan.output_tokens is None
        assert scan.has_begun is bool(body)

"""However engines' bytes are cut and wherever engines die, a client gets the undisturbed answer, once."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scripted_engine import ANSWER, CHAT, COMPLETION, PROMPT, PROMPT_TOKENS, events_of

from llmrouter.listener_specs import OpenAISpec
from router_grpc.openai.answers import PartEnd
from router_grpc.openai.intent import Intent, intent_of
from router_grpc.openai.stream import StreamAnswer

TOKENS = OpenAISpec(resume="Tokens")
EVENT_STREAM = "text/event-stream"


def body_of(path: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of a body
    asked = {"prompt": PROMPT} if path == COMPLETION else {"messages": [{"role": "user", "content": PROMPT}]}
    return {"model": "m", **asked, "stream": True, "max_tokens": 100, **more}


def intent(path: str, rules: OpenAISpec = TOKENS, **more: Any) -> Intent:  # noqa: ANN401 - as above
    return intent_of("POST", path, {}, json.dumps(body_of(path, **more)).encode(), rules)


def said_in(stream: bytes) -> list[dict[str, Any]]:
    """The events of a stream that ends as one should."""
    *events, last, rest = stream.split(b"\n\n")
    assert (last, rest) == (b"data: [DONE]", b"")
    return [json.loads(one.removeprefix(b"data: ")) for one in events]


def text_in(said: list[dict[str, Any]]) -> str:
    choices = [one["choices"][0] for one in said if one["choices"]]
    return "".join(one["text"] if "text" in one else one["delta"].get("content", "") for one in choices)


def fed(answer: StreamAnswer, stream: bytes, cuts: list[int]) -> bytes:
    places = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return b"".join(answer.feed(stream[a:b]) for a, b in pairwise(places))


def played(asked: Intent, deaths: list[int], cuts: list[int]) -> bytes:
    """What a client gets where engines die one after the other, after so many bytes each, and the last one does not."""
    answer = asked.answer(EVENT_STREAM)
    assert isinstance(answer, StreamAnswer)
    got = b""
    for death in [*deaths, None]:
        part = asked.part(answer.produced, excluded=frozenset())
        answer.begin_part(part.slice_tokens)
        stream = b"".join(events_of(asked.path, json.loads(part.body)))
        got += fed(answer, stream if death is None else stream[: death % len(stream)], cuts)
        end = answer.end_part(broke=death is not None)
        for _ in range(50):
            if end is not PartEnd.MORE:
                break
            got += answer.between()
            part = asked.part(answer.produced, excluded=frozenset())
            answer.begin_part(part.slice_tokens)
            got += fed(answer, b"".join(events_of(asked.path, json.loads(part.body))), cuts)
            end = answer.end_part(broke=False)
        if end is PartEnd.WHOLE:
            return got + answer.close()
    raise AssertionError("the last engine broke")


@settings(max_examples=300, deadline=None)
@given(
    path=st.sampled_from([CHAT, COMPLETION]),
    deaths=st.lists(st.integers(0, 10_000), max_size=3),
    cuts=st.lists(st.integers(0, 10_000), max_size=8),
    limit=st.integers(1, len(ANSWER) + 2),
    usage=st.booleans(),
    always=st.booleans(),
)
def test_any_deaths_and_any_chunks_make_the_undisturbed_answer(
    *, path: str, deaths: list[int], cuts: list[int], limit: int, usage: bool, always: bool
) -> None:
    options = {"include_usage": usage, "continuous_usage_stats": always}
    asked = intent(path, max_tokens=limit, stream_options=options)
    said = said_in(played(asked, deaths, cuts))
    assert text_in(said) == "".join(ANSWER[:limit])
    assert len({(one["id"], one["created"], one["model"]) for one in said}) == 1
    ends = [one["choices"][0]["finish_reason"] for one in said if one["choices"]]
    assert [one for one in ends if one] == ["stop" if limit >= len(ANSWER) else "length"]
    usages = [one for one in said if not one["choices"]]
    tokens = min(limit, len(ANSWER))
    whole = {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS + tokens, "completion_tokens": tokens}
    assert [one["usage"] for one in usages] == ([whole] if usage else [])
    assert all(("usage" in one) == always for one in said if one["choices"])
    if path == CHAT:
        assert sum("role" in one["choices"][0]["delta"] for one in said if one["choices"]) == 1


@settings(max_examples=200, deadline=None)
@given(
    path=st.sampled_from([CHAT, COMPLETION]),
    size=st.integers(1, len(ANSWER) + 1),
    limit=st.none() | st.integers(1, len(ANSWER) + 2),
    deaths=st.lists(st.integers(0, 10_000), max_size=2),
    cuts=st.lists(st.integers(0, 10_000), max_size=5),
)
def test_slices_make_the_same_answer_as_one_part(
    path: str, size: int, limit: int | None, deaths: list[int], cuts: list[int]
) -> None:
    if path == COMPLETION:
        limit = limit or 100
    rules = OpenAISpec(resume="Tokens", slice_tokens=size)
    asked = intent(path, rules, max_tokens=limit, stream_options={"include_usage": True})
    said = said_in(played(asked, deaths, cuts))
    expected = ANSWER[:limit]
    assert text_in(said) == "".join(expected)
    assert said[-1]["usage"]["completion_tokens"] == len(expected)
    assert said[-1]["usage"]["prompt_tokens"] == PROMPT_TOKENS
    ends = [one["choices"][0]["finish_reason"] for one in said if one["choices"]]
    assert [one for one in ends if one] == ["stop" if len(expected) == len(ANSWER) else "length"]


@pytest.mark.parametrize("resume", ["None", "BeforeFirstToken"])
def test_an_undisturbed_stream_is_passed_on_byte_for_byte_where_parts_are_not_wanted(resume: Any) -> None:  # noqa: ANN401
    asked = intent(CHAT, OpenAISpec(resume=resume), stream_options={"include_usage": True})
    stream = b": a comment\n\n" + b"".join(events_of(CHAT, body_of(CHAT, stream_options={"include_usage": True})))
    stream = stream.replace(b"\n\n", b"\r\n\r\n")
    answer = asked.answer(EVENT_STREAM)
    answer.begin_part(None)
    got = b"".join(answer.feed(stream[at : at + 1]) for at in range(len(stream)))
    assert answer.end_part(broke=False) is PartEnd.WHOLE
    assert got + answer.close() == stream
    assert asked.part(answer.produced, excluded=frozenset()).body == asked.body


def test_of_several_answers_the_end_of_one_is_not_the_end() -> None:
    asked = intent(CHAT, n=2)
    for breaks in (True, False):
        answer = asked.answer(EVENT_STREAM)
        answer.begin_part(None)
        stream = b"".join(events_of(CHAT, body_of(CHAT)))
        sent = stream.removesuffix(b"data: [DONE]\n\n") if breaks else stream
        got = answer.feed(sent)
        assert answer.end_part(broke=breaks) is (PartEnd.BROKEN if breaks else PartEnd.WHOLE)
        assert got + (b"" if breaks else answer.close()) == sent


def test_quotes_within_a_text_are_no_end_no_usage_and_no_error() -> None:
    words = (
        '"finish_reason":"stop"',
        ' "usage":{"completion_tokens":9}',
        ' "error":{}',
        " \\",
        "\n\n",
        " data: [DONE]",
    )
    body = body_of(CHAT, stream_options={"include_usage": True})
    stream = b"".join(events_of(CHAT, body, words))
    asked = intent_of("POST", CHAT, {}, json.dumps(body).encode(), OpenAISpec())
    answer = asked.answer(EVENT_STREAM)
    answer.begin_part(None)
    assert answer.feed(stream) + answer.close() == stream
    assert answer.end_part(broke=False) is PartEnd.WHOLE
    assert answer.part.output_tokens == len(words)

"""Engines that say nonsense: nothing raises but what is said to, nothing is lost that could be passed on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrouter.listener_specs import OpenAISpec
from router_grpc.openai.answers import PartEnd, PassedAnswer, WholeAnswer
from router_grpc.openai.events import EventCutter, EventTooLongError, data_of, event_of, json_bytes
from router_grpc.openai.generation import Kind
from router_grpc.openai.intent import Intent, intent_of

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
CHOICE = st.dictionaries(
    st.sampled_from(["index", "delta", "text", "finish_reason", "token_ids", "message", "stop_reason"]),
    JSON | st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "reasoning"]), JSON),
)
SAID = st.dictionaries(st.sampled_from(["id", "created", "usage", "error", "object"]), JSON) | st.fixed_dictionaries(
    {"choices": JSON | st.lists(CHOICE, max_size=2)}, optional={"usage": JSON, "id": JSON}
)


def intent(path: str, rules: OpenAISpec, *, stream: bool = True) -> Intent:
    asked = {"prompt": "x"} if path == COMPLETION else {"messages": [{"role": "user", "content": "x"}]}
    body = {"model": "m", "max_tokens": 50, "stream": stream, **asked}
    return intent_of("POST", path, {}, json.dumps(body).encode(), rules)


@settings(max_examples=150, deadline=None)
@given(
    path=st.sampled_from([CHAT, COMPLETION]),
    parts=st.lists(st.lists(SAID | st.binary(max_size=9), max_size=6), min_size=1, max_size=3),
    size=st.sampled_from([0, 2]),
    resume=st.sampled_from(["None", "Tokens"]),
)
def test_a_stream_may_say_anything(path: str, parts: list[list[Any]], size: int, resume: Any) -> None:  # noqa: ANN401
    rules = OpenAISpec(resume=resume, slice_tokens=size if resume == "Tokens" else 0)
    asked = intent(path, rules)
    answer = asked.answer("text/event-stream")
    for events in parts:
        part = asked.part(answer.produced, excluded=frozenset())
        json.loads(part.body)
        answer.begin_part(part.slice_tokens)
        for said in events:
            answer.feed(said if isinstance(said, bytes) else event_of(said))
        if answer.end_part(broke=True) is PartEnd.MORE:
            answer.between()
    assert isinstance(answer.close(), bytes)
    assert isinstance(answer.error({"error": {}}), bytes)
    assert (answer.part.output_tokens or 0) >= 0


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(list(Kind)),
    parts=st.lists(SAID | st.binary(max_size=9), min_size=1, max_size=3),
    size=st.none() | st.integers(1, 3),
)
def test_a_whole_answer_may_say_anything(kind: Kind, parts: list[Any], size: int | None) -> None:
    answer = WholeAnswer(kind)
    for said in parts:
        answer.begin_part(size)
        sent = said if isinstance(said, bytes) else json_bytes(said)
        assert answer.feed(sent) == b""
        end = answer.end_part(broke=False)
        if size is None:
            assert end is PartEnd.WHOLE
            assert answer.close() == sent
    assert isinstance(answer.close(), bytes)


def test_what_does_not_end_is_no_event() -> None:
    cutter = EventCutter(max_event_bytes=10)
    assert cutter.feed(b"data: 1\n") == []
    assert cutter.feed(b"\ndata: 2\r\n\r\nda") == [b"data: 1\n\n", b"data: 2\r\n\r\n"]
    with pytest.raises(EventTooLongError):
        cutter.feed(b"ta: 123456789")


@given(st.lists(st.sampled_from([b"data: 1\n\n", b"data: 2\r\n\r\n", b": c\n\n", b"event: x\ndata: 3\n\n"])), st.data())
def test_events_are_the_same_however_bytes_are_cut(events: list[bytes], data: st.DataObject) -> None:
    stream, cutter, found = b"".join(events), EventCutter(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += cutter.feed(stream[:size])
        stream = stream[size:]
    assert found == events


def test_data_is_what_its_lines_say() -> None:
    assert data_of(b"event: x\ndata: {\ndata: }\n\n") == b"{\n}"
    assert data_of(b": comment\n\n") == b""


def test_half_characters_stay_what_they_are() -> None:
    said = {"text": "\ud83d ü"}
    assert json.loads(json_bytes(said)) == said
    assert json_bytes({"text": "ü"}) == '{"text":"ü"}'.encode()


def test_an_answer_that_is_passed_on_tells_its_end_only_where_a_client_can_read_it() -> None:
    said = {"error": {"message": "m"}}
    assert json.loads(PassedAnswer(is_stream=True).error(said).strip().removeprefix(b"data: ")) == said
    assert PassedAnswer(is_stream=False).error(said) == b""

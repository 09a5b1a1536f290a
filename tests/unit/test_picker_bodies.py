"""What is read of the bodies of every API, and how one that is wrong is named."""

from __future__ import annotations

import json

import pytest

from llmrouter.errors import InvalidRequestError
from router_grpc.picker.bodies import Asked, asked_of, makes_tokens


def asked(path: str, **content: object) -> Asked:
    found = asked_of(path, json.dumps({"model": "llama", **content}).encode())
    assert found is not None
    return found


class TestChat:
    def test_texts_of_all_messages_in_order(self) -> None:
        parts = [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {"url": "x"}}]
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
        found = asked("/v1/chat/completions", messages=messages)
        assert found.prompt == b"Be brief.\nLook:"
        assert (found.model, found.prompt_tokens, found.turn, found.streams) == ("llama", 0, 1, False)

    def test_what_shapes_the_answer(self) -> None:
        found = asked(
            "/v1/chat/completions?x=1",
            messages=[{"role": "user", "content": "é"}, {"role": "user", "content": None}],
            max_tokens=7,
            temperature=0.5,
            tools=[{}, {}],
            stop=["a", "b", "c"],
            stream=True,
            cache_salt="mine",
        )
        assert found == Asked("llama", "é".encode(), 0, 7, 0.5, 2, 3, 2, streams=True, cache_salt="mine")

    def test_the_newer_limit_counts(self) -> None:
        messages = [{"role": "user", "content": "a"}]
        assert (
            asked("/chat/completions", messages=messages, max_tokens=9, max_completion_tokens=5).max_output_tokens == 5
        )


class TestCompletions:
    @pytest.mark.parametrize(
        ("prompt", "text", "tokens"),
        [("abc", b"abc", 0), (["a", "b"], b"a\nb", 0), ([1, 2, 3], b"", 3), ([[1, 2], [3]], b"", 3), ("", b"", 0)],
    )
    def test_prompts(self, prompt: object, text: bytes, tokens: int) -> None:
        found = asked("/v1/completions", prompt=prompt, stop="x")
        assert (found.prompt, found.prompt_tokens, found.stop) == (text, tokens, 1)


def test_responses() -> None:
    assert asked("/v1/responses", input="hi", instructions="Be kind.", max_output_tokens=3).prompt == b"Be kind.\nhi"
    items = [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}, {"type": "reasoning"}]
    assert asked("/v1/responses", input=items).prompt == b"a"


def test_messages() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "b"}]}]
    found = asked("/v1/messages", system=[{"type": "text", "text": "a"}], messages=messages, stop_sequences=["x"])
    assert (found.prompt, found.stop) == (b"a\nb", 1)


def test_an_embedding_is_a_prompt_alone() -> None:
    found = asked("/v1/embeddings", input=["a", "b"])
    assert (found.prompt, found.max_output_tokens) == (b"a\nb", 1)


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/messages/count_tokens", "/tokenize", "/v1/audio/transcriptions", "/", "", "/metrics"]
)
def test_other_paths_make_no_tokens(path: str) -> None:
    assert asked_of(path, b"not even JSON") is None
    assert not makes_tokens(path)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "body: not JSON"),
        (b"[]", "body: must be a JSON object"),
        (b"[" * 100_000, "body: not JSON"),
        (b"\xff\xfe", "body: not JSON"),
        (b"{}", "messages: must be a list that is not empty"),
        (b'{"model": 3, "messages": [{"content": "a"}]}', "model: must be set"),
        (b'{"messages": [{"content": "a"}]}', "model: must be set"),
        (b'{"model": "m", "messages": []}', "messages: must be a list"),
        (b'{"model": "m", "messages": ["a"]}', r"messages\[\]: must be objects"),
        (b'{"model": "m", "messages": [{}], "max_tokens": -1}', "max_tokens: must be a whole number"),
        (b'{"model": "m", "messages": [{}], "max_tokens": true}', "max_tokens: must be a whole number"),
        (b'{"model": "m", "messages": [{}], "temperature": "hot"}', "temperature: must be a number"),
    ],
)
def test_what_is_wrong_is_named(body: bytes, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        asked_of("/v1/chat/completions", body)


@pytest.mark.parametrize("prompt", [5, {"a": 1}, [1, "a"]])
def test_a_prompt_of_another_type_is_named(prompt: object) -> None:
    with pytest.raises(InvalidRequestError, match="prompt: must be text"):
        asked("/v1/completions", prompt=prompt)
